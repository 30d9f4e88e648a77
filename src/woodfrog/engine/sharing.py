"""Pages that a process still shares with its parent or a sibling since fork(2): stored once.

Both have the same page frame at the same address (/proc/PID/pagemap).
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator

from woodfrog.kernel.abi.x86_64 import PAGE
from woodfrog.kernel.pagemap import Pagemap
from woodfrog.resources.memory import PageRange

# So many siblings on each side are compared with.
NEAR = 4
_FRAME = (1 << 55) - 1
_PRESENT = 1 << 63
_STEP = 1 << 30  # addresses compared at a time: 2 MiB of pagemap each
_AHEAD = 128 * PAGE  # addresses read at least: the next ones asked for are mostly near
_CHUNK = 512  # entries compared at a time, if they are all the same
# By the upper byte of an entry: 1 if the page is present (bit 63), but not mapped by one process
# alone (bit 56).
_OF_SEVERAL = bytes(byte >> 7 & ~byte & 1 for byte in range(256))


class Ranges:
    """What was stored of a process, and who it is; children ask for pages that are the same."""

    def __init__(self, pid: int, stored: list[PageRange]) -> None:
        self.pid = pid
        self.stored = stored
        self._starts = [one.start for one in stored]

    def between(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield what was stored of a range, as (start, end, offset in the store)."""
        for one in self.stored[max(bisect_right(self._starts, start) - 1, 0) :]:
            if one.start >= end:
                return
            first, last = max(start, one.start), min(end, one.start + one.length)
            if first < last:
                yield first, last, one.store + first - one.start


class _Entries:
    """The page table of a process that stands still, to be asked at rising addresses."""

    def __init__(self, pagemap: Pagemap) -> None:
        self._pagemap = pagemap
        self._start = self._end = 0
        self._read = memoryview(b"")

    def of(self, start: int, end: int) -> memoryview:
        """Return the raw entries of a range, 64 bits for each page."""
        if start < self._start or end > self._end:
            self._start, self._end = start, max(end, start + _AHEAD)
            self._read = self._pagemap.entries(start, self._end)
        return self._read[(start - self._start) // PAGE : (end - self._start) // PAGE]

    def of_several(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Go through those parts of a range whose pages other processes may have, too."""
        for begin in range(start, end, _STEP):
            entries = self.of(begin, min(end, begin + _STEP))
            marks = entries.tobytes()[7::8].translate(_OF_SEVERAL) + b"\0"
            last = 0
            while (first := marks.find(1, last)) >= 0:
                last = marks.find(0, first)
                yield begin + first * PAGE, begin + last * PAGE


def split(
    pid: int, extents: list[tuple[int, int]], relatives: Iterable[Ranges]
) -> tuple[list[tuple[int, int]], list[PageRange]]:
    """Divide a process's pages into those to be stored, and those that a relative's are."""
    same: list[PageRange] = []
    with Pagemap(pid) as pagemap:
        ours = _Entries(pagemap)
        left = [part for extent in extents for part in ours.of_several(*extent)]
        for relative in relatives:
            if left:
                found = list(_equal_pages(ours, left, relative))
                same += found
                left = _without(left, found)
    same.sort(key=lambda one: one.start)
    return _without(extents, same), same


def _equal_pages(
    ours: _Entries, parts: list[tuple[int, int]], relative: Ranges
) -> Iterator[PageRange]:
    """Go through the pages in some parts of a process's memory that are a relative's, too."""
    try:
        pagemap = Pagemap(relative.pid)
    except (FileNotFoundError, ProcessLookupError):
        return  # it was written without a copy, runs again, and has ended
    with pagemap:
        theirs = _Entries(pagemap)
        for start, end in parts:
            for first, last, store in _equal_runs(ours, theirs, relative, start, end):
                yield PageRange(start=first, length=last - first, store=store)


def _without(extents: list[tuple[int, int]], pages: list[PageRange]) -> list[tuple[int, int]]:
    """Leave out pages, each of which is within one of the extents; both are sorted."""
    left = []
    rest = iter(pages)
    one = next(rest, None)
    for start, end in extents:
        while one is not None and one.start < end:
            if start < one.start:
                left.append((start, one.start))
            start = one.start + one.length
            one = next(rest, None)
        if start < end:
            left.append((start, end))
    return left


def _equal_runs(
    ours: _Entries, theirs: _Entries, relative: Ranges, start: int, end: int
) -> Iterator[tuple[int, int, int]]:
    """Go through the address ranges in which both have the same frames, with their offsets."""
    for first, last, store in relative.between(start, end):
        for begin in range(first, last, _STEP):
            stop = min(last, begin + _STEP)
            frames = ours.of(begin, stop), theirs.of(begin, stop)
            for low, high in _equal_frames(*frames, begin):
                yield low, high, store + low - first


def _equal_frames(one: memoryview, other: memoryview, start: int) -> Iterator[tuple[int, int]]:
    run = -1
    at, count = 0, len(one)
    while at < count:
        step = min(_CHUNK, count - at)
        if one[at : at + step] == other[at : at + step] and _all_known(one[at : at + step]):
            run = at if run < 0 else run
            at += step
            continue
        for index in range(at, at + step):
            entry = one[index]
            if entry & _PRESENT and entry & _FRAME and not (entry ^ other[index]) & _FRAME:
                run = index if run < 0 else run
            elif run >= 0:
                yield start + run * PAGE, start + index * PAGE
                run = -1
        at += step
    if run >= 0:
        yield start + run * PAGE, start + count * PAGE


def _all_known(entries: memoryview) -> bool:
    return all(entry & _PRESENT and entry & _FRAME for entry in entries)
