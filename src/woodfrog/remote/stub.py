"""A blank process, held by ptrace, that becomes a restored one by running programs.

Stubs carry PTRACE_O_EXITKILL: they don't outlive us, so a program may end in a breakpoint and
single calls may be traced (design law 3).
"""

import os
import struct
import time

from woodfrog.kernel import ptrace
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import checked
from woodfrog.kernel.procfs.status import read_stat
from woodfrog.kernel.ptrace import Event, Registers
from woodfrog.remote.program import LOOP, Program
from woodfrog.remote.registers import for_our_code

OPTIONS = (
    ptrace.O_EXITKILL
    | ptrace.O_TRACESYSGOOD
    | ptrace.O_TRACEFORK
    | ptrace.O_TRACEVFORK
    | ptrace.O_TRACECLONE
    | ptrace.O_TRACEEXEC
)
SIGTRAP = 5
SIGSTOP = 19
# Signals wait until the process is whole; the breakpoint's own must not, or the kernel would reset
# its action (force_sig).
MASK = ((1 << 64) - 1) & ~(1 << (SIGTRAP - 1))

CODE_BYTES = 4096
_SYSCALL = b"\x0f\x05"
_PATIENCE_S = 10.0
# ldtilecfg [rax]; tilezero tmm0; tilerelease; int3
_TOUCH_TILES = bytes.fromhex("c4e2784900 c4e27b49c0 c4e27849c0 cc")
_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")


class StubError(Exception):
    """A stub ended, or stopped for something that we did not ask for."""


def executable(base: int, size: int) -> bytes:
    """Return an ELF file that maps the loop at `base` and `size` zero bytes of data behind it."""
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    head = _ELF_HEADER.pack(ident, 2, 62, 1, base, 64, 0, 0, 64, 56, 3, 0, 0, 0)
    code = _PROGRAM_HEADER.pack(1, 5, 4096, base, base, len(LOOP), len(LOOP), 4096)
    data = _PROGRAM_HEADER.pack(1, 6, 0, base + CODE_BYTES, base + CODE_BYTES, 0, size, 4096)
    # PT_GNU_STACK, so that no personality makes our stack or data executable.
    stack = _PROGRAM_HEADER.pack(0x6474E551, 6, 0, 0, 0, 0, 0, 16)
    head += code + data + stack
    return head + bytes(4096 - len(head)) + LOOP


