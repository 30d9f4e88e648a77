"""The address space of a process: mappings, their own pages, and the mm's fields."""

import os
import struct
from collections import abc
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.image.record import Part
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.pagemap import Pagemap
from woodfrog.kernel.procfs.maps import Mapping as KernelMapping
from woodfrog.kernel.procfs.maps import read_smaps
from woodfrog.kernel.procfs.status import Stat
from woodfrog.remote.address import PAGE, TASK_SIZE
from woodfrog.remote.program import Program
from woodfrog.remote.vdso import VDSO_NAMES

PROT_WRITE = 2
MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS, MAP_GROWSDOWN = 0x01, 0x02, 0x20, 0x100
MAP_NORESERVE, MAP_FIXED_NOREPLACE = 0x4000, 0x100000
_MLOCK_ONFAULT = 1
_CAP_IPC_LOCK = 14
_MADV_GUARD_INSTALL = 102
_IOVEC = struct.Struct("<2Q")
_IOV_MAX = 1024
_LARGEST_READ = 1 << 30

# VmFlags of smaps and the advice that brings them back, in an order that works.
_ADVICE = (
    ("sr", 2),
    ("rr", 1),
    ("dc", 10),
    ("dd", 16),
    ("wf", 18),
    ("hg", 14),
    ("nh", 15),
    ("mg", 12),
)
_KNOWN_ADVICE = frozenset(advice for _, advice in _ADVICE)
_REFUSED = {
    "ht": "uses huge pages of hugetlbfs",
    "io": "maps a device's memory",
    "pf": "maps a device's memory",
    "dp": "is droppable memory (MAP_DROPPABLE)",
    "sl": "is sealed (mseal)",
    "um": "is registered with a userfaultfd",
    "uw": "is registered with a userfaultfd",
    "ss": "is a shadow stack",
}
_SYSV = b"/SYSV"
_IGNORED_NAMES = (b"[vsyscall]", b"[uprobes]")


class Source(StrEnum):
    """What a mapping shows."""

    ANONYMOUS = "anonymous"
    FILE = "file"
    SHARED = "shared"  # a shared memory object or a deleted file, by its id
    SYSV = "sysv"  # System V shared memory, by its shmid


class Mapping(Part, frozen=True):
    """One mapping, with the advice (MADV_*) that it was given."""

    start: int
    end: int
    protection: int
    shared: bool
    source: Source
    offset: int = 0
    path: bytes = b""
    writable: bool = False  # the file was open for writing: mprotect may still allow it
    object: int = 0
    advice: list[int] = []
    grows_down: bool = False
    no_reserve: bool = False
    locked: bool = False


class Extent(Part, frozen=True, array_like=True):
    """Pages that stand one after the other."""

    start: int
    length: int


class PageRange(Part, frozen=True, array_like=True):
    """Pages of a process, and where the first of them stands in the page store."""

    start: int
    length: int
    store: int


class AddressSpace(Part, frozen=True):
    """All of a process's memory. Processes may share what is in the page store."""

    mappings: list[Mapping]
    pages: list[PageRange]
    guards: list[Extent]
    lock_future: bool
    core_dump_filter: int
    vdso: int  # where its data begins
    vdso_text: int
    start_code: int
    end_code: int
    start_data: int
    end_data: int
    start_brk: int
    brk: int
    start_stack: int
    arg_start: int
    arg_end: int
    env_start: int
    env_end: int
    auxv: bytes
    executable: bytes
    executable_object: int = 0  # as `object` of a mapping


class Collected:
    """An address space whose pages have not been looked for yet."""

    def __init__(self, fields: dict[str, object], mappings: list[Mapping]) -> None:
        self.fields = fields
        self.mappings = mappings
        self._guards: list[Extent] = []

    def find_pages(self, pid: int, mappings: Iterable[Mapping]) -> list[tuple[int, int]]:
        """Return the pages that private mappings have for themselves, and note guard pages.

        `pid` is a process that has them: this one, or a copy that it has made by fork(2).
        """
        extents: list[tuple[int, int]] = []
        with Pagemap(pid) as pagemap:
            for one in mappings:
                if not one.shared:
                    extents += pagemap.own_pages(one.start, one.end)
                    for start, end in pagemap.guard_regions(one.start, one.end):
                        self._guards.append(Extent(start=start, length=end - start))
        return extents

    @property
    def mapped_paths(self) -> set[bytes]:
        """Return the paths of the files that are mapped."""
        return {one.path for one in self.mappings if one.source is Source.FILE}

    def record(self, pages: list[PageRange]) -> AddressSpace:
        """Return the record, once it is known where the pages are stored."""
        guards = sorted(self._guards, key=lambda guard: guard.start)
        return AddressSpace(mappings=self.mappings, pages=pages, guards=guards, **self.fields)  # type: ignore[arg-type]


