"""A task of a running container, held by ptrace, that lends us its system calls.

Nothing here single-steps the task, blocks its signals or leaves it in a state that needs us: if we
are killed at any point, the task goes on by itself to where it was (design law 1).
"""

import os
import struct
import time

from woodfrog.errors import UnsupportedResource
from woodfrog.kernel import ptrace
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import checked
from woodfrog.kernel.ptrace import NO_CALL, Event, Registers, Status
from woodfrog.remote.program import LOOP, RECORD_BYTES, Program
from woodfrog.remote.registers import way_back
from woodfrog.remote.seccomp import Filters
from woodfrog.remote.vdso import SYSCALL_INSTRUCTION, Vdso

_PROT_READ, _PROT_WRITE, _PROT_EXEC = 1, 2, 4
_MAP_PRIVATE_ANONYMOUS, _MAP_FIXED_NOREPLACE = 0x22, 0x100000

_CODE_BYTES = 4096
# Room for one program of some 150 calls and their answers.
SCRATCH_BYTES = 64 * 1024
# A fifth of a second: so long may we be kept from running before the task goes on by itself.
_SPINS = 5_000_000
# mov ecx, _SPINS; pause; loop: none of these changes a flag.
_SPIN = b"\xb9" + struct.pack("<I", _SPINS) + b"\xf3\x90\xe2\xfc"


class RanOnError(Exception):
    """The task went on by itself, because we were kept from stopping it in time."""


class EndedError(Exception):
    """The task ended while it was held; only SIGKILL and its like do that."""


class Tracee:
    """One held thread. `registers` are those with which it will go on.

    `filters` if it is under seccomp: should we die, the next call would meet them, so it gets
    programs of one call unless they let all calls pass.
    """

    def __init__(self, pid: int, registers: Registers) -> None:
        self.pid = pid
        self.registers = registers
        self.filters: Filters | None = None
        # Tasks that were born of it while it was held, and are held, too.
        self.born: list[int] = []

    def may_run(self, program: Program) -> bool:
        """Tell whether the task would survive a program that it runs to its end without us."""
        filters = self.filters
        return filters is None or all(filters.allow(*call) for call in program.calls())

    def take_signal(self, status: Status, *, interrupted: bool) -> None:
        """Let a signal that arrives meanwhile act on the task as if we weren't here.

        The kernel then builds the handler's frame on the task's own registers, and the task stops
        before the first instruction of the handler.
        """
        ptrace.set_registers(self.pid, self.registers)
        if not interrupted:
            ptrace.interrupt(self.pid)
        ptrace.resume(self.pid, status.signal)
        after = ptrace.wait(self.pid)
        while after.event is Event.SIGNAL:
            ptrace.resume(self.pid, after.signal)
            after = ptrace.wait(self.pid)
        if after.event is not Event.STOPPED:
            raise EndedError(f"task {self.pid} was ended by signal {status.signal}")
        self.registers = ptrace.registers(self.pid)

    def go_back(self) -> None:
        """Set the task's own registers again; it stays held."""
        ptrace.set_registers(self.pid, self.registers)


