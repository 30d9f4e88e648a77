"""What is held of a container: tasks, processes, zombies."""

import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cached_property

from msgspec.structs import replace

from woodfrog.kernel import ptrace
from woodfrog.kernel.abi.x86_64 import PAGE, SYS
from woodfrog.kernel.pagemap import Walk
from woodfrog.kernel.procfs.maps import find_vdso
from woodfrog.kernel.procfs.status import Stat, Status, read_stat, read_status
from woodfrog.kernel.ptrace import Registers
from woodfrog.kernel.waiting import Waiting
from woodfrog.remote import cut_calls, stopped
from woodfrog.remote.address import TASK_SIZE
from woodfrog.remote.lender import has_told, way_in
from woodfrog.remote.program import LOOP
from woodfrog.remote.registers import (
    issue_again,
    made_again,
    out_of_critical_section,
    sees_the_hold,
)
from woodfrog.remote.scratch import Scratch
from woodfrog.remote.seccomp import Filters
from woodfrog.remote.socket_waits import Resumed, SocketWait, socket_wait
from woodfrog.remote.timed_calls import (
    TimedCall,
    is_restartable,
    place_for_time,
    restarted_call,
    timed_call,
    with_time_left,
    written,
)
from woodfrog.remote.tracee import Tracee
from woodfrog.remote.vdso import SYSCALL_INSTRUCTION, own_vdso


