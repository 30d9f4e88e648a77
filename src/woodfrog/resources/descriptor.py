"""Slots of descriptor tables, and how a thread gets a table of its own (unshare(2))."""

from collections.abc import Mapping, Sequence

from woodfrog.image.record import Part
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.namespaces import CLONE_FILES
from woodfrog.remote.program import Program

_LAST = 0xFFFFFFFF


class Descriptor(Part, frozen=True, array_like=True):
    """One slot of the descriptor table: number, the file's id, close-on-exec."""

    number: int
    file: int
    cloexec: bool


def separate(
    program: Program, table: Sequence[Descriptor], at: Mapping[int, int], above: int
) -> None:
    """Give the calling thread a table of its own.

    Until then it has its process's, where files are `at` these numbers; none is as high as `above`.
    """
    program.call(SYS.UNSHARE, CLONE_FILES)
    taken = [syscalls.duplicate_above(program, at[slot.file], above) for slot in table]
    syscalls.close_range(program, 0, above - 1)
    for slot, fd in zip(table, taken, strict=True):
        syscalls.duplicate_to(program, fd, slot.number, cloexec=slot.cloexec)
    syscalls.close_range(program, above, _LAST)
