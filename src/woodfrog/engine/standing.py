"""What of a running container still stands as an image has it, for a rollback.

What has another state can be set back, if it is of the kinds that `_SET_BACK` names. Of what is
lacking, files can be made anew (remaking.py) and processes born again (rebirth.py), if nothing of
theirs is irrecoverable. What else there is, is `extra`. All that stands in the way is told at once.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from woodfrog.engine.collected import CollectedProcess
from woodfrog.engine.differing import Pairs, differences
from woodfrog.engine.irrecoverable import (
    lost_since,
    reason_of,
    refuse_ending_again,
    refuse_rebirth,
)
from woodfrog.engine.looking import Looked
from woodfrog.engine.made_together import made_together
from woodfrog.engine.obstacles import Obstacles
from woodfrog.engine.plan import Plan
from woodfrog.errors import UnsupportedResource
from woodfrog.image.record import tag_of
from woodfrog.kernel.procfs.id_maps import IdMaps
from woodfrog.remote import held
from woodfrog.remote.held import HeldProcess, HeldTask
from woodfrog.resources import ids, signals
from woodfrog.resources.descriptor import Descriptor
from woodfrog.resources.file_signals import FileSignals
from woodfrog.resources.files.base import FileRecord
from woodfrog.resources.files.regular import RegularFile
from woodfrog.resources.mount_tree import records as mount_tree
from woodfrog.resources.network import records as network
from woodfrog.resources.network.records import Network
from woodfrog.resources.packet_filters import legacy, nftables
from woodfrog.resources.packet_filters.nftables import Nftables
from woodfrog.resources.posix_queues import PosixQueue
from woodfrog.resources.process import Lock, Process
from woodfrog.resources.sysv_ipc import AnyObject
from woodfrog.resources.sysv_memory import Segment
from woodfrog.resources.threads import Thread

T = TypeVar("T")
IpcObject = PosixQueue | AnyObject
# Fields of records that are set back, or come with something that is.
_SET_BACK: dict[str, frozenset[str]] = {
    "process": frozenset(
        (
            "memory",
            "descriptors",
            "actions",
            "pending",
            "interval_timers",
            "posix_timers",
            "threads",
            "umask",
            "directory",
            "stop_heard",
            "foreground_group",
            "locks",
            "file_signals",
        )
    ),
    "regular": frozenset(("position",)),
    "deleted": frozenset(("position",)),
    "memfd": frozenset(("position",)),
    "proc-file": frozenset(("position",)),
    "eventfd": frozenset(("counter",)),
    "timerfd": frozenset(("ticks", "left_ns", "at_ns", "interval_ns")),
    "epoll": frozenset(("watches",)),
    "stdio": frozenset(("was",)),
    "pty-master": frozenset(("settings", "size", "input", "output", "stopped", "news")),
}
_SET_BACK_OF_THREADS = frozenset(
    (
        "registers",
        "xstate",
        "mask",
        "pending",
        "alternate_stack",
        "tid_address",
        "robust_list",
        "name",
        "timer_slack",
        "pdeath_signal",
        "socket_wait",
    )
)
# What of an address space only another program has otherwise.
_FIXED = (
    "start_code",
    "end_code",
    "start_data",
    "end_data",
    "start_brk",
    "start_stack",
    "arg_start",
    "arg_end",
    "env_start",
    "env_end",
    "vdso",
    "auxv",
    "executable",
    "lock_future",
    "core_dump_filter",
)


class Standing:
    """A process of an image that is still there. `tasks` are its threads, in the image's order."""

    def __init__(self, then: Process, now: CollectedProcess, maps: IdMaps | None) -> None:
        self.then = then
        self.now = now
        self.record = ids.inside(now.record([], set()), maps)
        tasks = {task.namespace_pid: task for task in now.held.tasks}
        wanted = {thread.tid for thread in then.threads}
        self.lacking = sorted(wanted - tasks.keys())
        self.tasks: list[tuple[Thread, HeldTask]] = [
            (thread, tasks[thread.tid]) for thread in then.threads if thread.tid in tasks
        ]
        self.extra_tasks = [task for tid, task in tasks.items() if tid not in wanted]
        self._misplaced: set[int] = set()

    @property
    def held(self) -> HeldProcess:
        """Return the held process."""
        return self.now.held

    @property
    def queued_then(self) -> list[bytes]:
        """Return the signals that waited for it and its threads."""
        of_threads = (info for one in self.then.threads for info in one.pending)
        return [*self.then.pending, *of_threads]

    def find_files(self, pairs: Pairs) -> None:
        """Find out which descriptors still are the files that they were."""
        now = {descriptor.number: descriptor.file for descriptor in self.now.fields["descriptors"]}
        for one in self.then.descriptors:
            if not pairs.match("file", one.file, now.get(one.number, 0)):
                self._misplaced.add(one.number)

    def lacking_descriptors(self, match: "Match") -> list[Descriptor]:
        """Return the descriptors that are to be made anew."""
        return [
            one
            for one in self.then.descriptors
            if one.number in self._misplaced or one.file in match.remade
        ]

    def extra_descriptors(self, match: "Match") -> list[int]:
        """Return the descriptors that are to be closed: the image has others there, or none."""
        lacking = {one.number for one in self.lacking_descriptors(match)}
        kept = {descriptor.number for descriptor in self.then.descriptors} - lacking
        return [one.number for one in self.now.fields["descriptors"] if one.number not in kept]


