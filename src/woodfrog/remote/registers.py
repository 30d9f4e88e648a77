"""What a held task's registers mean: the interrupted call, and how to go on with it."""

import os
import struct
from itertools import chain
from operator import attrgetter

from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.ptrace import NO_CALL, Registers, Rseq

# include/linux/errno.h: never seen by programs, but by a tracer.
ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK = 512, 513, 514, 516
EINTR = 4
_SYSCALL_BYTES = 2
_WORD = (1 << 64) - 1
# TF (a trap after each instruction) and AC (a fault where data isn't aligned).
_EXCEPTIONAL_FLAGS = 1 << 8 | 1 << 18

# Calls that return EINTR because they were held, not because of a signal: kernel-notes.md.
CALLS_THAT_SEE_A_HOLD = frozenset(
    (
        SYS.EPOLL_WAIT,
        SYS.EPOLL_PWAIT,
        SYS.EPOLL_PWAIT2,
        SYS.RT_SIGTIMEDWAIT,
        SYS.SEMOP,
        SYS.SEMTIMEDOP,
        SYS.IO_GETEVENTS,
        SYS.IO_PGETEVENTS,
        SYS.IO_URING_ENTER,
        # On hugetlbfs and, before some kernel, in tmpfs. What it has done it does again.
        SYS.FALLOCATE,
        # Sockets with SO_RCVTIMEO or SO_SNDTIMEO (sock_intr_errno).
        SYS.READ,
        SYS.READV,
        SYS.WRITE,
        SYS.WRITEV,
        SYS.RECVFROM,
        SYS.RECVMSG,
        SYS.RECVMMSG,
        SYS.SENDTO,
        SYS.SENDMSG,
        SYS.SENDMMSG,
        SYS.ACCEPT,
        SYS.ACCEPT4,
        SYS.CONNECT,
        SYS.SPLICE,
        SYS.SENDFILE,
    )
)


def in_call(registers: Registers) -> bool:
    """Tell whether the task was interrupted in a call that has not returned."""
    return registers.orig_rax != NO_CALL and -registers.result in (
        ERESTARTSYS,
        ERESTARTNOINTR,
        ERESTARTNOHAND,
        ERESTART_RESTARTBLOCK,
    )


def sees_the_hold(registers: Registers) -> bool:
    """Tell whether the task's call would return EINTR only because we stopped it."""
    return registers.orig_rax in CALLS_THAT_SEE_A_HOLD and registers.result == -EINTR


def issue_again(registers: Registers) -> Registers:
    """Return registers with which the interrupted call is made once more."""
    again = registers.copy()
    again.rax = registers.orig_rax
    again.rip = registers.rip - _SYSCALL_BYTES
    again.orig_rax = NO_CALL
    return again


def made_again(registers: Registers) -> Registers:
    """Return registers with which the kernel makes the interrupted call once more.

    Unless a signal is handled before that: then the call returns EINTR, as it would have if the
    signal had come while it waited.
    """
    again = registers.copy()
    again.rax = -ERESTARTNOHAND & _WORD
    return again


def for_our_code(registers: Registers, at: int) -> Registers:
    """Return registers with which the task runs code of ours at an address.

    Flags that a program may set, and which make exceptions of what other code does, are off.
    """
    ours = registers.copy()
    ours.rip, ours.orig_rax = at, NO_CALL
    ours.eflags &= ~_EXCEPTIONAL_FLAGS
    return ours


def has_exceptional_flags(registers: Registers) -> bool:
    """Tell whether `for_our_code` changes the flags."""
    return bool(registers.eflags & _EXCEPTIONAL_FLAGS)


def without_the_kernel(registers: Registers) -> Registers:
    """Return registers that do by themselves what the kernel does at the end of a stop.

    An interrupted call is issued again; one with a restart block goes on as restart_syscall.
    """
    if not in_call(registers):
        return registers
    again = issue_again(registers)
    if -registers.result == ERESTART_RESTARTBLOCK:
        again.rax = SYS.RESTART_SYSCALL
    return again


