"""The address space of a process: mappings, their own pages, and the mm's fields."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from typing import Any

import msgspec
from msgspec.structs import replace

from woodfrog.errors import UnsupportedResource
from woodfrog.image.record import Part
from woodfrog.kernel.pagemap import Pagemap, Walk
from woodfrog.kernel.procfs.maps import Mapping as KernelMapping
from woodfrog.kernel.procfs.status import Stat
from woodfrog.remote.vdso import VDSO_NAMES
from woodfrog.resources import memory_flags
from woodfrog.resources.aio import Context
from woodfrog.resources.memory_policy import Policy

PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4
MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS, MAP_GROWSDOWN = 0x01, 0x02, 0x20, 0x100
MAP_NORESERVE, MAP_FIXED_NOREPLACE = 0x4000, 0x100000

_SYSV = b"/SYSV"
# Mappings so near to each other are looked at together, whatever is between them.
_NEAR = 1 << 20
_LARGE = 4 << 20
_IGNORED_NAMES = (b"[vsyscall]", b"[uprobes]")


class Source(StrEnum):
    """What a mapping shows."""

    ANONYMOUS = "anonymous"
    FILE = "file"
    SHARED = "shared"  # a shared memory object or a deleted file, by its id
    SYSV = "sysv"  # System V shared memory, by its shmid
    OPENED = "opened"  # the memory of an open file, by its id
    IO_URING = "io_uring"  # the memory of an io_uring, by the id of the file
    AIO = "aio"  # a context of Linux AIO


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
    huge_page: int = 0  # bytes of a page of hugetlbfs, else 0
    inherited: bool = False  # private pages of hugetlbfs: a parent may have reserved them
    lock_on_fault: bool | None = None  # None: the kernel didn't tell
    droppable: bool = False
    sealed: bool = False
    name: bytes = b""  # PR_SET_VMA_ANON_NAME
    policy: Policy | None = None

    @property
    def reserves(self) -> bool:
        """Tell whether memory is promised to it when it is made."""
        return not (self.no_reserve or self.inherited)

    @property
    def is_anonymous(self) -> bool:
        """Tell whether no page of it can be one of a file's."""
        return self.source is Source.ANONYMOUS and not self.huge_page

    @property
    def is_private_huge(self) -> bool:
        """Tell whether it has huge pages of hugetlbfs for itself."""
        return bool(self.huge_page) and not self.shared


class Extent(Part, frozen=True, array_like=True):
    """Pages that stand one after the other."""

    start: int
    length: int


class PageRange(Part, frozen=True, array_like=True):
    """Pages of a process, and where the first of them stands in the page store.

    From `layout.ANCESTOR` on that is the page store of the parent image, and so on.
    """

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
    lock_future_on_fault: bool = False
    contexts: list[Context] = []
    finishes_calls: bool = False  # whether the code of remote.cut_calls is behind its vDSO


# Of a process that has another's.
NONE = AddressSpace(
    mappings=[],
    pages=[],
    guards=[],
    lock_future=False,
    core_dump_filter=0,
    vdso=0,
    vdso_text=0,
    start_code=0,
    end_code=0,
    start_data=0,
    end_data=0,
    start_brk=0,
    brk=0,
    start_stack=0,
    arg_start=0,
    arg_end=0,
    env_start=0,
    env_end=0,
    auxv=b"",
    executable=b"",
)