class HeldTask:
    """One held thread.

    `path` is its directory in /proc; `status` what stood there once it was held; `rseq` its
    registration; `stopped_by` the signal of its group stop, or 0; `waiting` what it waited for
    before; `socket_wait` a wait at a socket that has a timeout;
    `resumed` what is known of it from an earlier hold; `strangers` its children in other pid
    namespaces than the container's and those nested in it, by their ids on the host.
    """

    def __init__(
        self, process: "HeldProcess", pid: int, path: str, waiting: Waiting | None
    ) -> None:
        self.process = process
        self.pid = pid
        self.path = path
        self.waiting = waiting
        self.resumed: Resumed | None = None
        self.strangers: list[int] = []
        self.stopped_by = 0
        self.has_own_directory = False
        self.has_own_descriptors = False
        self.tracee = Tracee(pid, ptrace.Registers())
        self.status = Status(b"")
        self.rseq: ptrace.Rseq
        self.socket_wait: SocketWait | None = None
        self._stopped_at = self.tracee.registers
        self._cut_short: Registers | None = None

    def mend(self) -> None:
        """Undo what the stop did to the task's call, before anything else takes time.

        Should we die in the next moment, the call is made again; `look` finds a better way.
        """
        self._stopped_at = ptrace.registers(self.pid)
        by_block = is_restartable(self._stopped_at)
        if sees_the_hold(self._stopped_at) or (by_block and self._is_filtered()):
            again = issue_again(self._stopped_at)
            if again.rax == SYS.RESTART_SYSCALL:
                again.rax = restarted_call(self.waiting, self._stopped_at)
            ptrace.set_registers(self.pid, again)
            return
        self._cut_short = None
        if cut_calls.may_be(self._stopped_at) and not self.stopped_by:
            self._cut_short = self._finishing()
        if self._cut_short is not None:
            ptrace.set_registers(self.pid, self._cut_short)

    def is_in_vdso(self) -> bool:
        """Tell whether the task, which has just stopped, was in the midst of the vDSO's code.

        And may run on there: what waits for SIGCONT must not come by that.
        """
        start, _ = self.process.vdso
        if not start <= self._stopped_at.rip < start + own_vdso().padding:
            return False
        if not self.stopped_by:
            return True
        status = read_status(self.path)
        waiting = int(status["SigPnd"], 16) | int(status["ShdPnd"], 16)
        return not waiting & ~int(status["SigBlk"], 16)

    def has_left_leftover(self) -> bool:
        """Tell whether it is in no code of a checkpoint that was killed, on its way back.

        One that is in a group stop is put where it was: it must not run on, or what waits for
        SIGCONT would come. But it has all blocked until it is on that way, and so ends a program
        first.
        """
        way = self._leftover_way()
        return not way or (bool(self.stopped_by) and self._leave(way))

    def _leftover_way(self) -> int:
        """Return where the way back is if the task is in a leftover, or 0."""
        rip = self._stopped_at.rip
        vdso, end = self.process.vdso
        padding = vdso + own_vdso().padding
        if vdso and padding <= rip < end:
            return 0 if cut_calls.is_inside(rip, end) else padding + len(SYSCALL_INSTRUCTION)
        start = rip & -PAGE
        if start >= TASK_SIZE:
            return 0
        self.process.open_memory()
        try:
            is_ours = os.pread(self.process.memory, len(LOOP), start) == LOOP
        except OSError:
            return 0  # nothing is mapped there
        return way_in(start, rip) if is_ours else 0

    def _leave(self, way: int) -> bool:
        """Have the task stand where it was before; returns whether it does."""
        self.process.open_memory()
        now, memory = self._stopped_at, self.process.memory
        start, end = self.process.vdso
        is_single_call = start <= way < end
        try:
            if now.rip < way and not is_single_call and not has_told(now, memory):
                return False
            found = stopped.where_it_was(memory, way, now)
        except (OSError, OverflowError):
            return False
        if found is None:
            return False
        registers, mask = found
        if mask is not None:
            ptrace.set_signal_mask(self.pid, mask)
        ptrace.set_registers(self.pid, registers)
        self._stopped_at = registers
        return True

    def _is_filtered(self) -> bool:
        with open(f"{self.path}/status", "rb") as file:
            return b"\nSeccomp:\t0\n" not in file.read()

    def look(self, known: dict[tuple[bytes, ...], Filters]) -> None:
        """Read the registers and /proc of the task, which has just stopped.

        `known` keeps filters, which many tasks share.
        """
        self.status = read_status(self.path)
        if self.waiting is not None and self.waiting.since:
            # One switch for the stop itself; with more, it is another wait than the one looked at.
            switches = int(self.status["voluntary_ctxt_switches"])
            if switches > self.waiting.switches + 1:
                self.waiting.since = 0
        self.rseq = ptrace.rseq(self.pid)
        registers = out_of_critical_section(self.rseq, self.process.memory, self._stopped_at)
        if self.seccomp:
            ptrace.set_options(self.pid, self.options)
            chain = _filters(self.pid) if self.seccomp == _SECCOMP_FILTER else ()
            if chain not in known:
                known[chain] = Filters(chain, strict=self.seccomp != _SECCOMP_FILTER)
            self.tracee.filters = known[chain]
        self.tracee.is_stopped = bool(self.stopped_by)
        self.tracee.registers = self._going_on(registers)
        # Now: should we die, the kernel goes on with these.
        self.tracee.go_back()

    def _going_on(self, registers: Registers) -> Registers:
        """Return registers with which the task goes on as if it had not been held.

        A call that would fail because of us is made again, and so is one that the kernel would go
        on with by its restart block: nobody can read that, nor make one in a new process, and a
        filter may forbid restart_syscall(2). It is made with the time that was left.
        """
        if self._cut_short is not None:
            return registers if self._has_a_signal() else self._cut_short
        interrupted = is_restartable(registers) or sees_the_hold(registers)
        if not interrupted or self._has_a_signal():
            return registers
        self.socket_wait = socket_wait(
            self.process.pid, self.pid, registers, self.waiting, self.resumed
        )
        call = self._timed_call(registers)
        if call is None:
            return made_again(registers)
        place = place_for_time(registers)
        try:
            for address, data in written(registers, call, place, self._read):
                os.pwrite(self.process.memory, data, address)
        except OSError:
            call = replace(call, left_ns=0)
        return with_time_left(registers, call, place)

    def _finishing(self) -> Registers | None:
        """Return registers with which a call goes on that the stop has cut short, if it has."""
        self.process.open_memory()
        process, vdso = self.process, self.process.vdso
        call = cut_calls.CutCall(process.pid, self.path, process.memory, vdso, self._stopped_at)
        try:
            return call.goes_on(own_vdso())
        except (OSError, OverflowError, struct.error):
            return None  # it may have been given any address

    def _read(self, address: int, length: int) -> bytes:
        return os.pread(self.process.memory, length, address)

    def _timed_call(self, registers: Registers) -> TimedCall | None:
        try:
            return timed_call(registers, self.waiting, self._read)
        except (OSError, struct.error):
            return None  # an address that the call itself would refuse

    def _has_a_signal(self) -> bool:
        """Tell whether a signal waits that the task will handle: then EINTR is its own."""
        pending = int(self.status["SigPnd"], 16) | int(self.status["ShdPnd"], 16)
        return bool(pending & ~int(self.status["SigBlk"], 16) & int(self.status["SigCgt"], 16))

    @cached_property
    def stat(self) -> Stat:
        """What its /proc/PID/stat says."""
        return read_stat(self.path)

    @cached_property
    def seccomp(self) -> int:
        """SECCOMP_MODE_*: 0 disabled, 1 strict, 2 filter."""
        return int(self.status.get("Seccomp", "0"))

    @property
    def options(self) -> int:
        """The PTRACE_O_* with which the task is held."""
        return ptrace.O_TRACESYSGOOD | (ptrace.O_SUSPEND_SECCOMP if self.seccomp else 0)

    @cached_property
    def ids(self) -> list[int]:
        """The task's ids in the container's pid namespace and those below that it is in."""
        return self.process.ids_of(self.status["NSpid"])

    @property
    def namespace_pid(self) -> int:
        """The task's id in the container's pid namespace."""
        return self.ids[0]