def collect(
    pid: int,
    stat: Stat,
    ours: tuple[int, int],
    shared_object: Callable[[int, KernelMapping], int],
    root: str,
    core_dump_filter: int,
    executable: tuple[bytes, int],
) -> Collected:
    """Read the mappings of a held process.

    `ours` are the addresses of our scratch area, `shared_object` gives the id of what is behind a
    mapping and has no path, `root` leads to the container's root for checking paths; `executable`
    is a path and such an id, or 0.
    """
    mappings: list[Mapping] = []
    refused: list[UnsupportedResource] = []
    lock_future = False
    vdso_start = vdso_text = 0
    brk = stat.start_brk
    for found in _without(read_smaps(pid), ours):
        if found.start == ours[0]:
            # New memory is locked as mlockall(MCL_FUTURE) has it, which nothing else tells.
            lock_future = "lo" in found.flags
            continue
        if found.name in _IGNORED_NAMES:
            continue
        if found.name == VDSO_NAMES[-1]:
            vdso_text = found.start
        if found.name in VDSO_NAMES:
            vdso_start = min(vdso_start or found.start, found.start)
            continue
        if found.name == b"[heap]":
            brk = found.end
        try:
            _refuse(found)
            mappings.append(_mapping(pid, found, shared_object, root))
        except UnsupportedResource as error:
            refused.append(error)
    if refused:
        raise UnsupportedResource(str(refused[0]), hint=refused[0].hint, also=tuple(refused[1:]))
    with open(f"/proc/{pid}/auxv", "rb") as file:
        auxv = file.read()
    fields: dict[str, object] = {
        "lock_future": lock_future,
        "core_dump_filter": core_dump_filter,
        "vdso": vdso_start,
        "vdso_text": vdso_text,
        "start_code": stat.start_code,
        "end_code": stat.end_code,
        "start_data": stat.start_data,
        "end_data": stat.end_data,
        "start_brk": stat.start_brk,
        "brk": brk,
        "start_stack": stat.start_stack,
        "arg_start": stat.arg_start,
        "arg_end": stat.arg_end,
        "env_start": stat.env_start,
        "env_end": stat.env_end,
        "auxv": auxv,
        "executable": executable[0],
        "executable_object": executable[1],
    }
    return Collected(fields, mappings)


def _without(mappings: list[KernelMapping], ours: tuple[int, int]) -> Iterator[KernelMapping]:
    """Leave out our own area, which may have become one mapping with a neighbour.

    Of the area itself one piece is yielded: the one that begins where it begins.
    """
    for found in mappings:
        if found.end <= ours[0] or found.start >= ours[1]:
            yield found
            continue
        if found.start < ours[0]:
            yield found._replace(end=ours[0])
        if found.start <= ours[0]:
            yield found._replace(start=ours[0], end=min(found.end, ours[1]))
        if found.end > ours[1]:
            yield found._replace(start=ours[1], offset=found.offset)


def _refuse(found: KernelMapping) -> None:
    for flag in found.flags:
        if flag in _REFUSED:
            raise UnsupportedResource(
                f"the mapping at {found.start:#x} ({os.fsdecode(found.name) or 'anonymous'})"
                f" {_REFUSED[flag]}, which cannot be saved yet"
            )