class Collected:
    """An address space whose pages have not been looked for yet."""

    def __init__(self, fields: dict[str, object], mappings: list[Mapping]) -> None:
        self.fields = fields
        self.mappings = mappings
        self.lacks_flags = False
        self._guards: list[Extent] = []

    def find_pages(
        self,
        pid: int,
        mappings: Iterable[Mapping],
        walked: dict[tuple[int, int], Walk] | None = None,
    ) -> list[tuple[int, int]]:
        """Return the pages that private mappings have for themselves, and note guard pages.

        `pid` is a process that has them: this one, or a copy that it has made by fork(2). `walked`
        is what is known of mappings already, by their starts and ends.
        """
        extents: list[tuple[int, int]] = []
        known = walked or {}
        left: list[Mapping] = []
        for one in mappings:
            if one.shared:
                continue
            if walk := known.get((one.start, one.end)):
                extents += walk.own
                self._note_guards(walk.guards)
            else:
                left.append(one)
        with Pagemap(pid) as pagemap:
            for near in _neighbours(left):
                anonymous = all(one.is_anonymous for one in near)
                own, guards = pagemap.own_and_guards(
                    near[0].start, near[-1].end, anonymous=anonymous
                )
                extents += _within(near, own)
                self._note_guards(_within(near, guards))
        if known:
            extents.sort()
        return extents

    def find_shared_guards(self, pid: int) -> None:
        """Note guard pages in shared mappings, which a copy of the process doesn't have."""
        shared = [one for one in self.mappings if one.shared]
        if shared:
            with Pagemap(pid) as pagemap:
                for one in shared:
                    self._note_guards(pagemap.guard_regions(one.start, one.end))

    def _note_guards(self, ranges: Iterable[tuple[int, int]]) -> None:
        self._guards += (Extent(start=start, length=end - start) for start, end in ranges)

    def set_policies(self, policies: Sequence[Policy | None]) -> None:
        """Note the memory policy of each mapping."""
        self.mappings = [
            msgspec.structs.replace(one, policy=policy) if policy else one
            for one, policy in zip(self.mappings, policies, strict=True)
        ]

    def add_flags(
        self,
        pid: int,
        listed: list[KernelMapping],
        ours: tuple[int, int],
        *,
        noted: bool = False,
    ) -> None:
        """Note what only smaps tells of the mappings, which were listed by maps.

        `listed` is what smaps tells of this process or of a copy of it, which is `pid`; `ours` and
        `noted` are those of `collect`.
        """
        known = {found.start: found for found in _without(listed, ours)}
        for one in self.mappings:
            memory_flags.refuse(known[one.start], noted=noted)
        self.mappings = [
            msgspec.structs.replace(one, **_told_by_flags(pid, known[one.start]))
            for one in self.mappings
        ]
        self.lacks_flags = False

    def note_inherited(self, parent: "Collected") -> None:
        """Note which private mappings of huge pages came from the parent."""
        theirs = {(one.object, one.path) for one in parent.mappings if one.is_private_huge}
        self.mappings = [
            msgspec.structs.replace(one, inherited=True)
            if one.is_private_huge and (one.object, one.path) in theirs
            else one
            for one in self.mappings
        ]

    @classmethod
    def none(cls) -> "Collected":
        """Return what is collected of a process that has another's address space."""
        fields = msgspec.structs.asdict(NONE)
        return cls(
            {n: v for n, v in fields.items() if n not in ("mappings", "pages", "guards")}, []
        )

    @property
    def mapped_paths(self) -> set[bytes]:
        """Return the paths of the files that are mapped."""
        return {one.path for one in self.mappings if one.source is Source.FILE}

    def record(self, pages: list[PageRange]) -> AddressSpace:
        """Return the record, once it is known where the pages are stored."""
        guards = sorted(self._guards, key=lambda guard: guard.start)
        return AddressSpace(mappings=self.mappings, pages=pages, guards=guards, **self.fields)  # type: ignore[arg-type]


def _neighbours(mappings: Iterable[Mapping]) -> Iterator[list[Mapping]]:
    """Divide mappings where others, or nothing, may be between them for long.

    And large ones that have no pages of files from others, as to look at them takes much less time.
    """
    near: list[Mapping] = []
    for one in mappings:
        if near and (one.start - near[-1].end > _NEAR or _is_apart(near[-1], one)):
            yield near
            near = []
        near.append(one)
    if near:
        yield near


def _is_apart(one: Mapping, other: Mapping) -> bool:
    large = max(one.end - one.start, other.end - other.start) >= _LARGE
    return large and one.is_anonymous != other.is_anonymous


