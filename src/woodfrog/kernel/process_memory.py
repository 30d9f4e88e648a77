"""Reading and writing memory and files in bulk, from any thread."""

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import PAGE, SYS
from woodfrog.kernel.caller import HERE

_IOVEC = struct.Struct("<2Q")
_IOV_MAX = 1024
_FICLONERANGE = 0x4020940D
_PROT_READ, _PROT_READ_WRITE, _MAP_SHARED = 1, 3, 1


class ProcessMemory:
    """The memory of one process, through a descriptor of its /proc/PID/mem.

    Not by process_vm_readv(2), as read_written: that pins pages, and pinning a page that processes
    share since a fork gives the one that is read a copy of its own (mm/gup.c, gup_must_unshare).
    """

    def __init__(self, memory: int) -> None:
        self._memory = memory

    def read(self, into: memoryview, ranges: Sequence[tuple[int, int]]) -> None:
        """Fill `into` with these (address, length) ranges, one after the other."""
        at = 0
        memory, preadv = self._memory, os.preadv
        for address, length in ranges:
            got = preadv(memory, [into[at : at + length]], address)
            while got < length:
                count = preadv(memory, [into[at + got : at + length]], address + got)
                if count == 0:
                    raise OSError(errno.EFAULT, f"memory at {address + got:#x} is gone")
                got += count
            at += length


def read_written(pid: int, into: memoryview, ranges: Sequence[tuple[int, int]]) -> None:
    """Fill `into` with these (address, length) ranges of a process, many by one call.

    For pages that the process has written to, which are its own by that: process_vm_readv(2) would
    make them its own. Raises OSError, also where its memory can't be read (PROT_NONE).
    """
    _transfer(SYS.PROCESS_VM_READV, pid, into, ranges)


def write_memory(pid: int, source: memoryview, ranges: Sequence[tuple[int, int]]) -> None:
    """Write `source`, which is not read-only, to these (address, length) ranges of a process.

    By process_vm_writev(2), which makes pages that are not there yet, and needs the right to
    ptrace the process. Raises OSError, also where its memory can't be written.
    """
    _transfer(SYS.PROCESS_VM_WRITEV, pid, source, ranges)


def _transfer(call: int, pid: int, ours: memoryview, ranges: Sequence[tuple[int, int]]) -> None:
    if not ranges:
        return
    at = ctypes.addressof(ctypes.c_char.from_buffer(ours))
    for first in range(0, len(ranges), _IOV_MAX):
        some = ranges[first : first + _IOV_MAX]
        length = sum([part for _, part in some])
        local = _IOVEC.pack(at, length)
        remote = b"".join([_IOVEC.pack(*one) for one in some])
        done = HERE.call(call, pid, local, 1, remote, len(some), 0)
        if done != length:
            raise OSError(errno.EFAULT, f"memory at {some[0][0]:#x} or behind can't be reached")
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


class WholePages(FileContents):
    """The contents of memory that is a file, with what its last page holds behind the end."""

    def read(self, into: memoryview, ranges: Sequence[tuple[int, int]]) -> None:
        """Fill `into` with these (offset, length) ranges; past the last page come zeros."""
        super().read(into, ranges)
        size = os.fstat(self._fd).st_size
        last = size & -PAGE
        at = 0
        for offset, length in ranges:
            if last < size and offset <= last < offset + length:
                begin = at + last - offset
                with _mapped_page(self._fd, last, _PROT_READ) as page:
                    read_written(os.getpid(), into[begin : begin + PAGE], [(page, PAGE)])
            at += length


def write_last_page(fd: int, start: int, contents: memoryview) -> None:
    """Write the last page of memory that is a file, with what is behind its end."""
    with _mapped_page(fd, start, _PROT_READ_WRITE) as page:
        write_memory(os.getpid(), memoryview(bytearray(contents)), [(page, PAGE)])


@contextmanager
def _mapped_page(fd: int, start: int, protection: int) -> Iterator[int]:
    """Map a page of a file; only calls may touch it, as it is gone if somebody cuts the file."""
    page = syscalls.mmap(HERE, 0, PAGE, protection, _MAP_SHARED, fd, start)
    try:
        yield page
    finally:
        syscalls.munmap(HERE, page, PAGE)


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
