"""Pages of an image on their way back into the memory of held processes and into files."""

import os
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import accumulate, groupby, repeat

import msgspec
from msgspec.structs import replace

from woodfrog.image import direct_io
from woodfrog.image.chain import Chain
from woodfrog.image.layout import ANCESTOR, CHUNK
from woodfrog.image.pages import read_exactly
from woodfrog.kernel.abi.x86_64 import PAGE
from woodfrog.kernel.comparing import equal_pages
from woodfrog.kernel.process_memory import (
    FileContents,
    ProcessMemory,
    WholePages,
    write_last_page,
    write_memory,
)
from woodfrog.kernel.reading_many import Reads

_MOST_KEPT = 256 << 20


class Write(msgspec.Struct, frozen=True):
    """Pages to be written to the memory of a process, `pid`, or to a file: `fd` is open on either.

    Those that may be the same already are compared first. A file has no more than `size` bytes;
    but if it is memory (`whole`), its last page holds something behind its end, too.
    """

    fd: int
    start: int
    length: int
    store: int
    compare: bool
    size: int | None = None
    pid: int = 0
    whole: bool = False


class Contents:
    """What is to be written of an image: read and checked while nothing is touched yet.

    As much as we like to keep in our own memory; the rest is read again.
    """

    def __init__(self, image: Chain, writes: Iterable[Write], *, trusted: bool) -> None:
        """If the image is `trusted`, nobody has written to its file since all of it was right."""
        self._image = image
        self._kept: list[tuple[Write, bytes]] = []
        # What was read plainly, of processes' memory, one after the other.
        self._plain: list[Write] = []
        self._data = memoryview(bytearray())
        self._left: list[Write] = []
        self._lock = threading.Lock()
        self._own = threading.local()
        self.looked_at = self.written = 0
        jobs: dict[int, list[Write]] = defaultdict(list)
        plain = image.plain_store if trusted else None
        if plain:
            writes = self._take_plainly(writes, *plain)
        for one in writes:
            self.looked_at += one.length
            for piece in _in_chunks(one):
                jobs[piece.store // CHUNK].append(piece)
        image.each_chunk(sorted(jobs.items()), self._take)

    def _take_plainly(self, writes: Iterable[Write], fd: int, base: int) -> list[Write]:
        """Read pages without a look at the rest of their chunks, if they are in the image itself.

        Returns what is left.
        """
        left, total = [], 0
        for one in writes:
            is_ours = one.pid and not one.compare and one.store < ANCESTOR
            if not is_ours or total + one.length > _MOST_KEPT:
                left.append(one)
                continue
            total += one.length
            self._plain.append(one)
        self.written = self.looked_at = total
        self._data = contents = direct_io.room(total)
        lengths = [one.length for one in self._plain]
        places = [base + one.store for one in self._plain]
        reads = Reads([*zip(repeat(fd), lengths, places, strict=False)], contents)
        got = reads.run()
        if got != lengths:  # it takes several calls for much
            ends = accumulate(lengths)
            for count, length, place, end in zip(got, lengths, places, ends, strict=True):
                if count != length:
                    read_exactly(fd, self._data[end - length : end], place)
        return left

    def _put_plainly(self) -> None:
        """Write what was read so."""
        at = 0
        for pid, pages in groupby(self._plain, lambda one: one.pid):
            some = [*pages]
            begin, at = at, at + sum([one.length for one in some])
            data = self._data[begin:at]
            try:
                write_memory(pid, data, [(one.start, one.length) for one in some])
            except OSError:
                # Of mappings that it may only read we set back the contents, too.
                for one in some:
                    _put(one, data[: one.length])
                    data = data[one.length :]
        self._plain.clear()
        self._data.release()

    def goes_to(self, fd: int) -> bool:
        """Tell whether something is to be written to a file."""
        return any(one.fd == fd for one in (*(one for one, _ in self._kept), *self._left))

    def put(self) -> None:
        """Write it all."""
        self._put_plainly()
        for one, data in self._kept:
            _put(one, memoryview(data))
        self._kept.clear()
        jobs: dict[int, list[Write]] = defaultdict(list)
        for one in self._left:
            jobs[one.store // CHUNK].append(one)

        def use(pieces: list[Write], contents: memoryview) -> None:
            for one in pieces:
                _put(one, contents[one.store % CHUNK :][: one.length])

        self._image.each_chunk(sorted(jobs.items()), use)

    def _take(self, pieces: list[Write], contents: memoryview) -> None:
        """Keep what differs of a chunk's pages, or note it."""
        for one in self._differing(pieces, contents):
            with self._lock:
                self.written += one.length
                if self.written > _MOST_KEPT:
                    self._left.append(one)
                    continue
            data = bytes(contents[one.store % CHUNK :][: one.length])
            self._kept.append((one, data))

    def _differing(self, pieces: list[Write], contents: memoryview) -> Iterator[Write]:
        """Go through what is to be written, leaving out pages that are compared and the same."""
        for one in pieces:
            if not one.compare:
                yield one
                continue
            theirs = self._theirs()[: one.length]
            _now(one).read(theirs, [(one.start, one.length)])
            same = [*equal_pages(theirs, 0, contents, one.store % CHUNK, one.length)]
            at = 0
            for begin, end in [*same, (one.length, one.length)]:
                if at < begin:
                    start, store = one.start + at, one.store + at
                    yield replace(one, start=start, length=begin - at, store=store)
                at = end

    def _theirs(self) -> memoryview:
        """Return this thread's memory for what is compared."""
        if not hasattr(self._own, "memory"):
            self._own.memory = direct_io.buffer(CHUNK)
        memory: memoryview = self._own.memory
        return memory


def _now(one: Write) -> FileContents | ProcessMemory:
    if one.size is None:
        return ProcessMemory(one.fd)
    return WholePages(one.fd) if one.whole else FileContents(one.fd)


def _put(one: Write, data: memoryview) -> None:
    if one.size is not None:
        last = one.size & -PAGE
        if one.whole and last < one.size < one.start + len(data):
            write_last_page(one.fd, last, data[last - one.start :])
        data = data[: max(one.size - one.start, 0)]
    done = 0
    while done < len(data):
        done += os.pwrite(one.fd, data[done:], one.start + done)


def _in_chunks(one: Write) -> Iterator[Write]:
    """Cut what is to be written so that each piece lies in one chunk of the store."""
    done = 0
    while done < one.length:
        step = min(one.length - done, CHUNK - (one.store + done) % CHUNK)
        yield replace(one, start=one.start + done, length=step, store=one.store + done)
        done += step
