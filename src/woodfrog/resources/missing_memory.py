"""Memory that a process may be without for a while: it is filled in while the process runs."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import msgspec

from woodfrog.resources.memory import Mapping, PageRange, Source

_MADV_HUGEPAGE, _MADV_NOHUGEPAGE, _MADV_WIPEONFORK = 14, 15, 18
_LARGE, _LARGE_PIECE = 1 << 20, 64 << 10


class Division(msgspec.Struct, frozen=True):
    """The pages of an address space: those that it needs at once, and those that may come later.

    `mappings` are those whose pages may, as (start, end).
    """

    at_once: list[PageRange]
    later: list[PageRange]
    mappings: list[tuple[int, int]]


def divide(
    mappings_of: Sequence[Mapping], pages: Iterable[PageRange], may_wait: Callable[[Mapping], bool]
) -> Division:
    """Divide pages, which are in order, by the mappings that they lie in."""
    at_once: list[PageRange] = []
    later: list[PageRange] = []
    mappings: list[tuple[int, int]] = []
    waiting = iter(pages)
    page = next(waiting, None)
    for mapping in mappings_of:
        waits = may_wait(mapping)
        before = len(later)
        while page is not None and page.start < mapping.end:
            length = min(page.start + page.length, mapping.end) - page.start
            into = later if waits else at_once
            if length == page.length:
                into.append(page)
                page = next(waiting, None)
            else:
                into.append(PageRange(start=page.start, length=length, store=page.store))
                page = PageRange(
                    start=page.start + length,
                    length=page.length - length,
                    store=page.store + length,
                )
        if len(later) > before:
            mappings.append((mapping.start, mapping.end))
    return Division(at_once=at_once, later=later, mappings=mappings)


def may_wait(mapping: Mapping) -> bool:
    """Tell whether pages may come while the process runs: userfaultfd(2) knows of all that happens.

    It takes none of files. Locked memory must be there, a stack holds arguments that others read,
    and of memory that is empty after a fork the kernel doesn't tell. Pages of hugetlbfs would have
    to come as a whole.
    """
    return (
        mapping.source is Source.ANONYMOUS
        and not mapping.shared
        and not mapping.huge_page
        and not mapping.droppable
        and not mapping.locked
        and not mapping.grows_down
        and _MADV_WIPEONFORK not in mapping.advice
    )


def large(
    mappings_of: Sequence[Mapping], pages: Iterable[PageRange], *, huge_by_default: bool
) -> Callable[[Mapping], bool]:
    """Return what tells the mappings that userfaultfd(2) fills in faster than a write would.

    They have many pages in few pieces, and none of their pages would be a transparent huge one:
    what comes by userfaultfd never is. `huge_by_default` tells whether memory is, unasked.
    """

    def has_small_pages(mapping: Mapping) -> bool:
        if huge_by_default and _MADV_NOHUGEPAGE not in mapping.advice:
            return False
        return _MADV_HUGEPAGE not in mapping.advice and may_wait(mapping)

    division = divide(mappings_of, pages, has_small_pages)
    ends = iter(division.mappings)
    sizes: dict[int, tuple[int, int]] = defaultdict(lambda: (0, 0))
    start = end = 0
    for page in division.later:
        while page.start >= end:
            start, end = next(ends)
        pieces, length = sizes[start]
        sizes[start] = (pieces + 1, length + page.length)

    def is_large(mapping: Mapping) -> bool:
        pieces, length = sizes[mapping.start]
        return length >= max(_LARGE, pieces * _LARGE_PIECE)

    return is_large


class Missing:
    """The pages that an address space lacks, and where they stand in the page store."""

    def __init__(self, pages: Iterable[PageRange]) -> None:
        self.bytes = 0
        self._starts: list[int] = []
        self._ranges: list[tuple[int, int, int]] = []  # start, end, store; in order
        for page in pages:
            self._insert(page.start, page.start + page.length, page.store)

    def __len__(self) -> int:
        return len(self._ranges)

    def copy(self) -> "Missing":
        """Return what a child lacks that was just forked."""
        child = Missing(())
        child.bytes = self.bytes
        child._starts, child._ranges = self._starts.copy(), self._ranges.copy()
        return child

    def at(self, address: int) -> tuple[int, int, int] | None:
        """Return the (start, end, store) from an address on, if it is missing."""
        place = bisect_right(self._starts, address) - 1
        if place < 0:
            return None
        start, end, store = self._ranges[place]
        return (address, end, store + address - start) if address < end else None

    def first(self) -> tuple[int, int, int]:
        """Return the first range."""
        return self._ranges[0]

    def take(self, start: int, end: int) -> list[tuple[int, int, int]]:
        """No longer miss what lies in a range; returns that."""
        place = max(bisect_right(self._starts, start) - 1, 0)
        first = place
        taken: list[tuple[int, int, int]] = []
        rest: list[tuple[int, int, int]] = []
        while place < len(self._ranges) and self._ranges[place][0] < end:
            low, high, store = self._ranges[place]
            place += 1
            cut_low, cut_high = max(low, start), min(high, end)
            if cut_low >= cut_high:
                rest.append((low, high, store))
                continue
            if low < cut_low:
                rest.append((low, cut_low, store))
            taken.append((cut_low, cut_high, store + cut_low - low))
            if cut_high < high:
                rest.append((cut_high, high, store + cut_high - low))
        self._ranges[first:place] = rest
        self._starts[first:place] = [one[0] for one in rest]
        self.bytes -= sum(high - low for low, high, _ in taken)
        return taken

    def move(self, source: int, target: int, length: int) -> None:
        """Miss at another address what was missing at one: the mapping has moved."""
        self.take(target, target + length)
        for start, end, store in self.take(source, source + length):
            self._insert(start - source + target, end - source + target, store)

    def _insert(self, start: int, end: int, store: int) -> None:
        place = bisect_right(self._starts, start)
        self._starts.insert(place, start)
        self._ranges.insert(place, (start, end, store))
        self.bytes += end - start
