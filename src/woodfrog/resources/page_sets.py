"""Pages of an address space as sets: by where they are, and by where they stand in the store.

Sets of pages and ranges are in order, and nothing in them overlaps.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence

from woodfrog.resources.memory import PageRange

Ranges = Sequence[tuple[int, int]]
# By so much it takes longer to look for one of many than to pass over it.
_FEWER = 4
_NOWHERE = (1 << 64, 1 << 65)  # behind all addresses


def ranges(pages: Iterable[PageRange]) -> list[tuple[int, int]]:
    """Return the (start, end) of pages."""
    return [(one.start, one.start + one.length) for one in pages]


def within(pages: Sequence[PageRange], there: Ranges) -> list[PageRange]:
    """Return the pages that lie in ranges."""
    if len(pages) * _FEWER < len(there):
        return _within_many(pages, there)
    if len(there) * _FEWER > len(pages):
        return _within_as_many(pages, there)
    found: list[PageRange] = []
    starts = [page.start for page in pages]
    ends = [page.start + page.length for page in pages]
    for start, end in there:
        some = [*pages[_overlapping(starts, ends, start, end)]]
        if some:
            some[0] = _trimmed(some[0], start, end)
            some[-1] = _trimmed(some[-1], start, end)
            found += some
    return found


def without(pages: Sequence[PageRange], there: Ranges) -> list[PageRange]:
    """Return the pages that lie in none of the ranges."""
    if len(pages) * _FEWER < len(there):
        return _without_many(pages, there)
    return [part for part, place in _cut(pages, there) if place < 0] if there else list(pages)


def outside(extents: Ranges, pages: Sequence[PageRange]) -> list[tuple[int, int]]:
    """Return what is left of ranges when pages are taken out."""
    left: list[tuple[int, int]] = []
    starts = [page.start for page in pages]
    ends = [page.start + page.length for page in pages]
    for start, end in extents:
        within = _overlapping(starts, ends, start, end)
        begins = [start, *ends[within]]
        left += [(a, b) for a, b in zip(begins, [*starts[within], end], strict=True) if a < b]
    return left


def common(one: Ranges, other: Ranges) -> list[tuple[int, int]]:
    """Return what ranges and others have in common."""
    few, many = sorted((one, other), key=len)
    starts, ends = [start for start, _ in many], [end for _, end in many]
    found: list[tuple[int, int]] = []
    for start, end in few:
        some = [*many[_overlapping(starts, ends, start, end)]]
        if some:
            some[0] = max(start, some[0][0]), some[0][1]
            some[-1] = some[-1][0], min(end, some[-1][1])
            found += some
    return found


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
                yield page if start == page.start else _part(start, end, away), -1
                break
            if there[at][0] <= page.start and end <= there[at][1]:
                yield page, at
                break
            if there[at][0] > start:
                yield _part(start, there[at][0], away), -1
                start = there[at][0]
            stop = min(end, there[at][1])
            yield _part(start, stop, away), at
            start = stop


def _part(start: int, end: int, away: int) -> PageRange:
    return PageRange(start=start, length=end - start, store=start + away)


def _within_as_many(pages: Sequence[PageRange], there: Ranges) -> list[PageRange]:
    found: list[PageRange] = []
    left = iter(there)
    begin, stop = next(left, _NOWHERE)
    for page in pages:
        start, end = page.start, page.start + page.length
        while stop <= start:
            begin, stop = next(left, _NOWHERE)
        while begin < end:
            # Of most there is nothing to be cut.
            whole = begin <= start and end <= stop
            found.append(page if whole else _trimmed(page, begin, stop))
            if stop >= end:
                break
            begin, stop = next(left, _NOWHERE)
    return found


def _within_many(pages: Sequence[PageRange], there: Ranges) -> list[PageRange]:
    found: list[PageRange] = []
    starts, ends = [start for start, _ in there], [end for _, end in there]
    for page in pages:
        start, end, away = page.start, page.start + page.length, page.store - page.start
        some = [*there[_overlapping(starts, ends, start, end)]]
        if some:
            some[0] = max(start, some[0][0]), some[0][1]
            some[-1] = some[-1][0], min(end, some[-1][1])
            found += [PageRange(start=a, length=b - a, store=a + away) for a, b in some]
    return found


def _without_many(pages: Sequence[PageRange], there: Ranges) -> list[PageRange]:
    left: list[PageRange] = []
    starts, ends = [start for start, _ in there], [end for _, end in there]
    for page in pages:
        start, end, away = page.start, page.start + page.length, page.store - page.start
        some = _overlapping(starts, ends, start, end)
        between = zip([start, *ends[some]], [*starts[some], end], strict=True)
        left += [_part(begin, stop, away) for begin, stop in between if begin < stop]
    return left


def _trimmed(page: PageRange, start: int, end: int) -> PageRange:
    first, last = max(start, page.start), min(end, page.start + page.length)
    if last - first == page.length:
        return page
    return PageRange(start=first, length=last - first, store=page.store + first - page.start)


def _overlapping(starts: list[int], ends: list[int], start: int, end: int) -> slice:
    """Return which of many ranges, in order, have something in common with one."""
    return slice(bisect_right(ends, start), bisect_left(starts, end))
