"""Addresses and ranges in another task's memory, never to be mixed up with our own."""

import msgspec

from woodfrog.kernel.abi.x86_64 import PAGE

# The end of what a process can map on x86-64 with four-level page tables (TASK_SIZE).
TASK_SIZE = 0x7FFF_FFFF_F000


class RemoteRange(msgspec.Struct, frozen=True):
    """Addresses from `start` up to, not including, `end`."""

    start: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.start


def page_up(number: int) -> int:
    """Round up to whole pages."""
    return round_up(number, PAGE)


def round_up(number: int, unit: int) -> int:
    """Round up to whole units, a power of two."""
    return (number + unit - 1) & -unit


def free_range(used: list[tuple[int, int]], length: int, alignment: int = PAGE) -> RemoteRange:
    """Find addresses that none of the (start, end) ranges touches, with room on both sides.

    Raises ValueError if there are none.
    """
    margin = 1 << 20
    # Above what mmap_min_addr and non-PIE programs use, far below the stack.
    previous = 0x1_0000_0000
    for start, end in [*sorted(used), (TASK_SIZE, TASK_SIZE)]:
        base = round_up(previous + margin, alignment)
        if start - base >= length + margin:
            return RemoteRange(base, base + length)
        previous = max(previous, end)
    raise ValueError(f"no free range of {length} bytes")
