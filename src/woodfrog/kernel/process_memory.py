"""Reading memory and files in bulk, from any thread."""

import fcntl
import os
import struct
from collections.abc import Sequence

_EFAULT = 14
_FICLONERANGE = 0x4020940D


class ProcessMemory:
    """The memory of one process, through a descriptor of its /proc/PID/mem.

    Not by process_vm_readv(2): that pins pages, and pinning a page that processes share since a
    fork gives the one that is read a copy of its own (mm/gup.c, gup_must_unshare).
    """

    def __init__(self, memory: int) -> None:
        self._memory = memory

    def read(self, into: memoryview, ranges: Sequence[tuple[int, int]]) -> None:
        """Fill `into` with these (address, length) ranges, one after the other."""
        at = 0
        for address, length in ranges:
            got = 0
            while got < length:
                count = os.preadv(self._memory, [into[at + got : at + length]], address + got)
                if count == 0:
                    raise OSError(_EFAULT, f"memory at {address + got:#x} is gone")
                got += count
            at += length


class FileContents:
    """The contents of an open file; may be used from several threads at once."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self, into: memoryview, ranges: Sequence[tuple[int, int]]) -> None:
        """Fill `into` with these (offset, length) ranges; past the end come zeros."""
        at = 0
        for offset, length in ranges:
            piece = into[at : at + length]
            got = 0
            while got < length:
                count = os.preadv(self._fd, [piece[got:]], offset + got)
                if count == 0:
                    piece[got:] = bytes(length - got)
                    break
                got += count
            at += length


class SharableFile(FileContents):
    """The contents of an open file whose blocks another file can have in common (reflinks).

    `blocks` is a descriptor of it in the file system that has them.
    """

    def __init__(self, fd: int, blocks: int) -> None:
        super().__init__(fd)
        self._blocks = blocks

    def share(self, into: int, at: int, ranges: Sequence[tuple[int, int]]) -> int:
        """Make these ranges blocks of another file, from `at` on; returns how many bytes it has.

        That is none unless both files lie in one file system that can do it.
        """
        done = 0
        for offset, length in ranges:
            try:
                where = struct.pack("<q3Q", self._blocks, offset, length, at + done)
                fcntl.ioctl(into, _FICLONERANGE, where)
            except OSError:
                break  # also past the file's end, where the last page isn't whole
            done += length
        return done
