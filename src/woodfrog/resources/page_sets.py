"""Pages of an address space as sets: by where they are, and by where they stand in the store.

Sets of pages and ranges are in order, and nothing in them overlaps.
"""

from collections.abc import Iterable, Iterator, Sequence

from woodfrog.resources.memory import PageRange

Ranges = Sequence[tuple[int, int]]


def ranges(pages: Iterable[PageRange]) -> list[tuple[int, int]]:
    """Return the (start, end) of pages."""
    return [(one.start, one.start + one.length) for one in pages]


def within(pages: Iterable[PageRange], there: Ranges) -> list[PageRange]:
    """Return the pages that lie in ranges."""
    return [part for part, place in _cut(pages, there) if place >= 0]


def without(pages: Iterable[PageRange], there: Ranges) -> list[PageRange]:
    """Return the pages that lie in none of the ranges."""
    return [part for part, place in _cut(pages, there) if place < 0] if there else list(pages)


def same(pages: Iterable[PageRange], others: Sequence[PageRange]) -> list[PageRange]:
    """Return the pages that others have at the same addresses, and from the same store offsets."""
    away = {one.store - one.start for one in others}
    # Of most there is nothing to be cut.
    pages = [one for one in pages if one.store - one.start in away]
    return [
        part
        for part, place in (_cut(pages, ranges(others)) if pages else ())
        if place >= 0 and part.store - part.start == others[place].store - others[place].start
    ]


def gaps(start: int, end: int, there: Ranges) -> Iterator[tuple[int, int]]:
    """Yield what of a range lies between others."""
    for begin, stop in there:
        if stop <= start or begin >= end:
            continue
        if begin > start:
            yield start, begin
        start = max(start, stop)
    if start < end:
        yield start, end


def _cut(pages: Iterable[PageRange], there: Ranges) -> Iterator[tuple[PageRange, int]]:
    """Cut pages at the ends of ranges; of each part tell in which range it lies, or -1."""
    at = 0
    for page in pages:
        start, end, away = page.start, page.start + page.length, page.store - page.start
        while start < end:
            while at < len(there) and there[at][1] <= start:
                at += 1
            if at == len(there) or there[at][0] >= end:
                yield _part(start, end, away), -1
                break
            if there[at][0] > start:
                yield _part(start, there[at][0], away), -1
                start = there[at][0]
            stop = min(end, there[at][1])
            yield _part(start, stop, away), at
            start = stop


def _part(start: int, end: int, away: int) -> PageRange:
    return PageRange(start=start, length=end - start, store=start + away)