def _mapping(
    pid: int,
    found: KernelMapping,
    shared_object: Callable[[int, KernelMapping], int],
    root: str,
) -> Mapping:
    source, path, object_id = Source.ANONYMOUS, b"", 0
    if found.inode or found.name.startswith(_SYSV):  # whose inode number is its id, 0 at first
        if found.name.endswith(b" (deleted)") and not _exists(root, found):
            source, object_id = Source.SHARED, shared_object(pid, found)
            if found.name.startswith(_SYSV):
                source = Source.SYSV
        else:
            source, path = Source.FILE, found.name
    return Mapping(
        start=found.start,
        end=found.end,
        protection=found.protection,
        shared=found.shared,
        source=source,
        offset=found.offset,
        path=path,
        writable=found.shared and "mw" in found.flags,
        object=object_id,
        advice=[advice for flag, advice in _ADVICE if flag in found.flags],
        grows_down="gd" in found.flags,
        no_reserve="nr" in found.flags,
        locked="lo" in found.flags,
    )


def _exists(root: str, found: KernelMapping) -> bool:
    """Tell whether a name that ends in " (deleted)" is a real file's, not a deleted one's."""
    try:
        return os.stat(os.fsencode(root) + found.name).st_ino == found.inode
    except OSError:
        return False


def check(space: AddressSpace, page_bytes: int) -> None:
    """Check an address space from an image before anything is made of it."""
    end = 0
    for mapping in space.mappings:
        if mapping.start % PAGE or mapping.end % PAGE or mapping.offset % PAGE:
            raise ImageError(f"a mapping at {mapping.start:#x} is not made of whole pages")
        if not end <= mapping.start < mapping.end <= TASK_SIZE:
            raise ImageError(f"the mapping at {mapping.start:#x} overlaps another, or has no place")
        if not _KNOWN_ADVICE.issuperset(mapping.advice):
            # Some of it does harm to pages that others have, too.
            raise ImageError(f"the mapping at {mapping.start:#x} has been given unknown advice")
        end = mapping.end
    position, at = 0, 0
    for extent in space.pages:
        if extent.start % PAGE or extent.length % PAGE or extent.length <= 0:
            raise ImageError(f"the pages at {extent.start:#x} are not whole")
        if extent.store % PAGE or not 0 <= extent.store <= page_bytes - extent.length:
            raise ImageError(f"the pages at {extent.start:#x} lie outside the page store")
        if extent.start < position:
            raise ImageError(f"the pages at {extent.start:#x} are out of order")
        while at < len(space.mappings) and space.mappings[at].end <= extent.start:
            at += 1
        covered = extent.start
        look = at
        while (
            look < len(space.mappings)
            and space.mappings[look].start <= covered < extent.start + extent.length
        ):
            covered = space.mappings[look].end
            look += 1
        if covered < extent.start + extent.length:
            raise ImageError(f"the pages at {extent.start:#x} belong to no mapping")
        position = extent.start + extent.length
    if len(space.auxv) > 1024:
        raise ImageError("an auxiliary vector in the image is too long")


def refuse_wider(
    who: str, space: AddressSpace, rlimits: abc.Mapping[str, tuple[int, int]], bounding: int
) -> None:
    """Refuse more locked memory than the new container's config allows, if it says so.

    Else the limit in force holds: mappings are made without CAP_IPC_LOCK, if it lacks that.
    """
    locked = sum(one.end - one.start for one in space.mappings if one.locked)
    _, most = rlimits.get("RLIMIT_MEMLOCK", (0, locked))
    if locked > most and not bounding >> _CAP_IPC_LOCK & 1:
        raise UnsupportedResource(
            f"{who} has {locked} bytes of locked memory, more than the new container allows",
            hint="raise RLIMIT_MEMLOCK or allow CAP_IPC_LOCK in the bundle's config.json",
        )


def unmap_all(program: Program, keep: tuple[int, int]) -> None:
    """Unmap all but the stub's own area."""
    syscalls.munmap(program, 0x10000, keep[0] - 0x10000)
    syscalls.munmap(program, keep[1], TASK_SIZE - keep[1])


def _with_pages(mappings: Sequence[Mapping], pages: Sequence[PageRange]) -> set[int]:
    """Return the starts of the mappings that have pages of their own; both are in order."""
    found = set()
    at = 0
    for page in pages:
        while at < len(mappings) and mappings[at].end <= page.start:
            at += 1
        look = at
        while look < len(mappings) and mappings[look].start < page.start + page.length:
            found.add(mappings[look].start)
            look += 1
    return found


