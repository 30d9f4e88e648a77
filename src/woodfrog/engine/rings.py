"""io_uring(7) in a held container: what rings are, and what of that no file in /proc tells."""

import errno
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from woodfrog.engine.collected import scratch_in
from woodfrog.engine.collecting_files import Files
from woodfrog.engine.obstacles import Obstacles
from woodfrog.engine.ring_parts import (
    descriptor_of,
    eventfd_of,
    polls_devices,
    refuse_kind,
    refuse_personalities,
    refuse_shown,
    refuse_unmapped,
)
from woodfrog.errors import UnsupportedResource
from woodfrog.kernel import io_uring
from woodfrog.kernel.kcmp import KCMP_VM
from woodfrog.kernel.procfs.fdinfo import read_fdinfo
from woodfrog.kernel.procfs.maps import read_maps
from woodfrog.remote.held import Held, HeldProcess, HeldTask
from woodfrog.remote.scratch import Scratch
from woodfrog.remote.vdso import Vdso
from woodfrog.resources import io_uring_shown
from woodfrog.resources.files.io_uring import Completion, Registered, is_one, is_polled
from woodfrog.resources.files.open_file import OpenFile
from woodfrog.resources.io_uring_memory import Sample, contents_of
from woodfrog.resources.io_uring_requests import Pending, Seen, Unclear, pending
from woodfrog.resources.io_uring_shown import Shown

_PATIENCE_S = 0.5
_A_MOMENT_S = 0.005
_AT_ONCE = 16
_BAD_ADDRESS = 8
_GROUPS = 64  # of provided buffers that are asked for

# What a thread is asked about a ring: operation, argument, count. None of it does anything.
_QUESTIONS = {
    "probe": (io_uring.REGISTER_PROBE, 0, 0),
    "buffers": (io_uring.REGISTER_BUFFERS, 0, 0),
    "files": (io_uring.REGISTER_FILES, 0, 0),
    "eventfd": (io_uring.REGISTER_EVENTFD, _BAD_ADDRESS, 1),
    "napi": (io_uring.REGISTER_NAPI, _BAD_ADDRESS, 1),
    "region": (io_uring.REGISTER_MEM_REGION, _BAD_ADDRESS, 1),
}


class Ring:
    """One io_uring: who has it as what, and what the kernel answers their threads."""

    def __init__(self, file: OpenFile) -> None:
        self.file = file
        self.holders: dict[int, int] = {}
        for pid, number in file.holders:
            self.holders.setdefault(pid, number)
        self.answers: dict[HeldTask, dict[str, int]] = {}
        # By which numbers threads have any rings registered.
        self.indexes: dict[HeldTask, list[int]] = {}
        self.owner: HeldTask | None = None
        # What was seen before requests had to be cancelled, since it did not tell which they are.
        self.unclear: Seen | None = None

    @property
    def has_several_users(self) -> bool:
        """Tell whether requests may be those of several processes, each with its own memory."""
        users = {task.process.pid for task in self.answers if self.is_user(task)}
        return len(users) > 1 and not is_polled(self.file)

    def may_use(self, task: HeldTask) -> bool:
        """Tell whether a thread is not kept from using it by IORING_SETUP_SINGLE_ISSUER."""
        return self.answers[task]["probe"] != -errno.EEXIST

    def is_user(self, task: HeldTask) -> bool:
        """Tell whether a thread has ever made or used an io_uring."""
        return self.answers[task]["index"] != -errno.EINVAL

    def look_again(self) -> None:
        """Read fdinfo once more if the kernel was at work and showed nothing of the ring."""
        deadline = time.monotonic() + _PATIENCE_S
        while "SqThread" not in self.file.fdinfo and time.monotonic() < deadline:
            time.sleep(_A_MOMENT_S)
            self.file.fdinfo, self.file.lines = read_fdinfo(*self.file.holders[0])

    def shown(self) -> Shown | None:
        """Return what the kernel shows now."""
        pid, number = self.file.holders[0]
        return io_uring_shown.parse(read_fdinfo(pid, number)[1])