def _within(
    mappings: Sequence[Mapping], ranges: Iterable[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """Take from ranges what is in mappings, each apart; both are sorted."""
    place = 0
    for start, end in ranges:
        while place < len(mappings) and mappings[place].start < end:
            one = mappings[place]
            first, last = max(start, one.start), min(end, one.end)
            if first < last:
                yield first, last
            if one.end > end:
                break
            place += 1


def collect(
    pid: int,
    stat: Stat,
    listed: list[KernelMapping],
    ours: tuple[int, int],
    shared_object: Callable[[int, KernelMapping], int],
    root: str,
    core_dump_filter: int,
    executable: tuple[bytes, int],
    *,
    noted: bool,
) -> Collected:
    """Turn the mappings of a held process, as smaps has listed them, into records.

    `ours` are the addresses of our scratch area, `shared_object` gives the id of what is behind a
    mapping and has no path, `root` leads to the container's root for checking paths; `executable`
    is a path and such an id, or 0. `noted` if we have the kernel note what is written to.
    """
    mappings: list[Mapping] = []
    refused: list[UnsupportedResource] = []
    lock_future = lock_future_on_fault = False
    vdso_start = vdso_text = 0
    brk = stat.start_brk
    for found in _without(listed, ours):
        if found.start == ours[0]:
            # New memory is locked as mlockall(MCL_FUTURE) has it, which nothing else tells.
            lock_future = "lo" in found.flags
            lock_future_on_fault = "lf" in found.flags
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
            memory_flags.refuse(found, noted=noted)
            mappings.append(_mapping(pid, found, shared_object, root))
        except UnsupportedResource as error:
            refused.append(error)
    if refused:
        raise UnsupportedResource(str(refused[0]), hint=refused[0].hint, also=tuple(refused[1:]))
    fields = {
        "lock_future": lock_future,
        "lock_future_on_fault": lock_future_on_fault,
        "core_dump_filter": core_dump_filter,
        "vdso": vdso_start,
        "vdso_text": vdso_text,
        "brk": brk,
        "executable": executable[0],
        "executable_object": executable[1],
    }
    return Collected(fields | _parts(pid, stat), mappings)


def _parts(pid: int, stat: Stat) -> dict[str, object]:
    """Return where the kernel believes a process's parts to be, as of prctl(PR_SET_MM)."""
    with open(f"/proc/{pid}/auxv", "rb") as file:
        auxv = file.read()
    return {
        "start_code": stat.start_code,
        "end_code": stat.end_code,
        "start_data": stat.start_data,
        "end_data": stat.end_data,
        "start_brk": stat.start_brk,
        "start_stack": stat.start_stack,
        "arg_start": stat.arg_start,
        "arg_end": stat.arg_end,
        "env_start": stat.env_start,
        "env_end": stat.env_end,
        "auxv": auxv,
    }


def _without(mappings: list[KernelMapping], ours: tuple[int, int]) -> Iterator[KernelMapping]:
    """Leave out our own area, which may have become one mapping with a neighbour.

    Of the area itself one piece is yielded: the one that begins where it begins.
    """
    for found in mappings:
        if found.end <= ours[0] or found.start >= ours[1]:
            yield found
            continue
        if found.start < ours[0]:
            yield replace(found, end=ours[0])
        if found.start <= ours[0]:
            yield replace(found, start=ours[0], end=min(found.end, ours[1]))
        if found.end > ours[1]:
            yield replace(found, start=ours[1], offset=found.offset)


def _mapping(
    pid: int,
    found: KernelMapping,
    shared_object: Callable[[int, KernelMapping], int],
    root: str,
) -> Mapping:
    source, path, object_id = Source.ANONYMOUS, b"", 0
    if found.name == memory_flags.AIO:
        source = Source.AIO
    elif found.name == memory_flags.IO_URING:
        source, object_id = Source.IO_URING, shared_object(pid, found)
    elif found.name.startswith(memory_flags.OPENED):
        source, object_id = Source.OPENED, shared_object(pid, found)
    elif found.inode or found.name.startswith(_SYSV):  # whose inode number is its id, 0 at first
        deleted = found.name.endswith(b" (deleted)") and not _exists(root, found)
        if deleted or found.name.startswith(memory_flags.NAMED_SHARED):
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
        object=object_id,
        name=memory_flags.given_name(found.name),
        **_told_by_flags(pid, found),
    )


def _told_by_flags(pid: int, found: KernelMapping) -> dict[str, Any]:
    return {
        "writable": found.shared and "mw" in found.flags,
        "advice": list(memory_flags.advice(found.flags)),
        "grows_down": "gd" in found.flags,
        "no_reserve": "nr" in found.flags,
        "locked": "lo" in found.flags,
        "lock_on_fault": memory_flags.locks_on_fault(found),
        "droppable": "dp" in found.flags,
        "sealed": "sl" in found.flags,
        "huge_page": memory_flags.huge_page(pid, found),
    }


def _exists(root: str, found: KernelMapping) -> bool:
    """Tell whether a name that ends in " (deleted)" is a real file's, not a deleted one's."""
    try:
        return os.stat(os.fsencode(root) + found.name).st_ino == found.inode
    except OSError:
        return False
