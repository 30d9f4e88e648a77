"""The memory of io_urings and contexts of Linux AIO, mapped where processes had it.

The kernel lets nobody choose their addresses: for io_urings (io_uring_get_unmapped_area) neither by
mmap(2) nor by mremap(2). So it is left no choice: all other places are taken for that moment.
"""

from collections.abc import Iterable
from collections.abc import Mapping as MappingOf

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.kernel import io_uring, syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.remote.address import PAGE, TASK_SIZE
from woodfrog.remote.program import Program
from woodfrog.remote.seccomp import Filters
from woodfrog.resources import aio
from woodfrog.resources.files.base import FileRecord
from woodfrog.resources.files.io_uring import IoUring
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

_LOWEST = 0x10000  # what vm.mmap_min_addr is at most, as a rule


def restore(
    program: Program,
    space: AddressSpace,
    files: MappingOf[int, int],
    mapped: Iterable[tuple[int, int]],
) -> None:
    """Map it, in a process that has nothing mapped but the (start, end) ranges in `mapped`."""
    rings = [one for one in space.mappings if one.source in (Source.IO_URING, Source.AIO)]
    if not rings:
        return
    contexts = {one.start: one for one in space.contexts}
    taken = sorted([*mapped, *((one.start, one.end) for one in rings)])
    gaps = []
    position = _LOWEST
    for start, end in taken:
        if start > position:
            gaps.append((position, start))
        position = end
    gaps.append((position, TASK_SIZE))
    # Below the lowest address that programs may use lies a gap that the kernel would take, too.
    program.may_fail(_take(program, PAGE, _LOWEST))
    for start, end in gaps:
        program.expect(_take(program, start, end), start)
    for one in rings:
        program.expect(_take(program, one.start, one.end), one.start)
    for one in rings:
        length = one.end - one.start
        syscalls.munmap(program, one.start, length)
        if one.source is Source.AIO:
            aio.make(program, contexts[one.start])
            continue
        address = syscalls.mmap(
            program, 0, length, one.protection, MAP_SHARED, files[one.object], one.offset
        )
        program.expect(address, one.start)
    for start, end in ((PAGE, _LOWEST), *gaps):
        syscalls.munmap(program, start, end - start)
    aio.count(program, space.contexts)


def _take(program: Program, start: int, end: int) -> int:
    flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE
    return syscalls.mmap(program, start, end - start, 0, flags)


def refuse_forbidden(files: Iterable[FileRecord], seccomp: bytes | None) -> None:
    """Refuse io_urings that the new container's seccomp profile would let nobody make."""
    if seccomp is None or not any(isinstance(file, IoUring) for file in files):
        return
    if not Filters([seccomp], strict=False).allow(SYS.IO_URING_SETUP, [None] * 6):
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
    if not isinstance(files.get(mapping.object), IoUring):
        raise ImageError(
            f"the mapping at {mapping.start:#x} shows an io_uring that the image lacks"
        )
    if not mapping.shared or mapping.offset not in (
        io_uring.OFF_SQ_RING,
        io_uring.OFF_CQ_RING,
        io_uring.OFF_SQES,
    ):
        raise ImageError(f"the mapping at {mapping.start:#x} is not one of an io_uring")