def out_of_critical_section(area: Rseq, memory: int, registers: Registers) -> Registers:
    """Return registers that are not inside an rseq(2) critical section.

    Being held counts as being preempted: such a section is left through its abort handler. The
    kernel would see to it by itself, but not once we have moved the task elsewhere.
    """
    if not area.address:
        return registers
    section = int.from_bytes(os.pread(memory, 8, area.address + 8), "little")
    if not section:
        return registers
    start, length, abort = struct.unpack("<3Q", os.pread(memory, 24, section + 8))
    if start <= registers.rip < start + length:
        registers = registers.copy()
        registers.rip = abort
    return registers


# movabs to each
_MOVABS = (
    ("rax", b"\x48\xb8"),
    ("rcx", b"\x48\xb9"),
    ("rdx", b"\x48\xba"),
    ("rbx", b"\x48\xbb"),
    ("rbp", b"\x48\xbd"),
    ("rsi", b"\x48\xbe"),
    ("rdi", b"\x48\xbf"),
    ("r8", b"\x49\xb8"),
    ("r9", b"\x49\xb9"),
    ("r10", b"\x49\xba"),
    ("r11", b"\x49\xbb"),
    ("r12", b"\x49\xbc"),
    ("r13", b"\x49\xbd"),
    ("r14", b"\x49\xbe"),
    ("r15", b"\x49\xbf"),
)


_VALUES = attrgetter(*(name for name, _ in _MOVABS))
_OPCODES = tuple(opcode for _, opcode in _MOVABS)
_WAY = struct.Struct("<" + "2sQ" * len(_MOVABS))
# jmp [rip+0]
_JUMP, _JUMP_TO = struct.Struct("<6sQ"), b"\xff\x25\0\0\0\0"
# movabs rsp, where the flags are; popfq; movabs rsp
_FLAGS_AND_STACK = struct.Struct("<2sQ3sQ")
_MOVABS_RSP, _POPFQ = b"\x48\xbc", b"\x9d"


def way_back(registers: Registers, flags_at: int | None = None) -> bytes:
    """Return machine code that sets these registers and jumps to where they point.

    `flags_at` is the address of a word that holds the flags; without it they and the stack pointer
    are left alone. The code makes no call and doesn't touch the task's stack.
    """
    target = without_the_kernel(registers)
    code = _WAY.pack(*chain.from_iterable(zip(_OPCODES, _VALUES(target), strict=True)))
    if flags_at is not None:
        # Last, as after each instruction from then on there may be a trap (TF), on its stack.
        code += _FLAGS_AND_STACK.pack(_MOVABS_RSP, flags_at, _POPFQ + _MOVABS_RSP, target.rsp)
    return code + _JUMP.pack(_JUMP_TO, target.rip)


def way_length(*, with_flags: bool) -> int:
    """Return how many bytes a way back has."""
    return _WAY.size + (_FLAGS_AND_STACK.size if with_flags else 0) + _JUMP.size


def leads_to(code: bytes, now: Registers) -> tuple[Registers, int | None] | None:
    """Read a way back: the registers that it sets, and where the flags are if it sets them.

    `now` are those of the task, which keeps what the way leaves alone. None if it is no way back.
    """
    found = now.copy()
    found.orig_rax = NO_CALL
    opcodes_and_values = _WAY.unpack_from(code)
    for (name, opcode), got, value in zip(
        _MOVABS, opcodes_and_values[::2], opcodes_and_values[1::2], strict=True
    ):
        if got != opcode:
            return None
        setattr(found, name, value)
    flags_at, at = None, _WAY.size
    if len(code) == way_length(with_flags=True):
        first, flags_at, second, found.rsp = _FLAGS_AND_STACK.unpack_from(code, at)
        if (first, second) != (_MOVABS_RSP, _POPFQ + _MOVABS_RSP):
            return None
        at += _FLAGS_AND_STACK.size
    jump, found.rip = _JUMP.unpack_from(code, at)
    return (found, flags_at) if jump == _JUMP_TO else None
