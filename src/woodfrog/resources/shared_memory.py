"""Memory shared between processes: memfds and shared anonymous mappings, each stored once."""

import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.image.record import Record
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import PAGE, SYS
from woodfrog.kernel.huge_pages import MAP_HUGETLB, page_size, size_flag
from woodfrog.remote.address import page_up
from woodfrog.remote.program import Program
from woodfrog.resources import memory_checks
from woodfrog.resources.memory import (
    MAP_ANONYMOUS,
    MAP_NORESERVE,
    MAP_SHARED,
    Extent,
    PageRange,
)

_MFD_CLOEXEC, _MFD_ALLOW_SEALING, _MFD_HUGETLB = 1, 2, 4
_PROT_READ_WRITE = 3
_F_ADD_SEALS = 1033
F_SEAL_FUTURE_WRITE = 0x10
_MEMFD = b"/memfd:"
_DELETED = b" (deleted)"
# Shared anonymous memory; and all anonymous memory of huge pages, private one, too.
_ANONYMOUS = (b"/dev/zero (deleted)", b"/anon_hugepage (deleted)")
_LARGEST_COPY = 1 << 30
_LARGEST_PAGE = 1 << 30
_PIECE = 2 << 20
_NOTHING = bytes(_PIECE)


class SharedMemory(Record, frozen=True, tag="shared-memory"):
    """A file without a name, whose pages (by offset) stand in the page store from `store` on.

    But those that are `inherited`, since the parent image had them: each says where it stands.
    `memfd` is its name if memfd_create(2) made it, else None; `huge_page` is the size of its pages,
    if they are those of hugetlbfs.
    """

    id: int
    memfd: bytes | None
    size: int
    seals: int
    extents: list[Extent]
    store: int
    inherited: list[PageRange] = []
    huge_page: int = 0
    mode: int = 0o777  # these three are a memfd's
    uid: int = 0
    gid: int = 0

    @property
    def unowned(self) -> frozenset[str]:
        """Return which fields name nobody: only whose a memfd is can be seen."""
        return frozenset(("uid", "gid")) if self.memfd is None else frozenset()

    @property
    def pages(self) -> list[PageRange]:
        """Return all pages, in order, and where each stands in the page store."""
        own = placed(self.extents, self.store)
        return sorted([*own, *self.inherited], key=attrgetter("start"))

    def inherited_at(self, address: int) -> list[PageRange]:
        """Return the pages that are inherited, as they are when all is mapped at an address."""
        return [
            PageRange(start=address + one.start, length=one.length, store=one.store)
            for one in self.inherited
        ]


def placed(extents: Iterable[Extent], store: int) -> list[PageRange]:
    """Return pages that stand one after the other from an offset of the page store on."""
    found = []
    for extent in extents:
        found.append(PageRange(start=extent.start, length=extent.length, store=store))
        store += extent.length
    return found


def is_one(name: bytes) -> bool:
    """Tell whether a link of /proc, which reads `name`, leads to shared memory."""
    return name in _ANONYMOUS or (name.startswith(_MEMFD) and name.endswith(_DELETED))


def describe(name: bytes) -> bytes | None:
    """Return a memfd's name, or None for a shared anonymous mapping; refuse all else."""
    if name.startswith(_MEMFD) and name.endswith(_DELETED):
        return name[len(_MEMFD) : -len(_DELETED)]
    if name in _ANONYMOUS:
        return None
    raise UnsupportedResource(
        f"a mapping shows unknown shared memory, {os.fsdecode(name)}, which cannot be saved yet"
    )


def extents(fd: int) -> tuple[int, list[Extent]]:
    """Return the size of a shared memory file, and the ranges that it has pages for."""
    size = os.fstat(fd).st_size
    if huge_page := page_size(fd):
        return size, list(_written(fd, size, huge_page))
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


def written_pages(fd: int, size: int) -> list[Extent]:
    """Return the pages of a file that aren't zero, where looking for holes would seek in it."""
    found: list[Extent] = []
    for start in range(0, size, _PIECE):
        piece = os.pread(fd, _PIECE, start)
        for at in range(0, len(piece), PAGE):
            if not any(piece[at : at + PAGE]):
                continue
            if found and found[-1].start + found[-1].length == start + at:
                start_of_last = found[-1].start
                found[-1] = Extent(start=start_of_last, length=start + at + PAGE - start_of_last)
            else:
                found.append(Extent(start=start + at, length=PAGE))
    return found


