"""System V shared memory: segments, what is in them, and where processes have them attached."""

import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Mapping as MappingOf
from typing import Any, TypeVar

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import PAGE, SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.huge_pages import page_size, size_flag
from woodfrog.kernel.procfs.maps import read_maps
from woodfrog.remote.address import free_range, round_up
from woodfrog.remote.program import Program
from woodfrog.remote.stub import Stub
from woodfrog.resources import namespaces
from woodfrog.resources.memory import AddressSpace, Mapping, PageRange, Source
from woodfrog.resources.shared_memory import SharedMemory
from woodfrog.resources.sysv_object import (
    IPC_RMID,
    IPC_SET,
    Object,
    common,
    make,
    owned,
    set_setting,
    setting,
)

_SHM_LOCK = 11
_SHM_HUGETLB = 0o4000
_SHM_RDONLY, _SHM_DEST, _SHM_LOCKED = 0o10000, 0o1000, 0o2000
_SHMID_DS = 112
_MREMAP_MAYMOVE, _MREMAP_FIXED = 1, 2
_FORCED = "shm_rmid_forced"
_ATTACHED = rb"/SYSV([0-9a-f]{8}) \(deleted\)"
_LARGEST_READ = 1 << 30
_VDSO_SPAN = 0x40000  # generous
_T = TypeVar("_T", bound=Object)


class Segment(Object, frozen=True, tag="sysv-shared-memory"):
    """A segment of shared memory; `contents` is the id of the record of its pages.

    `removed` (IPC_RMID): it ends with its last attachment; `huge_page`: the size of
    its pages, if they are those of hugetlbfs (SHM_HUGETLB).
    """

    size: int
    locked: bool
    removed: bool
    contents: int
    huge_page: int = 0

    @property
    def length(self) -> int:
        """Return how much is mapped where it is attached."""
        return round_up(self.size, self.huge_page or PAGE)


class OpenSegment:
    """A segment that has not been stored yet, and a descriptor of ours for what is in it."""

    def __init__(self, fields: dict[str, Any], fd: int) -> None:
        self.fields = fields
        self.fd = fd
        # The id of its SharedMemory, given by who collects these.
        self.contents = 0

    def record(self) -> Segment:
        """Return the record."""
        return Segment(contents=self.contents, **self.fields)

    def is_shown_by(self, fd: int, name: bytes) -> bool:
        """Tell whether a mapping of this name, opened as `fd`, shows this very segment.

        Ids are the same in all namespaces, and inode numbers are ids; moments are not.
        """
        ours, theirs = os.fstat(self.fd), os.fstat(fd)
        key = re.fullmatch(_ATTACHED, name)
        if key is None or (ours.st_dev, ours.st_ino, ours.st_ctime_ns, ours.st_size) != (
            theirs.st_dev,
            theirs.st_ino,
            theirs.st_ctime_ns,
            theirs.st_size,
        ):
            return False
        if self.fields["removed"]:
            # It has lost its key, which the mapping still shows.
            self.fields["key"] = _signed(int(key[1], 16))
        return True


def collect(row: dict[str, str]) -> OpenSegment:
    """Read a segment of the ipc namespace that we are in."""
    fields = common(row, "shmid")
    mode = int(row["perms"], 8)
    fields["removed"] = bool(mode & _SHM_DEST)
    fields["locked"] = bool(mode & _SHM_LOCKED)
    fields["size"] = int(row["size"])
    if setting(_FORCED) and not int(row["nattch"]):
        # Then even our looking at it would be its end.
        if int(row["rss"]) or int(row["swap"]):
            raise UnsupportedResource(
                f"has System V shared memory, {fields['id']}, that holds something and that nobody"
                " has attached any more (with kernel.shm_rmid_forced), which cannot be saved",
                hint="set kernel.shm_rmid_forced to 0 in the container",
            )
        return OpenSegment(fields, _nothing(fields["size"]))
    fd = _open_segment(fields["id"])
    fields["huge_page"] = page_size(fd)
    return OpenSegment(fields, fd)


