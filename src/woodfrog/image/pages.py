"""The page store: memory in chunks of 1 MiB, each with a checksum, written and checked in parallel.

A chunk is stored as it is, or compressed if that is shorter. Chunks follow each other
without gaps, so the index needs of each only its length in the file and its checksum.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from xxhash import xxh3_128_digest as checksum

from woodfrog.errors import ImageError
from woodfrog.image import direct_io
from woodfrog.image.compression import Packer, packer, unpack
from woodfrog.image.layout import ANCESTOR, CHUNK, IMAGE_NAME, INDEX_ENTRY, PAGE, chunk_count
from woodfrog.image.parallel import Job, in_parallel, usable_cpus
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.process_memory import SharableFile

# Writeback starts when so many bytes lie in the page cache: late enough for large requests to the
# disk, early enough that the final fsync has little left to wait for.
_WRITEBACK_STEP = 8 << 20
_SYNC_FILE_RANGE_WRITE = 2

_CHUNKS_KEPT = 8


class Source(Protocol):
    """Memory that can be read from any thread."""

    def read(self, into: memoryview, ranges: Sequence[tuple[int, int]]) -> None:
        """Fill `into` with these (start, length) ranges, one after the other."""


Extent = tuple[Source, int, int]


def write_all(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write all of `data` at an offset of a file."""
    with memoryview(data) as view:
        done = os.pwrite(fd, view, offset)
        while done < len(view):
            done += os.pwrite(fd, view[done:], offset + done)


def read_exactly(fd: int, into: bytearray | memoryview, offset: int) -> None:
    """Fill `into` from an offset of the image."""
    with memoryview(into) as view:
        done = 0
        while done < len(view):
            count = os.preadv(fd, [view[done:]], offset + done)
            if count == 0:
                raise ImageError(f"{IMAGE_NAME} is truncated: it became shorter while being read")
            done += count


Pieces = list[tuple[Source, list[tuple[int, int]], int]]


def _whole_chunks(extents: Iterator[Extent], total: int) -> Iterator[Pieces]:
    """Cut extents into chunks: of each its sources, with their ranges and the bytes from each."""
    source: Source
    start = length = 0
    for chunk in range(0, total, CHUNK):
        pieces: Pieces = []
        room = min(CHUNK, total - chunk)
        while room:
            if not length:
                source, start, length = next(extents)
                continue
            part = min(room, length)
            if pieces and pieces[-1][0] is source:
                _, ranges, count = pieces.pop()
                ranges.append((start, part))
                pieces.append((source, ranges, count + part))
            else:
                pieces.append((source, [(start, part)], part))
            start, length, room = start + part, length - part, room - part
        yield pieces


def _read_pieces(pieces: Pieces, into: memoryview) -> None:
    at = 0
    for source, ranges, count in pieces:
        source.read(into[at : at + count], ranges)
        at += count


