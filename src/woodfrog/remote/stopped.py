"""The way back of a task in a group stop, all of whose signals are blocked while it runs our code.

Should we be killed meanwhile, the kernel stops it again where it is. If SIGCONT comes before the
next command on the container, the task opens its mask by a call of its own, and goes back. If that
command comes first, what waits for SIGCONT must wait on: it reads here how the task was, and has it
stand there (`HeldTask.has_left_leftover`).
"""

import os
import struct

from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.ptrace import NO_CALL, Registers
from woodfrog.remote import registers as ways
from woodfrog.remote.vdso import SYSCALL_INSTRUCTION

SIG_SETMASK = 2
MASK_BYTES = 8
_NO_OPERATION = b"\x66\x90"
# mov eax; mov edi; lea rsi, [rip + where the mask is]; mov edx; mov r10d: none changes a flag.
_CALL = struct.Struct("<sIsI3sIsI2sI")
_TAIL = struct.Struct("<3Q")  # the mask; rax and orig_rax of a call that was interrupted


def way_back(registers: Registers, flags_at: int | None, mask: int, *, may_open: bool) -> bytes:
    """Return machine code that opens the mask and then does as `registers.way_back`.

    Unless the task `may_open` it, as a filter could forbid: then signals stay blocked.
    """
    way = ways.way_back(registers, flags_at)
    is_in_call = ways.in_call(registers)
    tail = _TAIL.pack(mask, registers.rax, registers.orig_rax if is_in_call else NO_CALL)
    return _opening(len(way)) + (SYSCALL_INSTRUCTION if may_open else _NO_OPERATION) + way + tail


def _opening(length: int) -> bytes:
    """Return the call that opens a mask which stands behind a way back of this length."""
    # From the end of the instruction that takes it: two more and the call's are in between.
    ahead = 5 + 6 + len(SYSCALL_INSTRUCTION) + length
    number = SYS.RT_SIGPROCMASK
    return _CALL.pack(
        *(b"\xb8", number, b"\xbf", SIG_SETMASK, b"\x48\x8d\x35", ahead),
        *(b"\xba", 0, b"\x41\xba", MASK_BYTES),
    )


def where_it_was(memory: int, way: int, now: Registers) -> tuple[Registers, int | None] | None:
    """Read a way back: the registers to which it leads, and the mask, if it has one to open.

    `memory` is the process's, `way` where it begins, `now` what the task has in its registers.
    None if there is no way back: the memory is a container's, which may have put anything there.
    """
    for is_opening in (True, False):
        for with_flags in (True, False):
            length = ways.way_length(with_flags=with_flags)
            head = _opening(length) if is_opening else b""
            code = os.pread(memory, len(head) + 2 + length + _TAIL.size, way)
            start = len(head) + len(SYSCALL_INSTRUCTION) if is_opening else 0
            behind = start + length + (_TAIL.size if is_opening else 0)
            if not code.startswith(head) or len(code) < behind:
                continue
            found = ways.leads_to(code[start : start + length], now)
            if found is None:
                continue
            registers, flags_at = found
            if flags_at is not None:
                registers.eflags = int.from_bytes(os.pread(memory, 8, flags_at), "little")
            if not is_opening:
                return registers, None
            mask, rax, number = _TAIL.unpack(code[start + length : behind])
            if number != NO_CALL:
                # As it was: should SIGCONT have a handler, the call ends by that.
                registers.rip += len(SYSCALL_INSTRUCTION)
                registers.rax, registers.orig_rax = rax, number
            return registers, mask
    return None