def _nothing(size: int) -> int:
    """Return a descriptor of memory that nobody has written to."""
    fd = os.memfd_create("woodfrog-empty", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    return fd


def _open_segment(identifier: int) -> int:
    """Return a descriptor of a segment's contents."""
    start = HERE.call(SYS.SHMAT, identifier, 0, _SHM_RDONLY)
    try:
        end = next(row[1] for row in read_maps("self") if row[0] == start)
        fd = os.open(f"/proc/self/map_files/{start:x}-{end:x}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        HERE.call(SYS.SHMDT, start)
    return fd


def _signed(key: int) -> int:
    return key - ((key & 0x80000000) << 1)


def leave_unattached(pid: int) -> bool:
    """Have segments stay in a process's ipc namespace although nobody has attached them yet.

    Tells whether `remove_unattached` must be called in the end (kernel.shm_rmid_forced).
    """
    with namespaces.inside(pid, "ipc"):
        if not setting(_FORCED):
            return False
        set_setting(_FORCED, 0)
    return True


def remove_unattached(pid: int) -> None:
    """Have them end with their last attachment. They all count as made by the first process."""
    with namespaces.inside(pid, "ipc"):
        set_setting(_FORCED, 1)


def by_id(objects: Iterable[Object]) -> dict[int, Segment]:
    """Return the segments among the objects of a namespace by their ids."""
    return {one.id: one for one in objects if isinstance(one, Segment)}


def check_mapping(mapping: Mapping, segments: MappingOf[int, Segment]) -> None:
    """Check a mapping from an image that shows a segment."""
    segment = segments.get(mapping.object)
    if segment is None:
        raise ImageError(f"the mapping at {mapping.start:#x} shows memory that the image lacks")
    length = mapping.end - mapping.start
    if not mapping.shared or not 0 <= mapping.offset <= segment.length - length:
        raise ImageError(f"the mapping at {mapping.start:#x} is not one of shared memory")


def restore(
    stub: Stub,
    segment: Segment,
    next_id: int,
    memory: SharedMemory,
    pages: int,
    base: int,
    inherit: Callable[[Sequence[PageRange]], None],
) -> None:
    """Make a segment and read what is in it; it counts as the container's memory."""
    program = stub.program()
    flags = _SHM_HUGETLB | size_flag(segment.huge_page) if segment.huge_page else 0
    make(program, segment, next_id, SYS.SHMGET, segment.key, segment.size, flags=flags)
    program.call(SYS.SHMCTL, segment.id, IPC_SET, owned(segment, _SHMID_DS))
    if segment.locked:
        program.call(SYS.SHMCTL, segment.id, _SHM_LOCK, 0)
    used = [(row[0], row[1]) for row in read_maps(stub.pid)]
    at = free_range(used, segment.length, segment.huge_page or PAGE).start
    program.expect(program.call(SYS.SHMAT, segment.id, at, 0), at)
    offset = base + memory.store
    for extent in memory.extents:
        start, left = at + extent.start, extent.length
        while left:
            piece = min(left, _LARGEST_READ)
            vector = struct.pack("<2Q", start, piece)
            program.expect(syscalls.preadv(program, pages, vector, 1, offset), piece)
            start, left, offset = start + piece, left - piece, offset + piece
            if program.room < PAGE:
                stub.run(program)
                program = stub.program()
    if memory.inherited:
        stub.run(program)
        inherit(memory.inherited_at(at))
        program = stub.program()
    program.call(SYS.SHMDT, at)
    stub.run(program)


def attach(
    program: Program,
    space: AddressSpace,
    segments: MappingOf[int, Segment],
    keep: tuple[int, int],
) -> None:
    """Attach segments where a process had them, before all else is mapped but its stub at `keep`.

    Pieces of one attachment stay such: shmdt(2) detaches all of them.
    """
    attachments: dict[tuple[int, int, bool], list[Mapping]] = {}
    for mapping in space.mappings:
        if mapping.source is Source.SYSV:
            key = (mapping.object, mapping.start - mapping.offset, mapping.writable)
            attachments.setdefault(key, []).append(mapping)
    for (identifier, _, writable), pieces in attachments.items():
        segment = segments[identifier]
        size = segment.length
        flags = 0 if writable else _SHM_RDONLY
        first = pieces[0]
        if first.end - first.start == size:
            program.expect(program.call(SYS.SHMAT, identifier, first.start, flags), first.start)
        else:
            used = [keep, *((one.start, one.end) for one in space.mappings)]
            used.append((space.vdso, space.vdso + _VDSO_SPAN))
            at = free_range(used, size, segment.huge_page or PAGE).start
            program.expect(program.call(SYS.SHMAT, identifier, at, flags), at)
            for piece in pieces:
                _move(program, at + piece.offset, piece)
            syscalls.munmap(program, at, size)
        for piece in pieces:
            if piece.protection != (3 if writable else 1):
                syscalls.mprotect(program, piece.start, piece.end - piece.start, piece.protection)


def _move(program: Program, old: int, piece: Mapping) -> None:
    length = piece.end - piece.start
    how = _MREMAP_MAYMOVE | _MREMAP_FIXED
    program.expect(program.call(SYS.MREMAP, old, length, length, how, piece.start), piece.start)


def remove(program: Program, segments: Iterable[Segment]) -> None:
    """Remove what was removed, once all that show it are attached."""
    for segment in segments:
        if segment.removed:
            program.call(SYS.SHMCTL, segment.id, IPC_RMID, 0)


def removed_last(objects: Iterable[_T]) -> Iterator[_T | Segment]:
    """Yield removed segments last, without a key if another has it by now."""
    removed = []
    keys = {0}
    for one in objects:
        if isinstance(one, Segment) and one.removed:
            removed.append(one)
            continue
        if isinstance(one, Segment):
            keys.add(one.key)
        yield one
    for one in removed:
        fields = {name: getattr(one, name) for name in one.__struct_fields__}
        yield Segment(**{**fields, "key": 0 if one.key in keys else one.key})
        keys.add(one.key)