class Rings:
    """All rings of a held container."""

    def __init__(
        self, tree: Held, files: Files, vdso: Vdso, obstacles: Obstacles, *, may_cancel: bool
    ) -> None:
        self._may_cancel = may_cancel
        self._files = files
        self._vdso = vdso
        self._processes = {one.pid: one for one in tree.processes}
        self._by_inode = {file.inode: Ring(file) for file in files.files if is_one(file.target)}
        for ring in self._by_inode.values():
            ring.look_again()
        self._of_process: dict[int, list[Ring]] = defaultdict(list)
        for ring in self._by_inode.values():
            for pid in ring.holders.keys() & self._processes.keys():
                self._of_process[pid].append(ring)
        # Before anything else is collected, which completions may change.
        for pid, rings in self._of_process.items():
            with obstacles.at(self._processes[pid].name):
                self._ask_threads(self._processes[pid], rings)

    def number_of(self, inode: int, offset: int) -> int:
        """Return the id of the file that a mapping shows; raises UnsupportedResource."""
        if offset not in (io_uring.OFF_SQ_RING, io_uring.OFF_CQ_RING, io_uring.OFF_SQES):
            raise UnsupportedResource(
                f"maps a part of an io_uring, or buffers provided to it (at {offset:#x}),"
                " which cannot be saved yet"
            )
        if inode not in self._by_inode:
            raise UnsupportedResource(
                "maps an io_uring of which no process of the container has a descriptor,"
                " which cannot be saved yet"
            )
        return self._by_inode[inode].file.number

    def collect(self, file: OpenFile) -> dict[str, Any]:
        """Return the fields of a ring's record but `id` and `flags`; raises UnsupportedResource."""
        ring = self._by_inode[file.inode]
        owner = ring.owner = self._owner(ring)
        answers = ring.answers[owner]
        with Sample.like(file) as sample:
            refuse_kind(answers)
            shown, fields = self._state(ring, owner, sample)
            polls = polls_devices(answers, sample)
        self._refuse_groups(ring, owner, sample)
        if fields["reissued"] and ring.has_several_users:
            raise UnsupportedResource(
                "is an io_uring with requests on their way that several processes may have made,"
                " which cannot be saved yet"
            )
        table = self._files.table(owner.process)
        refuse_unmapped(owner.process, shown)
        return fields | {
            "owner": owner.namespace_pid,
            "single_issuer": any(one["probe"] == -errno.EEXIST for one in ring.answers.values())
            or sample.is_single_issuer(file),
            "polls_devices": polls,
            "defer_taskrun": sample.defers_task_work(file),
            "files": [descriptor_of(table, name) for name in shown.files],
            "buffers": shown.buffers,
            "eventfd": eventfd_of(table) if answers["eventfd"] == -errno.EBUSY else -1,
            "registered": self._registered(ring),
        }

    @property
    def unclear(self) -> list[Ring]:
        """The rings whose requests must be cancelled to know them."""
        return [ring for ring in self._by_inode.values() if ring.unclear]

    def ask(self, ring: Ring) -> None:
        """Have all that waits for threads come in, and ask them what only they are told."""
        for pid in ring.holders.keys() & self._processes.keys():
            self._ask_threads(self._processes[pid], [ring])

    def _ask_threads(self, process: HeldProcess, rings: list[Ring]) -> None:
        with scratch_in(process, self._vdso) as scratch:
            for task in process.tasks:
                for first in range(0, len(rings), _AT_ONCE):
                    some = rings[first : first + _AT_ONCE]
                    numbers = [ring.holders[process.pid] for ring in some]
                    answers, indexes = _ask(task, numbers, scratch)
                    for ring, told in zip(some, answers, strict=True):
                        ring.answers[task], ring.indexes[task] = told, indexes

    def _registered(self, ring: Ring) -> list[Registered]:
        """Return by which numbers threads have a ring registered (IORING_REGISTER_RING_FDS).

        That they have one is told, but not which: it is clear if they may use but one.
        """
        found = []
        for task, indexes in ring.indexes.items():
            usable = [one for one in self._of_process[task.process.pid] if one.may_use(task)]
            if indexes and ring in usable:
                if len(usable) > 1:
                    raise UnsupportedResource(
                        "is one of several io_urings that a thread may use which has registered one"
                        " of them (IORING_REGISTER_RING_FDS); it cannot be saved yet"
                    )
                found += [Registered(tid=task.namespace_pid, index=index) for index in indexes]
        return sorted(found, key=lambda one: (one.tid, one.index))

    def _owner(self, ring: Ring) -> HeldTask:
        """Return the thread that can make the ring whole."""
        thread = int(ring.file.fdinfo.get("SqThread", -1))
        able = [
            task
            for task in ring.answers
            if ring.may_use(task)
            and KCMP_VM not in task.process.shares
            and (thread == -1 or os.path.exists(f"{task.process.path}/task/{thread}"))
        ]
        able.sort(key=lambda task: not ring.is_user(task))
        if not able:
            raise UnsupportedResource(
                "is an io_uring for one thread only (IORING_SETUP_SINGLE_ISSUER), or that one polls"
                " (IORING_SETUP_SQPOLL), whose process has ended or has no descriptor of it;"
                " it cannot be saved yet"
            )
        for task in able:
            if _is_mapped(ring, task.process):
                return task
        raise UnsupportedResource(
            "is an io_uring that no process which has it has mapped, or one in memory of its own"
            " (IORING_SETUP_NO_MMAP); it cannot be saved yet"
        )

    def _state(self, ring: Ring, owner: HeldTask, sample: Sample) -> tuple[Shown, dict[str, Any]]:
        """Read the rings when it is clear what is on its way; wait for that for a while."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                shown = ring.shown()
                if shown is None:
                    raise Unclear("the kernel is at work in it")
                refuse_shown(shown)
                contents = contents_of(ring.file, shown, sample)
                refuse_personalities(shown, contents)
                if shown.thread != -1 and not contents.is_at_rest:
                    raise Unclear("its thread is at work")
                found = pending(contents.seen)
                break
            except Unclear as reason:
                if self._may_cancel and shown and _can_be_cancelled(shown, owner, deadline):
                    ring.unclear = contents.seen
                    found = Pending([], [])
                    break
                if time.monotonic() > deadline:
                    raise UnsupportedResource(
                        f"is an io_uring with requests on their way ({reason}), which cannot be"
                        " saved yet",
                        hint="let the program finish or cancel them first, or try again"
                        + ("" if self._may_cancel else "; without --leave-running they could be"),
                    ) from None
            time.sleep(_A_MOMENT_S)
            self.ask(ring)
        overflown = [Completion(user_data=one[0], result=one[1]) for one in shown.overflown]
        room = shown.cq_entries - (shown.completed - shown.cq_head & 0xFFFFFFFF)
        for data in found.cancelled[room:]:
            overflown.append(Completion(user_data=data, result=-errno.ECANCELED))
        return shown, {
            "sq_entries": shown.sq_entries,
            "cq_entries": shown.cq_entries,
            "layout": list(sample.layout),
            "submitted": shown.submitted,
            "completed": shown.completed,
            "ring": contents.ring,
            "requests": contents.requests,
            "reissued": found.reissued,
            "cancelled": found.cancelled[:room],
            "overflown": overflown,
            "large_requests": bool(sample.flags & io_uring.SETUP_SQE128),
            "large_completions": bool(sample.flags & io_uring.SETUP_CQE32),
        }

    def _refuse_groups(self, ring: Ring, owner: HeldTask, sample: Sample) -> None:
        """Refuse buffers that were provided, of which the kernel tells only that they are there."""
        operation = io_uring.REGISTER_PBUF_STATUS
        told = []
        if sample.is_single_issuer(ring.file):
            number = ring.holders[owner.process.pid]
            with scratch_in(owner.process, self._vdso) as scratch:
                program = scratch.program()
                answers = [
                    io_uring.register(program, number, operation, io_uring.buffer_status(group), 1)
                    for group in range(_GROUPS)
                ]
                for answer in answers:
                    program.may_fail(answer)
                scratch.run(program, owner.tracee)
                told = program.results(answers)
        else:
            told = [
                -sample.answer(ring.file.descriptor, operation, io_uring.buffer_status(group))
                for group in range(_GROUPS)
            ]
        # A kernel that has no such operation says EINVAL to all.
        if any(one == 0 for one in told) or (-errno.ENOENT in told and -errno.EINVAL in told):
            raise UnsupportedResource(
                "is an io_uring to which buffers were provided, which cannot be saved yet"
            )


def _ask(
    task: HeldTask, numbers: Sequence[int], scratch: Scratch
) -> tuple[list[dict[str, int]], list[int]]:
    """Return the answers of each ring, and by which indexes the thread has any registered."""
    program = scratch.program()
    asked = []
    for number in numbers:
        calls = {"enter": io_uring.enter(program, number, 0, io_uring.ENTER_GETEVENTS)}
        for name, (operation, argument, count) in _QUESTIONS.items():
            calls[name] = io_uring.register(program, number, operation, argument, count)
        asked.append(calls)
    indexes = [
        io_uring.enter(program, index, 0, io_uring.ENTER_REGISTERED_RING)
        for index in range(io_uring.MOST_REGISTERED_RINGS)
    ]
    for call in (*(call for calls in asked for call in calls.values()), *indexes):
        program.may_fail(call)
    scratch.run(program, task.tracee)
    answers = [{name: program[call] for name, call in calls.items()} for calls in asked]
    for one in answers:
        one["index"] = program[indexes[0]]
    return (
        answers,
        [index for index, call in enumerate(indexes) if program[call] == 0],
    )


def _can_be_cancelled(shown: Shown, owner: HeldTask, deadline: float) -> bool:
    """Tell whether all requests on their way just wait; those to a disk get their time."""
    left = shown.submitted - shown.completed & 0xFFFFFFFF
    room = shown.cq_entries - (shown.completed - shown.cq_head & 0xFFFFFFFF)
    waiting = shown.polled.total()
    if left > room or (left != waiting and time.monotonic() < deadline):
        return False
    return not any(
        name.startswith(b"iou-wrk") and place != "io_wq_worker"
        for name, place in _threads_of_the_kernel(owner.process)
    )


def _threads_of_the_kernel(process: HeldProcess) -> Iterator[tuple[bytes, str]]:
    """Go through the names of io_uring's threads, and where in the kernel each waits."""
    for tid in os.listdir(f"{process.path}/task"):
        path = f"{process.path}/task/{tid}"
        try:
            with open(f"{path}/comm", "rb") as comm, open(f"{path}/wchan") as wchan:
                yield comm.read(), wchan.read()
        except (FileNotFoundError, ProcessLookupError):
            continue


def _is_mapped(ring: Ring, process: HeldProcess) -> bool:
    """Tell whether a process can write to the head of the completions."""
    return any(
        row[6] == ring.file.inode
        and row[2] & 3 == 3
        and row[4] in (io_uring.OFF_SQ_RING, io_uring.OFF_CQ_RING)
        for row in read_maps(process.pid)
        if is_one(row[7])
    )