class Match:
    """An image and a held container, thing by thing."""

    def __init__(
        self, plan: Plan, looked: Looked, obstacles: Obstacles, maps: IdMaps | None
    ) -> None:
        """Compare; what stands in the way of a rollback is noted.

        `maps` are those of the container's own user namespace.
        """
        self.pairs = Pairs()
        self._maps = maps
        self.files: list[tuple[FileRecord, FileRecord]] = []
        self.watched: set[int] = set()  # ids of epolls that are set back already
        self.remade: dict[int, FileRecord] = {}  # those that are to be made anew
        now = {one.held.namespace_pid: one for one in looked.processes}
        self.processes: list[Standing] = []
        self.lost: list[Process] = []  # those that are to be made again, parents first
        why: dict[int, str] = {}
        unmatched = 0
        for record in _parents_first(plan.processes):
            try:
                if record.pid not in now:
                    raise lost_since("it has ended since")
                if record.parent in why:
                    raise lost_since(f"its parent, process {record.parent}, has ended since")
                one = Standing(record, now[record.pid], maps)
                self._match_process(one)
            except UnsupportedResource as error:
                why[record.pid] = reason_of(error)
                with obstacles.at(_name(record)):
                    unmatched += 1
                    refuse_rebirth(record, plan, why[record.pid])
                    unmatched -= 1
                self.lost.append(record)
            else:
                self.processes.append(one)
        pids = {one.then.pid for one in self.processes}
        zombies = {record.pid for record in plan.zombies}
        self.extra_processes: list[HeldProcess] = [
            *looked.others,
            *(one.held for pid, one in now.items() if pid not in pids),
        ]
        self.extra_zombies: list[held.Zombie] = [
            one for one in looked.tree.zombies if one.namespace_pid not in zombies
        ]
        # What files a process has is known only if nothing else about it stood in the way.
        self._files_are_known = unmatched == 0
        file_records = [ids.inside(record, maps) for record in looked.file_records]
        self._match_files(plan, file_records, obstacles)
        with obstacles.at("the container"):
            _match_container(plan, looked, self.pairs, maps)
            self.extra_ipc = self._match_ipc(plan, looked)
        there = {one.namespace_pid for one in looked.tree.zombies}
        self.lost_zombies = [one for one in plan.zombies if one.pid not in there]
        for zombie in self.lost_zombies:
            with obstacles.at(f"process {zombie.pid} ({os.fsdecode(zombie.name)})"):
                refuse_ending_again(zombie, plan)

    @property
    def has_all_files(self) -> bool:
        """Tell whether all descriptors of the image are still there, and may stay."""
        return not (self.lost or self.lost_zombies) and not any(
            one.lacking_descriptors(self) for one in self.processes
        )

    def file_now(self, number: int) -> int:
        """Return the id that a file of the image has now; one that no file has, if it is remade."""
        return -number if number in self.remade else self.pairs.now("file", number)

    def _match_process(self, one: Standing) -> None:
        then = one.then
        if then.shares.memory:
            raise lost_since("it shares its memory with another process (clone(2))")
        if then.pid_namespace:
            raise lost_since("it is in a pid namespace that a program has made")
        if len(then.tables) > 1:
            raise lost_since("a thread of it has descriptors of its own (unshare(2))")
        if one.lacking:
            raise lost_since(f"its thread {one.lacking[0]} has ended since")
        record = one.record
        if found := differences(then, record, self.pairs, _SET_BACK["process"]):
            raise lost_since(f"it has changed since: {', '.join(sorted(found))}")
        if _leases(then) != _leases(record):
            raise lost_since("it has changed since: leases")
        if any(map(signals.is_in_the_way, (*then.pending, *record.pending))):
            raise lost_since("it has a SIGTRAP or a fault queued")
        memory = record.memory
        for name in _FIXED:
            if getattr(then.memory, name) != getattr(memory, name):
                raise lost_since(f"it has become another program since ({name})")
        threads_now = {thread.tid: thread for thread in record.threads}
        for thread, task in one.tasks:
            now = threads_now[task.namespace_pid]
            if found := differences(thread, now, self.pairs, _SET_BACK_OF_THREADS):
                raise lost_since(
                    f"thread {thread.tid} has changed since: {', '.join(sorted(found))}"
                )
            if any(map(signals.is_in_the_way, (*thread.pending, *now.pending))):
                raise lost_since(
                    f"thread {thread.tid} has a SIGTRAP, or what looks like a fault, queued"
                )
        one.find_files(self.pairs)
        timers = {timer.timer: _unarmed(timer) for timer in one.now.fields["posix_timers"]}
        for timer in then.posix_timers:
            if timers.get(timer.timer) != _unarmed(timer):
                raise lost_since(f"its POSIX timer {timer.timer} was deleted since")

    def _match_ipc(self, plan: Plan, looked: Looked) -> list[IpcObject]:
        """Match what processes share by its ids or names; returns what was made since."""
        then = {_ipc_key(one): one for one in (*plan.posix_queues, *plan.sysv)}
        found = (ids.inside(one, self._maps) for one in looked.world.ipc.records(0))
        now = {_ipc_key(one): one for one in found}
        for key, one in then.items():
            if key not in now or self._ipc_differs(one, now[key]):
                raise lost_since(f"its {key[0]} {key[1]!r} has changed since, or is gone")
        return [one for key, one in now.items() if key not in then]

    def _ipc_differs(self, then: IpcObject, now: IpcObject) -> bool:
        if isinstance(then, Segment) and isinstance(now, Segment):
            if not self.pairs.match("object", then.contents, now.contents):
                return True
            now = msgspec.structs.replace(now, contents=then.contents)
        return bool(differences(then, now, self.pairs, frozenset(("id",))))

    def _match_files(self, plan: Plan, now: Sequence[FileRecord], obstacles: Obstacles) -> None:
        records = {record.id: record for record in now}
        called = _called(plan)
        lost: dict[int, str] = {}
        tables = [(one.then.descriptors, one.then.file_signals) for one in self.processes]
        self.signals_then = _signals(tables)
        fields = [one.now.fields for one in self.processes]
        signals_now = _signals([(one["descriptors"], one["file_signals"]) for one in fields])
        for then in plan.files.values():
            found = records.get(self.pairs.now("file", then.id))
            if found is None:
                if self._files_are_known:
                    lost[then.id] = f"nobody has it open any more ({_kind(then)})"
                continue
            but = _SET_BACK.get(_kind(then), frozenset()) | then.immaterial(found)
            names = differences(then, found, self.pairs, but)
            if names:
                lost[then.id] = (
                    f"the {_kind(then)}{_known_as(then)} is another one, or has changed since:"
                    f" {', '.join(sorted(names))}"
                )
                continue
            if _owner(then.id, self.signals_then) != _owner(found.id, signals_now):
                lost[then.id] = f"who gets signals from the {_kind(then)} has changed (F_SETOWN)"
                continue
            self.files.append((then, found))
        for number in made_together(lost, plan):
            record = plan.files[number]
            with obstacles.at(called.get(number, f"file {number} of the image")):
                if not record.may_be_replaced:
                    raise lost_since(
                        lost.get(number, f"what the {_kind(record)} is tied to has changed")
                    )
                if isinstance(record, RegularFile) and record.covered:
                    raise lost_since(f"{lost[number]}; and a mount hides the file")
            self.remade[number] = record
        self.files = [pair for pair in self.files if pair[0].id not in self.remade]


