"""LIMITS and GO: only the process's own rights, then its own registers."""

import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

from woodfrog.engine.admission import Bounds
from woodfrog.engine.body import Body
from woodfrog.errors import while_
from woodfrog.kernel import ptrace
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.procfs.maps import find_vdso
from woodfrog.kernel.procfs.status import read_stat
from woodfrog.kernel.ptrace import Event
from woodfrog.remote.program import Program
from woodfrog.remote.side_by_side import SideBySide
from woodfrog.remote.socket_waits import SocketWait
from woodfrog.remote.stub import StubError
from woodfrog.remote.vdso import Vdso
from woodfrog.resources import (
    credentials,
    limits,
    memory_fields,
    memory_making,
    process,
    scheduling,
    seccomp_filters,
    signals,
    thread_controls,
    threads,
    timers,
)
from woodfrog.resources.signals import SIGTRAP

_PATIENCE_S = 10.0
_ALL_SIGNALS = (1 << 64) - 1


def restore_limits(
    bodies: Collection[Body],
    bounds: Bounds,
    default: scheduling.Scheduling,
    missing: list[str],
    *,
    descriptors: int,
) -> None:
    """LIMITS for all processes; from here on they have only their own rights.

    `missing` gets what they are without from now on. `descriptors` is how many of those the
    waiting container may have, if its config doesn't say.
    """
    ceilings = {"RLIMIT_NOFILE": (descriptors, descriptors), **bounds.rlimits}
    side = SideBySide()
    alike: dict[int, _Rights] = {}
    for body in bodies:
        present = limits.in_force(body.stub.pid)
        with while_(f"restoring the limits and credentials of {body.name}"):
            _restore_limits(side, alike, body, bounds, ceilings, default, present, missing)
    side.finish()


class _Rights(NamedTuple):
    """A program that gives a thread what it is to have, and of what it is made."""

    of: tuple[object, ...]
    program: Program
    lacks: Callable[[], Iterable[str]]


def _restore_standing(body: Body, bounds: Bounds) -> None:
    """Set what the kernel prefers a process by, or ends it first for."""
    record = body.record
    # Lower than the config's would be wider.
    score = max(record.oom_score_adj, bounds.oom_score_adj or record.oom_score_adj)
    if score != process.read_oom_score_adj(f"/proc/{body.stub.pid}"):
        set_oom_score_adj(body.stub.pid, score)
    if record.session_nice and record.session == record.pid:
        scheduling.set_autogroup_nice(body.stub.pid, record.session_nice)


def _restore_limits(
    side: SideBySide,
    alike: dict[int, _Rights],
    body: Body,
    bounds: Bounds,
    ceilings: Mapping[str, tuple[int, int]],
    default: scheduling.Scheduling,
    present: list[tuple[int, int]],
    missing: list[str],
) -> None:
    record = body.record
    _restore_standing(body, bounds)
    bounding = credentials.bounding_set(body.stub.pid)
    inherited = len(body.common_filters)
    for task, thread in zip(body.tasks, record.threads, strict=True):
        scheduling.restore(task.pid, thread.scheduling, default)
        filters = body.filters(thread)
        ids = body.ids_to_take(thread)
        of = (
            bounding,
            ids,
            thread.credentials,
            thread.pdeath_signal,
            thread.personality,
            thread.controls,
        )
        # Threads are mostly alike, and those that ran at the same place have ended theirs.
        is_plain = task is not body.stub and (
            thread.seccomp != seccomp_filters.STRICT and len(filters) <= inherited
        )
        rights = alike.get(side.turn) if is_plain else None
        if rights and rights.of == of:
            rights.program.move(*side.part(task))
        else:
            program = side.program(task)
            if task is body.stub:
                memory_fields.lock_future(program, record.memory)
                restore_most_limits(program, body, present, ceilings)
            seccomp_filters.restore(program, thread.seccomp, filters, inherited=inherited)
            credentials.restore(
                program,
                thread.credentials,
                present=bounding,
                no_new_privs=bounds.no_new_privs or thread.credentials.no_new_privs,
                ids=ids,
            )
            threads.restore_pdeath_signal(program, thread)
            if task is not body.stub:  # which maps more
                threads.set_personality(program, thread)
            lacks = thread_controls.restore(program, thread.controls) if thread.controls else list
            rights = _Rights(of, program, lacks)
            if is_plain:
                alike[side.turn] = rights

        def note(tid: int = thread.tid, lacks: Callable[[], Iterable[str]] = rights.lacks) -> None:
            missing.extend(f"thread {tid} comes back without its {what}" for what in lacks())

        doing = f"restoring the limits and credentials of thread {thread.tid} of {body.name}"
        side.run(task, rights.program, doing, note)
    missing += (f"{body.name}: {what}" for what in memory_making.lacking(record.memory.mappings))


def restore_most_limits(
    program: Program,
    body: Body,
    present: list[tuple[int, int]],
    ceilings: Mapping[str, tuple[int, int]],
) -> None:
    """Set all limits but that of the address space: io_urings may yet take all of that."""
    wanted = limits.bounded(body.record.limits, present, ceilings)
    body.space_limit = wanted.pop(limits.SPACE, None)
    limits.restore(program, wanted)


def restore_last(body: Body) -> None:
    """Set what others need not to be set yet, and what changes of credentials reset."""
    with while_(f"restoring the limits and credentials of {body.name}"):
        program = body.stub.program()
        if body.space_limit:
            limits.restore(program, {limits.SPACE: body.space_limit})
        memory_making.seal(program, body.record.memory.mappings)
        process.restore_last(program, body.record)
        body.stub.run(program)


