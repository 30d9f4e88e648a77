"""Pages that go past the page cache (O_DIRECT, open(2)): for images larger than it should hold."""

import mmap
import os

_HUGE = 2 << 20
_FEW = 4 << 20


def opened(fd: int, access: int) -> int:
    """Return the same file, opened once more for direct I/O; -1 where that is not possible.

    Offsets, lengths and addresses in memory must then be multiples of PAGE.
    """
    try:
        return os.open(f"/proc/self/fd/{fd}", access | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return -1  # EINVAL: a file system without it, like tmpfs before Linux 6.6


def buffer(length: int) -> memoryview:
    """Return memory that begins with a page; much of it has huge pages, where there are any."""
    memory = mmap.mmap(-1, length or 1, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if length >= _HUGE:
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            pass  # not in this kernel
    return memoryview(memory)[:length]


def room(length: int) -> memoryview:
    """Return memory for so much in one piece, which begins anywhere.

    Of a keeper's worker, what is not much comes from what it has at hand (kernel/heap.py).
    """
    return memoryview(bytearray(length)) if length < _FEW else buffer(length)
