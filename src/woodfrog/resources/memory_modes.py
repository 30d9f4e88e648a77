"""What a process told the kernel of its memory as a whole: membarrier(2), KSM, modify_ldt(2)."""

import struct
from collections.abc import Callable

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.image.record import Part
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.remote.program import Program

_PR_SET_MEMORY_MERGE, _PR_GET_MEMORY_MERGE = 67, 68
_MEMBARRIER_GET_REGISTRATIONS = 1 << 9  # since Linux 6.3; before, nobody tells
# GLOBAL_EXPEDITED, PRIVATE_EXPEDITED, ..._SYNC_CORE and ..._RSEQ
_REGISTRATIONS = (1 << 2, 1 << 4, 1 << 6, 1 << 8)
_LDT_READ, _LDT_WRITE = 0, 0x11
_ENTRY = 8
# As many as our scratch memory takes; there may be 8192.
_MOST_ENTRIES = 6000
_USER_DESC = struct.Struct("<4I")


class MemoryModes(Part, frozen=True):
    """`membarrier` has the commands by which it is registered, `ldt` its local descriptor table."""

    membarrier: int = 0
    merges: bool = False  # PR_SET_MEMORY_MERGE
    ldt: bytes = b""


def ask(program: Program) -> Callable[[], tuple[int, bool, bool]]:
    """Add the calls that tell; the answer is registrations, merging, and if there is an LDT."""
    registered = program.may_fail(program.call(SYS.MEMBARRIER, _MEMBARRIER_GET_REGISTRATIONS, 0, 0))
    merges = program.may_fail(syscalls.prctl(program, _PR_GET_MEMORY_MERGE))
    table = program.may_fail(program.call(SYS.MODIFY_LDT, _LDT_READ, bytearray(_ENTRY), _ENTRY))
    return lambda: (max(program[registered], 0), program[merges] == 1, program[table] > 0)


def read_ldt(program: Program) -> Callable[[], bytes]:
    """Add the call that reads a local descriptor table."""
    table = bytearray(_MOST_ENTRIES * _ENTRY)
    program.call(SYS.MODIFY_LDT, _LDT_READ, table, len(table))

    def answered() -> bytes:
        if any(table[-_ENTRY:]):
            raise UnsupportedResource(
                f"has {_MOST_ENTRIES} or more entries in its local descriptor table"
                " (modify_ldt), which cannot be saved"
            )
        used = len(bytes(table).rstrip(b"\0"))
        return bytes(table[: -(-used // _ENTRY) * _ENTRY])

    return answered


def check(modes: MemoryModes) -> None:
    """Check a record from an image before anything is made of it."""
    if len(modes.ldt) % _ENTRY or len(modes.ldt) > _MOST_ENTRIES * _ENTRY:
        raise ImageError("a local descriptor table in the image has an impossible size")
    if modes.membarrier & ~sum(_REGISTRATIONS):
        raise ImageError("the image has an unknown registration for membarrier(2)")


def restore(program: Program, modes: MemoryModes) -> None:
    """Tell the kernel the same."""
    for command in _REGISTRATIONS:
        if modes.membarrier & command:
            program.call(SYS.MEMBARRIER, command, 0, 0)
    if modes.merges:
        # Where KSM isn't, nothing merges.
        program.may_fail(syscalls.prctl(program, _PR_SET_MEMORY_MERGE, 1))
    for number, (entry,) in enumerate(struct.iter_unpack("<Q", modes.ldt)):
        if entry:
            description = _user_desc(number, entry)
            program.call(SYS.MODIFY_LDT, _LDT_WRITE, description, len(description))


def _user_desc(number: int, entry: int) -> bytes:
    """Return a descriptor as struct user_desc (asm/ldt.h)."""
    base = entry >> 16 & 0xFFFFFF | entry >> 56 << 24
    limit = entry & 0xFFFF | entry >> 32 & 0xF0000

    def bit(at: int) -> int:
        return entry >> at & 1

    # The type: accessed, writable (or readable), and two bits that user_desc calls contents.
    flags = (
        bit(54)
        | (entry >> 42 & 3) << 1
        | (1 - bit(41)) << 3
        | bit(55) << 4
        | (1 - bit(47)) << 5
        | bit(52) << 6
    )
    return _USER_DESC.pack(number, base, limit, flags)