def _written(fd: int, size: int, huge_page: int) -> Iterator[Extent]:
    """Look for pages that aren't zero in a file of hugetlbfs, which tells nothing of its holes."""
    if not os.fstat(fd).st_blocks:
        return
    for start in range(0, size, huge_page):
        pieces = range(start, start + huge_page, _PIECE)
        if any(os.pread(fd, _PIECE, position) != _NOTHING for position in pieces):
            yield Extent(start=start, length=huge_page)


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


def check_huge_page(huge_page: int, size: int, extents: Iterable[Extent]) -> None:
    """Check what an image says of the pages of hugetlbfs that a file is made of."""
    if huge_page and (
        huge_page & (huge_page - 1)
        or not PAGE < huge_page <= _LARGEST_PAGE
        or size % huge_page
        or any(one.start % huge_page or one.length % huge_page for one in extents)
    ):
        raise ImageError("memory of huge pages has an impossible size")


def check(memory: SharedMemory, store_bytes: Sequence[int]) -> None:
    """Check a record from an image before anything is made of it; see memory_checks.check."""
    check_huge_page(memory.huge_page, memory.size, memory.extents)
    check_extents(memory.extents, memory.size, memory.store, store_bytes[0])
    if memory.inherited:
        pages = memory.pages
        memory_checks.check_pages(pages, store_bytes)
        if memory.huge_page:
            raise ImageError("memory of huge pages can't be inherited from another image")
        if pages[-1].start + pages[-1].length > page_up(memory.size):
            raise ImageError("shared memory has pages past its end")


def create(program: Program, memory: SharedMemory) -> int:
    """Make the file; a shared anonymous mapping is mapped instead, and its address returned."""
    if memory.memfd is None:
        how = MAP_SHARED | MAP_ANONYMOUS
        if memory.huge_page:
            # Who maps it reserves pages for himself.
            how |= MAP_HUGETLB | MAP_NORESERVE | size_flag(memory.huge_page)
        return syscalls.mmap(program, 0, page_up(memory.size), _PROT_READ_WRITE, how)
    flags = _MFD_CLOEXEC | (0 if memory.seals == 1 else _MFD_ALLOW_SEALING)
    if memory.huge_page:
        flags |= _MFD_HUGETLB | size_flag(memory.huge_page)
    fd = syscalls.memfd_create(program, memory.memfd, flags)
    syscalls.ftruncate(program, fd, memory.size)
    if memory.uid or memory.gid:
        program.call(SYS.FCHOWN, fd, memory.uid, memory.gid)
    # Before it is sealed: F_SEAL_EXEC on one that may be executed seals all else, too.
    program.call(SYS.FCHMOD, fd, memory.mode)
    return fd


def fill(program: Program, memory: SharedMemory, fd: int, pages: int, base: int) -> None:
    """Copy the contents from the page store, descriptor `pages`."""
    offset = base + memory.store
    if memory.huge_page:
        fill_huge(program, memory.extents, fd, pages, offset)
    else:
        fill_extents(program, memory.extents, memory.size, fd, pages, offset)
        _fill_behind(program, memory, fd, pages, offset)


def _fill_behind(program: Program, memory: SharedMemory, fd: int, pages: int, offset: int) -> None:
    """Copy what the last page holds behind the end, which only mappings show."""
    end = max((one.start + one.length for one in memory.extents), default=0)
    if end > memory.size:
        at = syscalls.mmap(program, 0, PAGE, _PROT_READ_WRITE, MAP_SHARED, fd, end - PAGE)
        stored = sum(one.length for one in memory.extents)
        got = program.call(SYS.PREAD64, pages, at, PAGE, offset + stored - PAGE)
        program.expect(got, PAGE)
        syscalls.munmap(program, at, PAGE)


def map_whole(program: Program, memory: SharedMemory, fd: int) -> int:
    """Map the file, to be written to; returns the address."""
    return syscalls.mmap(program, 0, page_up(memory.size), _PROT_READ_WRITE, MAP_SHARED, fd, 0)


def seal(program: Program, memory: SharedMemory, fd: int) -> None:
    """Forbid what may not be done to the file any more."""
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


def fill_huge(program: Program, extents: list[Extent], fd: int, pages: int, offset: int) -> None:
    """Copy a file's contents, if it is one of hugetlbfs: those can't be written, only mapped."""
    how = MAP_SHARED | MAP_NORESERVE
    for extent in extents:
        for start in range(extent.start, extent.start + extent.length, _LARGEST_COPY):
            piece = min(_LARGEST_COPY, extent.start + extent.length - start)
            at = syscalls.mmap(program, 0, piece, _PROT_READ_WRITE, how, fd, start)
            program.expect(program.call(SYS.PREAD64, pages, at, piece, offset), piece)
            syscalls.munmap(program, at, piece)
            offset += piece