_SECCOMP_FILTER = 2


def _filters(pid: int) -> tuple[bytes, ...]:
    chain: list[bytes] = []
    while (one := ptrace.seccomp_filter(pid, len(chain))) is not None:
        chain.append(one)
    return tuple(chain)


class HeldProcess:
    """A process all of whose tasks are held; `tasks[0]` is its first living one.

    `group` is its id as we see it; `pid` is that of a living task, by which all of the process can
    be reached, the same unless its first thread has ended: that has no memory and files any more.
    `depth` tells how many pid namespaces that we see are above the container's.
    """

    def __init__(self, group: int, depth: int) -> None:
        self.group = group
        self.depth = depth
        self.tasks: list[HeldTask] = []
        self.reach_by(living_task(group))
        self.has_kernel_threads = False
        # Memory of ours in it, while there is some.
        self.scratch: Scratch | None = None
        # Whose part it has since clone(2), by KCMP_*, if not its own.
        self.shares: dict[int, HeldProcess] = {}
        self.memory = -1  # until it has stopped
        # What was seen of its pages since, by the start and end of mappings.
        self.walked: dict[tuple[int, int], Walk] = {}

    def reach_by(self, pid: int) -> None:
        """Reach the process by this living task of it."""
        self.pid = pid
        # Leads to the process by any of its tasks, though only those of first ones are listed.
        self.path = f"/proc/{pid}"

    @property
    def is_headless(self) -> bool:
        """Whether the first thread has ended."""
        return self.pid != self.group

    @cached_property
    def vdso(self) -> tuple[int, int]:
        """Where the vDSO's code is; zeros if there is none."""
        return find_vdso(self.pid)

    def open_memory(self) -> None:
        """Open the memory, now that it has stopped: an exec(2) on its way has taken another."""
        if self.memory < 0:
            self.memory = os.open(f"{self.path}/mem", os.O_RDWR | os.O_CLOEXEC)

    def forget_memory(self) -> None:
        """Close the memory: the process may have another one when it next stops."""
        self.__dict__.pop("vdso", None)
        if self.memory >= 0:
            os.close(self.memory)
        self.memory = -1

    def give_scratch_back(self) -> None:
        """Have it unmap what it lends us, if it does."""
        if self.scratch:
            self.scratch.unmap()
            self.forget_scratch()

    def forget_scratch(self) -> None:
        """Leave what it lends us alone from now on: somebody else unmaps that."""
        if self.scratch:
            self.scratch.forget()
            self.scratch = None

    @property
    def leader(self) -> HeldTask:
        return self.tasks[0]

    def ids_of(self, listed: str) -> list[int]:
        """Return the ids in a line like NSpid of /proc/PID/status, from the container's on."""
        return ids_below(listed, self.depth)

    @cached_property
    def ids(self) -> list[int]:
        """Its ids in the container's pid namespace and those below that it is in."""
        return self.ids_of(self.leader.status["NStgid"])

    @property
    def namespace_pid(self) -> int:
        return self.ids[0]

    @property
    def own_bytes(self) -> int:
        """About how much memory it has for itself."""
        status = self.leader.status
        return sum(int(status.get(name, "0 kB").split()[0]) << 10 for name in ("RssAnon", "VmSwap"))

    @property
    def exit_signal(self) -> int:
        """What its parent gets when it ends (clone(2)); 0: nothing."""
        return read_stat(f"/proc/{self.group}").exit_signal

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"process {self.namespace_pid} ({os.fsdecode(self.leader.status.comm)})"