def set_oom_score_adj(pid: int, value: int) -> None:
    """Set /proc/PID/oom_score_adj, as far as we may."""
    try:
        with open(f"/proc/{pid}/oom_score_adj", "w", encoding="ascii") as file:
            file.write(str(value))
    except PermissionError:
        # Lower than the new container's needs CAP_SYS_RESOURCE, which we lack: it keeps its own.
        pass


class Release:
    """GO for one process: arm, put the registers in place, and then let go."""

    def __init__(self, body: Body, vdso: Vdso) -> None:
        self.body = body
        self._vdso = vdso

    def arm(self, side: SideBySide) -> None:
        """Start timers, register rseq areas, and have interrupted calls wait again."""
        body = self.body
        for task, thread in zip(body.tasks, body.record.threads, strict=True):
            program = side.program(task)
            threads.register_rseq(program, thread)
            if task is body.stub:
                timers.arm(program, body.record.interval_timers, body.posix_timers)
            side.run(task, program, f"starting the timers of thread {thread.tid} of {body.name}")

    def expand_state(self) -> None:
        """Make room for the registers of threads that use large ones."""
        for task, thread in zip(self.body.tasks, self.body.record.threads, strict=True):
            if threads.uses_tiles(thread):
                task.expand_state()

    def leave_stub(self) -> None:
        """Give SIGTRAP its own action, and unmap the stub's memory, for all that have them."""
        body, shares = self.body, self.body.record.shares
        instruction = self._instruction()
        if not shares.actions:
            # The breakpoint that ends programs is over; now its signal may have its own action.
            trap = next((a for a in body.record.actions if a.signal == SIGTRAP), None)
            action = self._put(signals.packed(trap))
            body.stub.call_at(instruction, SYS.RT_SIGACTION, SIGTRAP, action, 0, 8)
        self._queue_the_rest(instruction)
        if not shares.memory:
            body.stub.call_at(instruction, SYS.MUNMAP, body.stub.base, body.stub.size + 4096)

    def _queue_the_rest(self, instruction: int) -> None:
        """Queue the signals that were in the way of programs."""
        record, rung = self.body.record, self.body.posix_timers
        for task, thread in zip(self.body.tasks, record.threads, strict=True):
            whom = record.ids[-1], thread.ids[-1]
            own: list[tuple[bytes, int, tuple[int, ...]]]
            own = [(info, SYS.RT_TGSIGQUEUEINFO, whom) for info in thread.pending]
            if task is self.body.stub:
                own += [(info, SYS.RT_SIGQUEUEINFO, whom[1:]) for info in record.pending]
            for info, number, whose in own:
                if signals.is_in_the_way(info) and timers.without_rung([info], [], rung):
                    ptrace.set_signal_mask(task.pid, _ALL_SIGNALS)
                    signal = int.from_bytes(info[:4], "little")
                    task.call_at(instruction, number, *whose, signal, self._put(info))

    def _instruction(self) -> int:
        start, _ = find_vdso(self.body.stub.pid)
        return start + self._vdso.syscall

    def _put(self, data: bytes, at: int = 0) -> int:
        address = self.body.stub.base + 4096 + at
        os.pwrite(self.body.stub.memory, data, address)
        return address

    def settle(self) -> None:
        """Bring every task to a stop from which it goes on with its own registers, and set them."""
        body = self.body
        size = threads.state_bytes(body.stub.pid)
        for task in body.tasks:
            # Such a stop is where the kernel also restarts interrupted calls by itself.
            ptrace.interrupt(task.pid)
            ptrace.resume(task.pid)
        for task, thread in zip(body.tasks, body.record.threads, strict=True):
            status = ptrace.wait(task.pid)
            while status.event is not Event.STOPPED:
                if status.event in (Event.EXITED, Event.KILLED):
                    raise StubError(f"process {task.pid} ended before it was let go: {status}")
                ptrace.resume(task.pid)
                status = ptrace.wait(task.pid)
            with while_(f"restoring the registers of thread {thread.tid} of {body.name}"):
                threads.set_state(task.pid, thread, size)
            ptrace.set_registers(task.pid, threads.unpacked_registers(thread))
            ptrace.set_signal_mask(task.pid, thread.mask)

    def waits_at_sockets(self) -> list[SocketWait]:
        """Return the waits whose sockets need the time left while their calls begin."""
        pid = self.body.stub.pid
        return [
            SocketWait(pid, task.pid, wait.call, wait.descriptor, wait.left_us)
            for task, thread in zip(self.body.tasks, self.body.record.threads, strict=True)
            if (wait := thread.socket_wait) is not None
        ]

    def let_go(self) -> list[int]:
        """Detach from every task; it runs. Return those that others, who run, have ended."""
        ended = []
        for task in self.body.tasks:
            try:
                ptrace.detach(task.pid)
            except ProcessLookupError:
                ended.append(task.pid)
        return ended


def let_all_go(releases: Iterable[Release]) -> None:
    """Let all processes run."""
    ended = [pid for release in releases for pid in release.let_go()]
    # Their parents hear of their end when their tracer has. What is our child waits for us anyway.
    left = [pid for pid in ended if read_stat(f"/proc/{pid}").parent != os.getpid()]
    deadline = time.monotonic() + _PATIENCE_S
    while left and time.monotonic() < deadline:
        left = [pid for pid in left if not _has_told_its_end(pid)]
        if left:
            time.sleep(0.0002)


def _has_told_its_end(pid: int) -> bool:
    try:
        status = ptrace.poll(pid)
    except ChildProcessError:
        return True
    return status is not None and status.event in (Event.EXITED, Event.KILLED)