class PageWriter:
    """Writes the page store of an image, from file offset PAGE on."""

    def __init__(
        self,
        fd: int,
        *,
        whole_pages: int,
        compression: str,
        writeback: bool,
        check: Callable[[], None],
    ) -> None:
        """Write to a file; by `whole_pages`, another descriptor of it, what isn't compressed."""
        self._page_fd = fd if compression != "none" or whole_pages < 0 else whole_pages
        self.page_bytes = 0
        self._check = check
        self.stored_bytes = 0
        self._fd = fd
        self._compression = compression
        self._writeback = writeback
        self._written_back = 0
        self._index: list[bytes] = []
        self._turn = threading.Condition()
        self._failed = False
        # The last chunk, while it isn't whole.
        self._tail = direct_io.buffer(CHUNK)
        self._tail_bytes = 0

    def write(self, extents: Sequence[Extent]) -> int:
        """Append extents; return the store offset of the first. All memory is read on return."""
        for _, start, length in extents:
            if length % PAGE or length < 0 or start < 0:
                raise ValueError(f"extent {start:#x}+{length:#x} isn't made of whole pages")
        first = self.page_bytes
        total = sum(length for _, _, length in extents)
        rest = iter(extents)
        if self._tail_bytes and total:
            head, rest = _split(extents, min(total, CHUNK - self._tail_bytes))
            total -= self._append_to_tail(head)
        whole = total - total % CHUNK
        if whole:
            front, rest = _split(list(rest), whole)
            self._write_chunks(_whole_chunks(iter(front), whole), whole // CHUNK)
        self._append_to_tail(list(rest))
        return first

    def finish(self) -> bytes:
        """Write what is left and return the index."""
        if self._tail_bytes:
            self._put(
                len(self._index),
                self._tail[: self._tail_bytes],
                packer(self._compression),
            )
            self._tail_bytes = 0
        return b"".join(self._index)

    def _append_to_tail(self, extents: list[Extent]) -> int:
        total = sum(length for _, _, length in extents)
        for pieces in _whole_chunks(iter(extents), total):
            self._check()
            _read_pieces(pieces, self._tail[self._tail_bytes : self._tail_bytes + total])
        self._tail_bytes += total
        self.page_bytes += total
        if self._tail_bytes == CHUNK:
            self._put(len(self._index), self._tail, packer(self._compression))
            self._tail_bytes = 0
        return total

    def _write_chunks(self, chunks: Iterator[Pieces], count: int) -> None:
        begin = len(self._index)

        def worker() -> Callable[[tuple[int, Pieces]], None]:
            buffer = direct_io.buffer(CHUNK)
            pack = packer(self._compression)

            def write_chunk(job: tuple[int, Pieces]) -> None:
                number, pieces = job
                self._check()
                _read_pieces(pieces, buffer)
                self._put(number, buffer, pack, pieces)

            return write_chunk

        # Buffered writes to one file exclude each other in the kernel. So beyond two threads, of
        # which one reads and hashes while the other writes, only compression gains by more.
        most = 2 if self._compression == "none" else usable_cpus()
        in_parallel(
            enumerate(chunks, begin), worker, threads=min(most, count), failed=self._wake_to_failure
        )
        self.page_bytes += count * CHUNK

    def _put(
        self,
        number: int,
        chunk: memoryview,
        pack: Packer,
        pieces: Pieces | None = None,
    ) -> None:
        """Write one chunk. Its place is known only when those before it have theirs.

        `pieces` tell where its bytes come from.
        """
        packed = pack(chunk)
        entry = INDEX_ENTRY.pack(len(packed), checksum(packed))
        with self._turn:
            while len(self._index) != number:
                if self._failed:
                    return
                self._turn.wait()
            at = PAGE + self.stored_bytes
            self.stored_bytes += len(packed)
            self._index.append(entry)
            self._turn.notify_all()
        shared = self._share(pieces, at) if pieces else 0
        if shared < len(packed):
            write_all(self._page_fd, packed[shared:], at + shared)
        if self._writeback:
            self._start_writeback(at)

    def _share(self, pieces: Pieces, at: int) -> int:
        """Have the image share the blocks of files where it can; returns how many bytes.

        Sharing waits for the disk, which only pays if the image has to be there anyway.
        """
        shared = 0
        if self._compression != "none" or not self._writeback:
            return shared
        for source, ranges, count in pieces:
            if not isinstance(source, SharableFile):
                break
            part = source.share(self._fd, at + shared, ranges)
            shared += part
            if part < count:
                break
        return shared

    def _start_writeback(self, upto: int) -> None:
        with self._turn:
            begin = self._written_back
            if upto - begin < _WRITEBACK_STEP:
                return
            self._written_back = upto
        try:
            HERE.call(SYS.SYNC_FILE_RANGE, self._fd, begin, upto - begin, _SYNC_FILE_RANGE_WRITE)
        except OSError:
            self._writeback = False  # not every file system can; fsync does the whole work then

    def _wake_to_failure(self) -> None:
        with self._turn:
            self._failed = True
            self._turn.notify_all()


def _split(extents: Sequence[Extent], at: int) -> tuple[list[Extent], Iterator[Extent]]:
    """Divide extents into the first `at` bytes and the rest."""
    front: list[Extent] = []
    for position, (source, start, length) in enumerate(extents):
        if at <= length:
            if at:
                front.append((source, start, at))
            rest: list[Extent] = [(source, start + at, length - at)] if at < length else []
            return front, iter([*rest, *extents[position + 1 :]])
        front.append((source, start, length))
        at -= length
    return front, iter([])


class ChunkTable:
    """The index of a page store: where each chunk lies in the file, and its checksum."""

    def __init__(
        self, encoded: bytes, *, page_bytes: int, stored_bytes: int, compression: str
    ) -> None:
        self.page_bytes = page_bytes
        self._compression = compression
        plain = compression == "none"
        self._entries = list(INDEX_ENTRY.iter_unpack(encoded))
        self._starts: list[int] = []
        at = PAGE
        for number, (stored, _) in enumerate(self._entries):
            raw = self.raw_bytes(number)
            if not 0 < stored <= raw or (plain and stored != raw):
                raise ImageError(f"{IMAGE_NAME} is damaged: chunk {number} has a wrong length")
            self._starts.append(at)
            at += stored
        if at != PAGE + stored_bytes or len(self._entries) != chunk_count(page_bytes):
            raise ImageError(f"{IMAGE_NAME} is damaged: the index doesn't fit the page store")

    def __len__(self) -> int:
        return len(self._entries)

    def raw_bytes(self, number: int) -> int:
        """Return how many bytes of memory a chunk holds."""
        return min(CHUNK, self.page_bytes - number * CHUNK)

    def read(self, fd: int, number: int, buffer: memoryview) -> memoryview:
        """Return a chunk as it is stored, read into `buffer` and checked."""
        (stored, expected), at = self._entries[number], self._starts[number]
        chunk = buffer[:stored]
        read_exactly(fd, chunk, at)
        if checksum(chunk) != expected:
            raise ImageError(
                f"{IMAGE_NAME} is damaged: the checksum of page chunk {number}, at file offset "
                f"{at}, doesn't fit",
                hint="nothing can be restored from it; copy it again if this is a copy",
            )
        return chunk

    def memory_of(self, number: int, stored: memoryview) -> bytes | memoryview:
        """Return the memory that a stored chunk holds."""
        raw = self.raw_bytes(number)
        if len(stored) == raw:
            return stored
        try:
            return unpack(self._compression, stored, raw)
        except ImageError as error:
            raise ImageError(f"{IMAGE_NAME}: page chunk {number}: {error}") from error


def each_chunk(
    fd: int,
    table: ChunkTable,
    jobs: Iterable[tuple[int, Job]],
    use: Callable[[Job, memoryview], None],
) -> None:
    """Read chunks and check them, by several threads: (number, what to do with it).

    `use` gets the latter with the memory that the chunk holds, to read until it returns.
    """

    def worker() -> Callable[[tuple[int, Job]], None]:
        buffer = direct_io.buffer(CHUNK)

        def read(one: tuple[int, Job]) -> None:
            number, job = one
            stored = table.read(fd, number, buffer)
            memory = table.memory_of(number, stored)
            if memory is not stored:
                buffer[: len(memory)] = memory
            use(job, buffer[: len(memory)])

        return read

    in_parallel(iter(jobs), worker, threads=min(usable_cpus(), len(table) or 1))


def verify(fd: int, table: ChunkTable, chunks: Sequence[int]) -> None:
    """Read chunks and check them, also that they can be decompressed."""

    def nothing(number: int, memory: memoryview) -> None:
        pass

    each_chunk(fd, table, zip(chunks, chunks, strict=True), nothing)


def read_memory(fd: int, table: ChunkTable, offset: int, length: int) -> bytes:
    """Return a few bytes of memory by their store offset; their chunks are checked."""
    if offset < 0 or length < 0 or offset + length > table.page_bytes:
        raise ImageError(f"{IMAGE_NAME} has a record of memory that isn't in it")
    found = bytearray()
    buffer = memoryview(bytearray(CHUNK))
    for number in range(offset // CHUNK, chunk_count(offset + length)):
        chunk = table.memory_of(number, table.read(fd, number, buffer))
        begin = offset + len(found) - number * CHUNK
        found += chunk[begin : begin + length - len(found)]
    return bytes(found)


def unpack_chunks(fd: int, table: ChunkTable, chunks: Sequence[int], into: int) -> None:
    """Check chunks and write their memory to another file, each to its own offset."""

    def copy(number: int, memory: memoryview) -> None:
        write_all(into, memory, number * CHUNK)

    each_chunk(fd, table, zip(chunks, chunks, strict=True), copy)


class Chunks:
    """Chunks of an open image, each checked whenever it is read; the last ones stay at hand.

    `levels` are the file and index of the image, of its parent, and so on.
    """

    def __init__(self, levels: Sequence[tuple[int, ChunkTable]]) -> None:
        self._levels = levels
        self._kept: dict[int, bytearray] = {}

    @property
    def descriptors(self) -> set[int]:
        """Return the descriptors that it reads from."""
        return {fd for fd, _ in self._levels}

    def memory(self, number: int) -> bytearray:
        """Return the memory that a chunk holds, counted from store offset 0; raises ImageError."""
        if number in self._kept:
            return self._kept[number]
        if len(self._kept) == _CHUNKS_KEPT:
            # The oldest one; nobody has its memory any more.
            buffer = self._kept.pop(next(iter(self._kept)))
        else:
            buffer = bytearray(CHUNK)
        level, place = divmod(number, ANCESTOR // CHUNK)
        with memoryview(buffer) as view:
            fd, table = self._levels[level]
            stored = table.read(fd, place, view)
            memory = table.memory_of(place, stored)
            if memory is not stored:
                view[: len(memory)] = memory
        self._kept[number] = buffer
        return buffer