def living_task(group: int) -> int:
    """Return the first task of a process that has not ended, by our ids."""
    for tid in sorted(map(int, os.listdir(f"/proc/{group}/task")), key=lambda tid: tid != group):
        if read_stat(f"/proc/{group}/task/{tid}").state not in "ZX":
            return tid
    raise ProcessLookupError(f"process {group} has ended")


class Zombie:
    """A process that has ended, and that its parent has not waited for."""

    def __init__(self, pid: int, depth: int) -> None:
        self.pid = pid
        self.depth = depth
        self.stat = read_stat(f"/proc/{pid}")
        self.status = read_status(f"/proc/{pid}")
        if "NSpid" not in self.status:
            raise ProcessLookupError(f"process {pid} has just been waited for")
        self.ids = ids_below(self.status["NSpid"], depth)
        self.namespace_pid = self.ids[0]

    def ids_of(self, listed: str) -> list[int]:
        """See HeldProcess."""
        return ids_below(listed, self.depth)


def ids_below(listed: str, depth: int) -> list[int]:
    """Return the ids of a line like NSpid in a pid namespace so far down, and below."""
    return [int(word) for word in listed.split()[depth:]]


def called(pid: int, depth: int) -> str:
    """Return how messages call a process that need not be held: as the container knows it."""
    try:
        status = read_status(f"/proc/{pid}")
    except (FileNotFoundError, ProcessLookupError):
        return f"process {pid} of the host"
    name = os.fsdecode(status.comm)
    if ids := ids_below(status["NStgid"], depth):
        return f"process {ids[0]} ({name})"
    return f"process {pid} ({name}) of the host"


class Held:
    """All processes of a container, held."""

    def __init__(self) -> None:
        self.processes: list[HeldProcess] = []
        self.zombies: list[Zombie] = []
        # When the first task was told to stop, by the monotonic clock.
        self.began = 0.0
        # What is left to be done when all run again.
        self.afterwards = ExitStack()
        # Afterwards: when the last task was let go, by the monotonic clock, and the waits at
        # sockets that were made again, by their tasks.
        self.let_go = 0.0
        self.resumed: dict[int, Resumed] = {}
        self.has_ended = False

    def tasks(self) -> Iterator[HeldTask]:
        """Go through all held tasks."""
        for process in self.processes:
            yield from process.tasks
