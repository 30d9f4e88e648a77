"""Huge pages of hugetlbfs: whether there are enough of each size for what an image has."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from woodfrog.errors import UnsupportedResource
from woodfrog.kernel.huge_pages import pool, pool_directory
from woodfrog.resources.memory import AddressSpace, Mapping
from woodfrog.resources.shared_memory import SharedMemory

if TYPE_CHECKING:
    from woodfrog.resources.sysv_memory import Segment

_Ranges = Iterable[tuple[int, int]]


def refuse_too_many(
    memory: Iterable[SharedMemory], segments: Iterable[Segment], spaces: Iterable[AddressSpace]
) -> None:
    """Refuse an image that needs more huge pages than this machine can give."""
    for size, count in sorted(_needed(memory, segments, spaces).items()):
        found = pool(size)
        shown = f"{size >> 30} GiB" if size >> 30 else f"{size >> 20} MiB"
        if found is None:
            raise UnsupportedResource(
                f"the image needs huge pages of {shown}, which this machine does not have"
            )
        if count > found.available:
            lacking = count - found.available
            raise UnsupportedResource(
                f"the image needs {count} huge pages of {shown}, of which {lacking} are lacking:"
                f" {found.available} are free",
                hint=f"echo {found.total + lacking} > {pool_directory(size)}/nr_hugepages",
            )


def _needed(
    memory: Iterable[SharedMemory], segments: Iterable[Segment], spaces: Iterable[AddressSpace]
) -> dict[int, int]:
    """Count the pages of each size that are there or reserved, as the kernel does."""
    sizes = {one.id: one.huge_page for one in memory if one.huge_page}
    used: dict[int, list[tuple[int, int]]] = {
        one.id: [(extent.start, extent.start + extent.length) for extent in one.extents]
        for one in memory
        if one.huge_page
    }
    needed: dict[int, int] = defaultdict(int)
    for segment in segments:
        if segment.contents in used:
            used[segment.contents].append((0, segment.length))
    for space in spaces:
        for mapping in space.mappings:
            length = mapping.end - mapping.start
            if not mapping.huge_page or (mapping.shared and mapping.object not in used):
                continue  # what is in a file is made with that
            if mapping.shared and not mapping.no_reserve:
                used[mapping.object].append((mapping.offset, mapping.offset + length))
            elif not mapping.shared and mapping.reserves:
                needed[mapping.huge_page] += length // mapping.huge_page
            elif not mapping.shared:
                needed[mapping.huge_page] += _count(_own(space, mapping), mapping.huge_page)
    for number, ranges in used.items():
        needed[sizes[number]] += _count(ranges, sizes[number])
    return needed


def _own(space: AddressSpace, mapping: Mapping) -> Iterator[tuple[int, int]]:
    """Go through the pages that a mapping has for itself."""
    at = bisect_right(space.pages, mapping.start, key=lambda one: one.start) - 1
    for one in space.pages[max(at, 0) :]:
        if one.start >= mapping.end:
            return
        start, end = max(one.start, mapping.start), min(one.start + one.length, mapping.end)
        if start < end:
            yield start, end


def _count(ranges: _Ranges, size: int) -> int:
    """Count the pages of a size that ranges touch."""
    count, last = 0, -1
    for start, end in sorted(ranges):
        first, final = max(start // size, last + 1), (end - 1) // size
        count += max(0, final - first + 1)
        last = max(last, final)
    return count