def restore_mappings(
    program: Program,
    mappings: Sequence[Mapping],
    pages: Sequence[PageRange],
    descriptor_of: Callable[[int, bool], int],
) -> None:
    """Map everything, writable where pages have to be filled in.

    And only there: what is writable counts as promised memory, and a program may reserve terabytes.
    `descriptor_of` gives the stub's descriptor of a mapping's object, perhaps for writing.
    """
    filled = _with_pages(mappings, pages)
    opened: dict[tuple[bytes, bool], int] = {}
    for mapping in mappings:
        if mapping.source is Source.SYSV:
            continue  # attached before
        flags = MAP_FIXED_NOREPLACE | (MAP_SHARED if mapping.shared else MAP_PRIVATE)
        protection = mapping.protection
        if not mapping.shared and mapping.start in filled:
            protection |= PROT_WRITE
        if mapping.no_reserve:
            flags |= MAP_NORESERVE
        fd = -1
        match mapping.source:
            case Source.ANONYMOUS:
                flags |= MAP_ANONYMOUS
                if mapping.grows_down:
                    # Not MAP_STACK: since Linux 6.7 (commit c4608d1bf7c6) it means MADV_NOHUGEPAGE.
                    flags |= MAP_GROWSDOWN
            case Source.SHARED:
                fd = descriptor_of(mapping.object, mapping.writable)
            case Source.FILE:
                key = (mapping.path, mapping.writable)
                if key not in opened:
                    access = os.O_RDWR if mapping.writable else os.O_RDONLY
                    opened[key] = syscalls.openat2(
                        program, mapping.path, access | os.O_CLOEXEC | os.O_NONBLOCK
                    )
                fd = opened[key]
        address = syscalls.mmap(
            program,
            mapping.start,
            mapping.end - mapping.start,
            protection,
            flags,
            fd,
            0 if fd == -1 else mapping.offset,
        )
        program.expect(address, mapping.start)
    for fd in opened.values():
        syscalls.close(program, fd)


def advise(program: Program, mappings: Sequence[Mapping]) -> None:
    """Give the advice that changes how pages are made; run it before pages are filled in."""
    for mapping in mappings:
        for advice in mapping.advice:
            syscalls.madvise(program, mapping.start, mapping.end - mapping.start, advice)


def fill(program: Program, extents: Sequence[PageRange], pages: int, base: int) -> None:
    """Read pages from the page store, descriptor `pages`, whose offset 0 is at `base`."""
    vectors = bytearray()
    offset = length = 0

    def read() -> None:
        nonlocal offset, length
        if vectors:
            count = len(vectors) // _IOVEC.size
            got = syscalls.preadv(program, pages, bytes(vectors), count, base + offset)
            program.expect(got, length)
            vectors.clear()
        offset, length = offset + length, 0

    for extent in extents:
        start, left = extent.start, extent.length
        if offset + length != extent.store:
            read()
            offset = extent.store
        while left:
            if len(vectors) == _IOV_MAX * _IOVEC.size or length >= _LARGEST_READ:
                read()
            piece = min(left, _LARGEST_READ - length)
            vectors += _IOVEC.pack(start, piece)
            start, left, length = start + piece, left - piece, length + piece
    read()


def protect(program: Program, mappings: Sequence[Mapping], pages: Sequence[PageRange]) -> None:
    """Set the final protections, and lock what was locked."""
    filled = _with_pages(mappings, pages)
    for mapping in mappings:
        written = not mapping.shared and mapping.start in filled
        if written and not mapping.protection & PROT_WRITE:
            syscalls.mprotect(
                program, mapping.start, mapping.end - mapping.start, mapping.protection
            )
        if mapping.locked:
            # Pages that were never touched must stay so: lock what is there, and the rest when it
            # comes. Which of mlock() and MLOCK_ONFAULT it was can't be told.
            present = sum(
                min(mapping.end, extent.start + extent.length) - max(mapping.start, extent.start)
                for extent in pages
                if extent.start < mapping.end and mapping.start < extent.start + extent.length
            )
            whole = present == mapping.end - mapping.start
            program.call(
                SYS.MLOCK2,
                mapping.start,
                mapping.end - mapping.start,
                0 if whole else _MLOCK_ONFAULT,
            )


def install_guards(program: Program, space: AddressSpace) -> None:
    """Make guard regions (MADV_GUARD_INSTALL) again."""
    for extent in space.guards:
        syscalls.madvise(program, extent.start, extent.length, _MADV_GUARD_INSTALL)