def _signals(
    tables: Iterable[tuple[Sequence[Descriptor], Sequence[FileSignals]]],
) -> dict[int, FileSignals]:
    """Return who gets signals from files, by their ids."""
    found: dict[int, FileSignals] = {}
    for descriptors, some in tables:
        files = {one.number: one.file for one in descriptors}
        found |= {files[one.descriptor]: one for one in some}
    return found


def _owner(file: int, signals: Mapping[int, FileSignals]) -> FileSignals | None:
    """Return who gets signals from a file, whatever descriptor tells that."""
    one = signals.get(file)
    return msgspec.structs.replace(one, descriptor=0) if one else None


def _leases(process: Process) -> list[Lock]:
    return [lock for lock in process.locks if lock.how == "lease"]


def _parents_first(processes: Sequence[Process]) -> list[Process]:
    by_pid = {one.pid: one for one in processes}

    def depth(one: Process) -> int:
        above, count = by_pid.get(one.parent), 0
        while above and count < len(by_pid):
            above, count = by_pid.get(above.parent), count + 1
        return count

    return sorted(processes, key=depth)


def _match_container(plan: Plan, looked: Looked, pairs: Pairs, maps: IdMaps | None) -> None:
    world = looked.world
    if plan.namespaces:
        raise lost_since("programs have made namespaces in it")
    if world.has_write_leases:
        raise lost_since(
            "a program has a lease for writing on a file, which to look at would break it"
        )
    _match_all("settings (sysctl)", _some(plan.sysctls), _some(looked.sysctls), pairs)
    networks = looked.networks
    for before, after in (
        (_lasting(plan.network), [ids.inside(one, maps) for one in _lasting(networks.network)]),
        (_lasting(plan.rules), _lasting(networks.rules)),
        ([*map(legacy.lasting, plan.tables)], [*map(legacy.lasting, networks.tables)]),
    ):
        _match_all("network or packet filters", before, after, pairs)
    hierarchies = [ids.inside(one, maps) for one in looked.cgroups]
    _match_all("cgroups that programs made", plan.cgroups, hierarchies, pairs)
    mounts = looked.mounts.record(lambda _: 0, {}) if looked.mounts else None
    now = [mount_tree.without_files(one) for one in _some(mounts)]
    _match_all("mounts", [mount_tree.without_files(one) for one in _some(plan.mounts)], now, pairs)


