"""The memory of io_urings and contexts of Linux AIO, mapped where processes had it.

The kernel lets nobody choose their addresses: for io_urings (io_uring_get_unmapped_area) neither by
mmap(2) nor by mremap(2). So it is left no choice: all other places are taken for that moment.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from collections.abc import Mapping as MappingOf
from contextlib import contextmanager
from typing import TYPE_CHECKING

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import PAGE, SYS
from woodfrog.kernel.capability import CAP_SYS_ADMIN
from woodfrog.remote.address import TASK_SIZE
from woodfrog.remote.program import Program
from woodfrog.remote.seccomp import Filters
from woodfrog.resources import aio
from woodfrog.resources.files.base import FileRecord
from woodfrog.resources.memory import (
    MAP_ANONYMOUS,
    MAP_FIXED_NOREPLACE,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    AddressSpace,
    Mapping,
    Source,
)

if TYPE_CHECKING:
    from woodfrog.resources.files.io_uring import AnyIoUring

_LOWEST = 0x10000  # what vm.mmap_min_addr is at most, as a rule


def restore(
    program: Program,
    space: AddressSpace,
    files: MappingOf[int, int],
    mapped: Iterable[tuple[int, int]],
) -> None:
    """Map it, in a process that has nothing mapped but the (start, end) ranges in `mapped`.

    The places of rings that come last are taken: see `map_last`.
    """
    rings = [one for one in space.mappings if one.source in (Source.IO_URING, Source.AIO)]
    if not rings:
        return
    contexts = {one.start: one for one in space.contexts}
    comes_last = False
    with _only_places(program, rings, mapped):
        for one in rings:
            if one.source is Source.IO_URING and one.object not in files:
                comes_last = True
                continue
            syscalls.munmap(program, one.start, one.end - one.start)
            if one.source is Source.AIO:
                aio.make(program, contexts[one.start])
            else:
                _map_ring(program, one, files[one.object])
    if comes_last:
        program.may_fail(_take(program, PAGE, _LOWEST))
    aio.count(program, space.contexts)


def map_last(
    program: Program, rings: Sequence[Mapping], fd: int, mapped: Iterable[tuple[int, int]]
) -> None:
    """Map a ring in a process whose other memory, `mapped`, is all there."""
    places = {(one.start, one.end) for one in rings}
    others = [one for one in mapped if one not in places and _LOWEST <= one[0] < TASK_SIZE]
    for one in rings:
        syscalls.munmap(program, one.start, one.end - one.start)
    with _only_places(program, rings, others):
        for one in rings:
            syscalls.munmap(program, one.start, one.end - one.start)
            _map_ring(program, one, fd)
            for advice in one.advice:
                syscalls.madvise(program, one.start, one.end - one.start, advice)


def _map_ring(program: Program, one: Mapping, fd: int) -> None:
    length = one.end - one.start
    address = syscalls.mmap(program, 0, length, one.protection, MAP_SHARED, fd, one.offset)
    program.expect(address, one.start)


@contextmanager
def _only_places(
    program: Program, rings: Sequence[Mapping], mapped: Iterable[tuple[int, int]]
) -> Iterator[None]:
    """Take all memory that is not `mapped`; but for where the rings belong it is free again."""
    taken = sorted([*mapped, *((one.start, one.end) for one in rings)])
    gaps = []
    position = _LOWEST
    for start, end in taken:
        if start > position:
            gaps.append((position, start))
        position = max(position, end)
    if position < TASK_SIZE:
        gaps.append((position, TASK_SIZE))
    # Below the lowest address that programs may use lies a gap that the kernel would take, too. Not
    # everybody may take it: it may still be taken from before.
    program.may_fail(_take(program, PAGE, _LOWEST))
    for start, end in gaps:
        program.expect(_take(program, start, end), start)
    for one in rings:
        program.expect(_take(program, one.start, one.end), one.start)
    yield
    for start, end in ((PAGE, _LOWEST), *gaps):
        syscalls.munmap(program, start, end - start)


def _take(program: Program, start: int, end: int) -> int:
    flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE
    return syscalls.mmap(program, start, end - start, 0, flags)


def refuse_forbidden(rings: Collection[AnyIoUring], seccomp: bytes | None, bounding: int) -> None:
    """Refuse io_urings that this machine or the new container's profile lets nobody make."""
    if not rings:
        return
    from woodfrog.kernel import io_uring

    disabled = io_uring.disabled()
    if disabled > 1 or (disabled and not bounding >> CAP_SYS_ADMIN & 1):
        raise UnsupportedResource(
            "the image has io_urings, which programs may not make on this machine"
            f" (kernel.io_uring_disabled is {disabled})",
            hint="sysctl kernel.io_uring_disabled=0",
        )
    if seccomp is not None and not Filters([seccomp], strict=False).allow(
        SYS.IO_URING_SETUP, [None] * 6
    ):
        raise UnsupportedResource(
            "the image has io_urings, which the new container's seccomp profile forbids",
            hint="allow io_uring_setup(2) in linux.seccomp of config.json",
        )


def check(space: AddressSpace, files: MappingOf[int, FileRecord]) -> None:
    """Check the mappings of an image that show such memory; refuse what is larger here."""
    contexts = set()
    for mapping in space.mappings:
        if mapping.source is Source.AIO:
            contexts.add((mapping.start, mapping.end))
        if mapping.source is Source.IO_URING:
            _check_ring(mapping, files)
    aio.check(space.contexts, contexts)
    aio.refuse_larger(space.contexts)


def _check_ring(mapping: Mapping, files: MappingOf[int, FileRecord]) -> None:
    from woodfrog.kernel import io_uring
    from woodfrog.resources.files.io_uring import AnyIoUring

    if not isinstance(files.get(mapping.object), AnyIoUring):
        raise ImageError(
            f"the mapping at {mapping.start:#x} shows an io_uring that the image lacks"
        )
    if not mapping.shared or mapping.offset not in (
        io_uring.OFF_SQ_RING,
        io_uring.OFF_CQ_RING,
        io_uring.OFF_SQES,
    ):
        raise ImageError(f"the mapping at {mapping.start:#x} is not one of an io_uring")
