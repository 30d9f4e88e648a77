"""Memory shared between processes: memfds and shared anonymous mappings, each stored once."""

import fcntl
import os

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.image.record import Record
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.remote.address import PAGE, page_up
from woodfrog.remote.program import Program
from woodfrog.resources.memory import Extent

_MFD_CLOEXEC, _MFD_ALLOW_SEALING = 1, 2
_F_ADD_SEALS = 1033
_MEMFD = b"/memfd:"
_DELETED = b" (deleted)"
_ANONYMOUS = b"/dev/zero (deleted)"
_LARGEST_COPY = 1 << 30


class SharedMemory(Record, frozen=True, tag="shared-memory"):
    """A file without a name, whose pages (by offset) stand in the page store from `store` on.

    `memfd` is its name if memfd_create(2) made it, else None.
    """

    id: int
    memfd: bytes | None
    size: int
    seals: int
    extents: list[Extent]
    store: int


def is_one(name: bytes) -> bool:
    """Tell whether a link of /proc, which reads `name`, leads to shared memory."""
    return name == _ANONYMOUS or (name.startswith(_MEMFD) and name.endswith(_DELETED))


def describe(name: bytes) -> bytes | None:
    """Return a memfd's name, or None for a shared anonymous mapping; refuse all else."""
    if name.startswith(_MEMFD) and name.endswith(_DELETED):
        return name[len(_MEMFD) : -len(_DELETED)]
    if name == _ANONYMOUS:
        return None
    raise UnsupportedResource(
        f"a mapping shows unknown shared memory, {os.fsdecode(name)}, which cannot be saved yet"
    )


def extents(fd: int) -> tuple[int, list[Extent]]:
    """Return the size of a shared memory file, and the ranges that it has pages for."""
    size = os.fstat(fd).st_size
    found: list[Extent] = []
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError:
            break  # ENXIO: no more data
        position = os.lseek(fd, start, os.SEEK_HOLE)
        first = start & -PAGE
        found.append(Extent(start=first, length=page_up(position) - first))
    return size, found


def seals(fd: int) -> int:
    """Return the F_SEAL_* of a file."""
    return fcntl.fcntl(fd, fcntl.F_GET_SEALS)


def check_extents(extents: list[Extent], size: int, store: int, page_bytes: int) -> None:
    """Check what an image says of the pages of a file before anything is made of it."""
    position = length = 0
    for extent in extents:
        if extent.start % PAGE or extent.length % PAGE or extent.length <= 0:
            raise ImageError("pages of shared memory or a deleted file are not whole")
        if extent.start < position:
            raise ImageError("pages of shared memory or a deleted file are out of order")
        position = extent.start + extent.length
        length += extent.length
    if size < 0 or position > page_up(size):
        raise ImageError("shared memory or a deleted file has pages past its end")
    if store % PAGE or store < 0 or store + length > page_bytes:
        raise ImageError("the pages of shared memory or a deleted file are outside the page store")


def check(memory: SharedMemory, page_bytes: int) -> None:
    """Check a record from an image before anything is made of it."""
    check_extents(memory.extents, memory.size, memory.store, page_bytes)


def create(program: Program, memory: SharedMemory) -> int:
    """Make the file; a shared anonymous mapping is mapped instead, and its address returned."""
    if memory.memfd is None:
        shared_anonymous = 0x21
        return syscalls.mmap(program, 0, page_up(memory.size), 3, shared_anonymous)
    flags = _MFD_CLOEXEC | (0 if memory.seals == 1 else _MFD_ALLOW_SEALING)
    fd = syscalls.memfd_create(program, memory.memfd, flags)
    syscalls.ftruncate(program, fd, memory.size)
    return fd


def fill(program: Program, memory: SharedMemory, fd: int, pages: int, base: int) -> None:
    """Copy the contents from the page store, descriptor `pages`, then seal the file."""
    fill_extents(program, memory.extents, memory.size, fd, pages, base + memory.store)
    if memory.memfd is not None and memory.seals > 1:
        program.call(SYS.FCNTL, fd, _F_ADD_SEALS, memory.seals)


def fill_extents(
    program: Program, extents: list[Extent], size: int, fd: int, pages: int, offset: int
) -> None:
    """Copy a file's contents from an offset of the page store on."""
    for extent in extents:
        syscalls.lseek(program, fd, extent.start)
        left = min(extent.length, size - extent.start)
        at = offset
        while left > 0:
            piece = min(left, _LARGEST_COPY)
            start = at.to_bytes(8, "little")
            got = program.call(SYS.SENDFILE, fd, pages, bytearray(start), piece)
            program.expect(got, piece)
            at, left = at + piece, left - piece
        offset += extent.length
