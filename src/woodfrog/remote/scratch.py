"""Memory of ours in a held process, and calls through its vDSO, by which it comes and goes."""

import os
import struct
from contextlib import suppress

from woodfrog.errors import UnsupportedResource
from woodfrog.kernel import ptrace
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import checked
from woodfrog.kernel.ptrace import Event, Registers, Status
from woodfrog.remote.lender import CODE, CODE_BYTES, Lender
from woodfrog.remote.program import Program
from woodfrog.remote.registers import for_our_code, has_exceptional_flags, way_back
from woodfrog.remote.tracee import EndedError, RanOnError, Tracee
from woodfrog.remote.vdso import SYSCALL_INSTRUCTION, Vdso

_PROT_READ, _PROT_WRITE, _PROT_EXEC = 1, 2, 4
_MAP_PRIVATE_ANONYMOUS, _MAP_FIXED_NOREPLACE = 0x22, 0x100000

# Room for one program of some 150 calls and their answers.
SCRATCH_BYTES = 64 * 1024


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
        self._size = CODE_BYTES + size
        self._at = at
        self._running: list[Lender] = []
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
            # At once: should we be killed, it is known by that (engine/tidying.py).
            self.renew()
            self._call(
                SYS.MPROTECT,
                self.data,
                self._size - CODE_BYTES,
                _PROT_READ | _PROT_WRITE,
            )
        except BaseException:
            self.unmap()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self.start:
            return
        try:
            self.unmap()
        except ProcessLookupError:
            # It has ended or ran on: the failure that we are leaving by says so better.
            if kind is None:
                raise

    def forget(self) -> None:
        """Leave the memory alone from now on: the process has ended."""
        self.start = 0

    def renew(self) -> None:
        """Have the code be what it is in a new area."""
        os.pwrite(self._memory, CODE, self.start)

    def unmap(self) -> None:
        """Unmap the area, through any thread that is held."""
        for lender in list(self._running):
            # What has kept it from coming back is no longer of interest.
            with suppress(RanOnError, EndedError, OSError):
                lender.come_back()
        self._call(SYS.MUNMAP, self.start, self._size)

    @property
    def data(self) -> int:
        return self.start + CODE_BYTES

    @property
    def range(self) -> tuple[int, int]:
        """The addresses that are ours, not the process's."""
        return self.start, self.start + self._size

    def part(self) -> tuple[int, int]:
        """Return where a program may stand, and how long."""
        return self.by(self._tracee).part()

    def program(self) -> Program:
        """Return an empty program that fits this area."""
        return Program(*self.part())

    def run(self, program: Program, tracee: Tracee | None = None) -> None:
        """Run a program in a held thread of the process, and take its results.

        Raises ProgramError if a call of it failed; the thread is held as before in every case.
        """
        lender = self.by(tracee or self._tracee)
        lender.start(program)
        lender.finish(program)

    def by(self, tracee: Tracee) -> "Lender":
        """Return a held thread of the process as one that runs programs beside others."""
        return Lender(tracee, self._memory, self.start, self._size, self._running)

    def _call(self, number: int, *arguments: int) -> int:
        return call_through_vdso(
            self._tracee, self._memory, self._padding, self._room, number, arguments
        )


def room_needed() -> int:
    """Return how many bytes of padding behind the vDSO a call needs."""
    return len(SYSCALL_INSTRUCTION + way_back(Registers()))


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
    longest = 0
    while True:
        own = tracee.registers
        if has_exceptional_flags(own):
            # The call is made without them: they stand behind the code.
            flags = padding + len(SYSCALL_INSTRUCTION + tracee.way_back(padding))
            code = SYSCALL_INSTRUCTION + tracee.way_back(flags) + struct.pack("<Q", own.eflags)
        else:
            code = SYSCALL_INSTRUCTION + tracee.way_back()
        if len(code) > room:
            raise UnsupportedResource(
                f"the vDSO of this kernel has only {room} bytes of padding,"
                f" {len(code)} are needed to enter process {tracee.pid}"
            )
        longest = max(longest, len(code))
        os.pwrite(memory, code, padding)
        try:
            result = _make_call(tracee, padding, number, arguments)
            break
        except InterruptedError:
            continue
    tracee.go_back()
    os.pwrite(memory, bytes(longest), padding)
    return checked(number, result)


def _make_call(tracee: Tracee, padding: int, number: int, arguments: tuple[int, ...]) -> int:
    """Make the call and return what came back; raises InterruptedError if a signal was before it.

    From stop to stop, so that nobody has to be caught in time.
    """
    registers = for_our_code(tracee.registers, padding)
    registers.rax = number
    for name, value in zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), arguments, strict=False):
        setattr(registers, name, value & ((1 << 64) - 1))
    tracee.enter(registers)
    stops = 0
    while stops < 2:
        ptrace.resume_to_call(tracee.pid)
        status = _wait(tracee)
        if status.event is Event.CALL:
            stops += 1
        elif status.event is Event.SIGNAL:
            tracee.take_signal(status, interrupted=False)
            raise InterruptedError
    result = ptrace.registers(tracee.pid).result
    # Where a call ends, the kernel would not make the task's own call again, if we die.
    ptrace.interrupt(tracee.pid)
    ptrace.resume(tracee.pid)
    status = _wait(tracee)
    if status.event is Event.SIGNAL:
        tracee.take_signal(status, interrupted=True)
    return result


def _wait(tracee: Tracee) -> Status:
    status = ptrace.wait(tracee.pid)
    if status.event in (Event.EXITED, Event.KILLED):
        raise EndedError(f"task {tracee.pid} ended while it was held")
    return status