class Scratch:
    """Memory of ours in a held process: one page of code, and data behind it.

    Mapped and unmapped by calls that the process makes through the padding of its vDSO. Use it in a
    `with`: it is gone afterwards, unless the process has ended.
    """

    def __init__(
        self,
        tracee: Tracee,
        memory: int,
        vdso_start: int,
        vdso: Vdso,
        size: int,
        *,
        at: int = 0,
    ) -> None:
        """`at` is where it shall be, if the kernel shall not choose."""
        self._tracee = tracee
        self._memory = memory
        self._padding = vdso_start + vdso.padding
        self._room = vdso.room
        self._size = _CODE_BYTES + size
        self._at = at
        self.start = 0

    def __enter__(self) -> "Scratch":
        # Never writable and executable at once, nor made executable later: PR_SET_MDWE.
        self.start = self._call(
            SYS.MMAP,
            self._at,
            self._size,
            _PROT_READ | _PROT_EXEC,
            _MAP_PRIVATE_ANONYMOUS | (_MAP_FIXED_NOREPLACE if self._at else 0),
            -1,
            0,
        )
        try:
            self._call(
                SYS.MPROTECT,
                self.data,
                self._size - _CODE_BYTES,
                _PROT_READ | _PROT_WRITE,
            )
            os.pwrite(self._memory, LOOP, self.start)
        except BaseException:
            self.unmap()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.unmap()
        except ProcessLookupError:
            # It has ended or ran on: the failure that we are leaving by says so better.
            if kind is None:
                raise

    def unmap(self) -> None:
        """Unmap the area, through any thread that is held."""
        self._call(SYS.MUNMAP, self.start, self._size)

    @property
    def data(self) -> int:
        return self.start + _CODE_BYTES

    @property
    def range(self) -> tuple[int, int]:
        """The addresses that are ours, not the process's."""
        return self.start, self.start + self._size

    def program(self) -> Program:
        """Return an empty program that fits this area."""
        return Program(self.data + 64, self._size - _CODE_BYTES - 64)

    def run(self, program: Program, tracee: Tracee | None = None) -> None:
        """Run a program in a held thread of the process, and take its results.

        Raises ProgramError if a call of it failed; the thread is held as before in every case.
        """
        tracee = tracee or self._tracee
        os.pwrite(self._memory, program.assemble(), program.base)
        if tracee.may_run(program):
            ended_at = self._run_from(tracee, program.entry)
        else:
            for record in program.records():
                after = program.end_after(record, self._memory)
                ended_at = self._run_from(tracee, record)
                os.pwrite(self._memory, after, record + RECORD_BYTES)
                if ended_at == record:
                    break
        program.finish(self._memory, ended_at)

    def _run_from(self, tracee: Tracee, record: int) -> int:
        """Run the loop from a record; returns the record that it ended at."""
        start = ptrace.registers(tracee.pid)
        start.rip, start.r15, start.r14, start.orig_rax = self.start, record, self.data, NO_CALL
        os.pwrite(self._memory, bytes(8), self.data)
        while True:
            self._arm(tracee)
            ptrace.set_registers(tracee.pid, start)
            ptrace.resume(tracee.pid)
            try:
                stopped = self._await_end(tracee)
                break
            except InterruptedError as interruption:
                start = interruption.args[0]
        tracee.go_back()
        return stopped.r15

    def _arm(self, tracee: Tracee) -> None:
        """Put the thread's way back behind the loop, and its flags into the data."""
        code = way_back(tracee.registers, self.data + 8)
        os.pwrite(self._memory, code, self.start + len(LOOP))
        os.pwrite(self._memory, struct.pack("<Q", tracee.registers.eflags), self.data + 8)

    def _await_end(self, tracee: Tracee) -> Registers:
        """Wait until the loop has ended, stop the thread in it, and return its registers.

        Raises InterruptedError, holding the registers to go on with, after a signal came in.
        """
        high = self.start + len(LOOP)
        tries = 0
        while True:
            status = ptrace.poll(tracee.pid)
            if status is not None:
                self._interrupted(tracee, status, interrupted=False)
            if os.pread(self._memory, 1, self.data) == b"\1":
                break
            tries += 1
            if tries < 100:
                os.sched_yield()
            else:
                time.sleep(0.0001)
        ptrace.interrupt(tracee.pid)
        status = ptrace.wait(tracee.pid)
        if status.event is not Event.STOPPED:
            self._interrupted(tracee, status, interrupted=True)
        found = ptrace.registers(tracee.pid)
        if not self.start <= found.rip <= high:
            tracee.registers = found
            raise RanOnError(f"task {tracee.pid} ran on")
        return found

    def _interrupted(self, tracee: Tracee, status: Status, *, interrupted: bool) -> None:
        if status.event in (Event.EXITED, Event.KILLED):
            raise EndedError(f"task {tracee.pid} ended while it was held")
        ours = ptrace.registers(tracee.pid)
        ran_on = not self.start <= ours.rip <= self.start + len(LOOP)
        if ran_on:
            tracee.registers = ours
        if status.event is Event.EVENT:
            tracee.born.append(ptrace.event_message(tracee.pid))
        elif status.event is Event.SIGNAL:
            tracee.take_signal(status, interrupted=interrupted)
        if ran_on:
            raise RanOnError(f"task {tracee.pid} ran on")
        # Otherwise a group stop: the thread stays where it is, and runs our loop on.
        ours.orig_rax = NO_CALL
        raise InterruptedError(ours)

    def _call(self, number: int, *arguments: int) -> int:
        return call_through_vdso(
            self._tracee, self._memory, self._padding, self._room, number, arguments
        )


def room_needed() -> int:
    """Return how many bytes of padding behind the vDSO a call needs."""
    return len(SYSCALL_INSTRUCTION + _SPIN + way_back(Registers()))


def call_through_vdso(
    tracee: Tracee,
    memory: int,
    padding: int,
    room: int,
    number: int,
    arguments: tuple[int, ...],
) -> int:
    """Make one call through the padding of a process's vDSO; raises OSError.

    `padding` is its address, `room` how many bytes there are.
    """
    code = SYSCALL_INSTRUCTION + _SPIN
    ending = len(code)
    while True:
        code = code[:ending] + way_back(tracee.registers)
        if len(code) > room:
            raise UnsupportedResource(
                f"the vDSO of this kernel has only {room} bytes of padding,"
                f" {len(code)} are needed to enter process {tracee.pid}"
            )
        os.pwrite(memory, code, padding)
        try:
            result = _make_call(tracee, padding, ending, number, arguments)
            break
        except InterruptedError:
            continue
    tracee.go_back()
    os.pwrite(memory, bytes(len(code)), padding)
    return checked(number, result)


def _make_call(
    tracee: Tracee, padding: int, ending: int, number: int, arguments: tuple[int, ...]
) -> int:
    registers = tracee.registers.copy()
    registers.rip, registers.rax, registers.orig_rax = padding, number, NO_CALL
    for name, value in zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), arguments, strict=False):
        setattr(registers, name, value & ((1 << 64) - 1))
    ptrace.set_registers(tracee.pid, registers)
    pause = 20e-6
    while True:
        ptrace.resume(tracee.pid)
        time.sleep(pause)
        status = ptrace.poll(tracee.pid)
        interrupted = status is None
        if status is None:
            ptrace.interrupt(tracee.pid)
            status = ptrace.wait(tracee.pid)
        if status.event in (Event.EXITED, Event.KILLED):
            raise EndedError(f"task {tracee.pid} ended while it was held")
        found = ptrace.registers(tracee.pid)
        ran_on = not padding <= found.rip <= padding + ending
        if ran_on:
            tracee.registers = found
        if status.event is Event.SIGNAL:
            tracee.take_signal(status, interrupted=interrupted)
        if ran_on:
            raise RanOnError(f"task {tracee.pid} ran on")
        if found.rip != padding:
            return found.result
        if status.event is Event.SIGNAL:
            raise InterruptedError
        pause *= 2