def _match_all(what: str, then: Sequence[object], now: Sequence[object], pairs: Pairs) -> None:
    if len(then) != len(now) or any(
        differences(one, other, pairs) for one, other in zip(then, now, strict=True)
    ):
        raise lost_since(f"its {what} have changed since")


def _ipc_key(one: IpcObject) -> tuple[str, object]:
    return tag_of(one), one.name if isinstance(one, PosixQueue) else one.id


def _some(one: T | None) -> list[T]:
    return [one] if one is not None else []


def _lasting(one: Network | Nftables | None) -> list[Any]:
    if isinstance(one, Network):
        return [network.lasting(one)]
    return [nftables.lasting(one)] if one else []


def _unarmed(timer: Any) -> Any:
    return msgspec.structs.replace(timer, left_ns=0, interval_ns=0, at_ns=0, rung=0)


def _name(process: Process) -> str:
    """Return how messages call a process of the image; the same as one that is held."""
    leader = next((one for one in process.threads if one.tid == process.pid), None)
    return f"process {process.pid}" + (f" ({os.fsdecode(leader.name)})" if leader else "")


def _called(plan: Plan) -> dict[int, str]:
    """Return how messages call each file that a process has: by the first one's descriptor."""
    called: dict[int, str] = {}
    for process in plan.processes:
        for one in process.descriptors:
            called.setdefault(one.file, f"descriptor {one.number} of {_name(process)}")
    return called


def _kind(record: FileRecord) -> str:
    return str(record.__struct_config__.tag)


def _known_as(record: FileRecord) -> str:
    path = getattr(record, "path", b"")
    return f" {path.decode(errors='replace')}" if path else ""