class Stub:
    """One task of a process that is being restored.

    `memory` is a descriptor of /proc/PID/mem; `base` is where the loop's page is in it. `born` gets
    the host pids of tasks that programs clone, in order.
    """

    def __init__(self, pid: int, base: int, size: int) -> None:
        self.pid = pid
        self.base = base
        self.size = size
        self.memory = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
        self.born: list[int] = []
        # Those that programs begin with, no matter which: they make no use of what is in others.
        self._registers: Registers | None = None

    @property
    def area(self) -> tuple[int, int]:
        """Where our own memory is in the process, as (start, end)."""
        return self.base, self.base + CODE_BYTES + self.size

    def close(self) -> None:
        """Close our descriptor; the task stays held."""
        os.close(self.memory)

    def task(self, pid: int) -> "Stub":
        """Return a further thread of this process."""
        thread = Stub.__new__(Stub)
        thread.pid, thread.base, thread.size, thread.memory, thread.born = (
            pid,
            self.base,
            self.size,
            self.memory,
            [],
        )
        thread._registers = None
        return thread

    def part(self, number: int = 0, of: int = 1) -> tuple[int, int]:
        """Return where a program may stand in the stub's data or a part of it, and how long."""
        return self.part_of(self.base, self.size, number, of)

    @staticmethod
    def part_of(base: int, whole: int, number: int = 0, of: int = 1) -> tuple[int, int]:
        """Return that of a stub that isn't there yet, whose data will be `whole` bytes long."""
        size = whole // of & -4096
        return base + CODE_BYTES + number * size, size

    def program(self) -> Program:
        """Return an empty program that fits the stub's data."""
        return Program(*self.part())

    def start(self, program: Program) -> None:
        """Set a program going; `finish` waits for its end."""
        os.pwrite(self.memory, program.assemble(), program.base)
        if self._registers is None:
            self._registers = for_our_code(ptrace.registers(self.pid), self.base)
        registers = self._registers
        registers.r15, registers.r14 = program.entry, 0
        ptrace.set_registers(self.pid, registers)
        ptrace.resume(self.pid)

    def finish(self, program: Program) -> None:
        """Wait for the program's end and take its results; raises ProgramError."""
        while True:
            status = ptrace.wait(self.pid)
            if status.event is Event.EVENT:
                self.born.append(ptrace.event_message(self.pid))
                ptrace.resume(self.pid)
            elif status.event is Event.SIGNAL and status.signal == SIGTRAP:
                break
            elif status.event is Event.STOPPED:
                ptrace.resume(self.pid)
            else:
                raise StubError(f"process {self.pid} stopped in mid-program: {status}")
        program.finish(self.memory, ptrace.r15(self.pid))

    def run(self, program: Program) -> None:
        """Run a program to its end."""
        if len(program):
            self.start(program)
            self.finish(program)

    def expand_state(self) -> None:
        """Have the kernel make room for AMX tiles in this task, as their first use does.

        Until then PTRACE_SETREGSET refuses a state that has them.
        """
        # palette 1, and one tile of one row of four bytes
        configuration = bytearray(64)
        configuration[0], configuration[16], configuration[48] = 1, 4, 1
        os.pwrite(self.memory, configuration, self.spare_word)
        self.execute(_TOUCH_TILES, rax=self.spare_word)

    @property
    def spare_word(self) -> int:
        """The address of memory that programs use, and nothing else while none runs."""
        return self.base + CODE_BYTES

    def execute(self, code: bytes, **values: int) -> Registers:
        """Run machine code, a few instructions that end in int3, with these in its registers.

        Returns the registers at its end.
        """
        place = self.base + CODE_BYTES - 64
        os.pwrite(self.memory, code, place)
        registers = for_our_code(ptrace.registers(self.pid), place)
        for name, value in values.items():
            setattr(registers, name, value)
        ptrace.set_registers(self.pid, registers)
        ptrace.resume(self.pid)
        status = ptrace.wait(self.pid)
        while status.event is Event.STOPPED:
            ptrace.resume(self.pid)
            status = ptrace.wait(self.pid)
        if status.event is not Event.SIGNAL or status.signal != SIGTRAP:
            raise StubError(f"process {self.pid} stopped in mid-code: {status}")
        return ptrace.registers(self.pid)

    def exit(self, status: int) -> None:
        """Let go of this task, which is its process's first thread, and have it exit(2)."""
        registers = for_our_code(ptrace.registers(self.pid), self.base + LOOP.index(_SYSCALL))
        registers.rax, registers.rdi = SYS.EXIT, status
        ptrace.set_registers(self.pid, registers)
        ptrace.detach(self.pid)
        deadline = time.monotonic() + _PATIENCE_S
        while read_stat(f"/proc/{self.pid}/task/{self.pid}").state != "Z":
            if time.monotonic() > deadline:
                raise StubError(f"thread {self.pid} did not end")
            time.sleep(50e-6)

    def call_at(self, instruction: int, number: int, *arguments: int) -> int:
        """Make one call with a system call instruction at any address, and return its result."""
        registers = ptrace.registers(self.pid)
        make_call(self.pid, registers, instruction, number, arguments)
        return checked(number, ptrace.registers(self.pid).result)


def await_birth(pid: int) -> None:
    """Wait for a task that was cloned by a held one: it stops before its first instruction."""
    status = ptrace.wait(pid)
    if status.event is not Event.STOPPED:
        raise StubError(f"new process {pid} is not held: {status}")


def make_call(
    pid: int, registers: Registers, instruction: int, number: int, arguments: tuple[int, ...]
) -> None:
    """Run one call in a held task, from its entry to its exit; it stays stopped there."""
    registers = for_our_code(registers, instruction)
    registers.rax = number
    for name, value in zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), arguments, strict=False):
        setattr(registers, name, value & ((1 << 64) - 1))
    ptrace.set_registers(pid, registers)
    stops = 0
    while stops < 2:
        ptrace.resume_to_call(pid)
        status = ptrace.wait(pid)
        if status.event is Event.CALL:
            stops += 1
        elif status.event in (Event.EXITED, Event.KILLED):
            raise StubError(f"process {pid} ended in {number}: {status}")
        # Anything else is an event stop or a signal that waits until the process is whole.


def exec_into(pid: int, registers: Registers, instruction: int, arguments: tuple[int, ...]) -> None:
    """Have a held task execveat(2) into something else; it stops before the first instruction."""
    registers = for_our_code(registers, instruction)
    registers.rax = SYS.EXECVEAT
    for name, value in zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), arguments, strict=False):
        setattr(registers, name, value & ((1 << 64) - 1))
    ptrace.set_registers(pid, registers)
    while True:
        ptrace.resume_to_call(pid)
        status = ptrace.wait(pid)
        if status.event is Event.EVENT:
            return
        if status.event in (Event.EXITED, Event.KILLED):
            raise StubError(f"process {pid} ended in execveat: {status}")
        result = ptrace.registers(pid)
        if result.orig_rax == SYS.EXECVEAT and -4096 < result.result < 0 and result.result != -38:
            checked(SYS.EXECVEAT, result.result)
