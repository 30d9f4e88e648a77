"""checkpoint.img as a whole: written under no name until it is complete, checked when opened."""

import os
import stat
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self

import msgspec
from xxhash import xxh3_128_digest as checksum

import woodfrog
from woodfrog.errors import ImageError, while_
from woodfrog.image import direct_io, layout, page_file, pages
from woodfrog.image.compression import COMPRESSIONS
from woodfrog.image.layout import CHUNK, IMAGE_NAME, PAGE, PARENT_NAME, Header, Trailer
from woodfrog.image.new_file import NewFile
from woodfrog.image.pages import Source
from woodfrog.image.parallel import Job
from woodfrog.image.record import Record, Tagged

__all__ = ["COMPRESSIONS", "SYNCS", "Header", "Reader", "Source", "Writer"]

SYNCS = ("full", "none")

# What an image needs besides its pages: records, index, and the file system's own bookkeeping.
_SPACE_BESIDE_PAGES = 4 << 20
# Memory that zstd makes no smaller than this part is rare; such a checkpoint may fail when the
# disk is full, which harms nothing, while a refusal of one that fits would.
_EXPECTED_COMPRESSION = 4

# The array32 of MessagePack: the type, and the number of elements.
_ARRAY_START = struct.Struct(">BI")
_ARRAY32 = 0xDD


class Parent(msgspec.Struct, frozen=True):
    """An image whose pages another one refers to."""

    directory: str
    digest: str


def _identity(fd: int) -> tuple[int, ...]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class Writer:
    """An image being written; nothing of it remains unless it is sealed."""

    def __init__(
        self,
        directory: str,
        *,
        compression: str,
        sync: str,
        replace: bool,
        check: Callable[[], None] = lambda: None,
        turn: Callable[[Record], Record] = lambda record: record,
        parent: Parent | None = None,
        direct: bool = False,
    ) -> None:
        """Open a new image for `directory`, which is made if missing.

        A `checkpoint.img` that is already there is refused, or with `replace` stays until the new
        one is complete. `check` is called again and again, and may raise. `turn` gives records
        their last form. With a `parent` records may refer to its pages. With `direct` what is
        stored uncompressed goes past the page cache, where that is possible.
        """
        if compression not in COMPRESSIONS:
            raise ImageError(f"unknown compression {compression!r}", hint=", ".join(COMPRESSIONS))
        if sync not in SYNCS:
            raise ImageError(f"unknown way to sync {sync!r}", hint="full or none")
        self._turn = turn
        self._directory = directory
        self._sync = sync == "full"
        self._compression = compression
        # One MessagePack array, whose length comes into the first bytes in the end.
        self._records = bytearray(_ARRAY_START.size)
        self._rehearsed = False
        self._record_count = 0
        self._encoder = msgspec.msgpack.Encoder()
        self._parent = parent
        self._digest = ""
        self._direct_fd = -1
        self._file = NewFile(directory, IMAGE_NAME, replace=replace)
        try:
            node = os.uname()
            facts = layout.Facts(
                made=int(time.time()),
                hostname=node.nodename,
                kernel=node.release,
                machine=node.machine,
                woodfrog=woodfrog.__version__,
                compression=compression,
                parent=parent.digest if parent else "",
            )
            fd = self._file.fd
            self._header = layout.encode_header(facts)
            pages.write_all(fd, self._header, 0)
            if direct:
                self._direct_fd = direct_io.opened(fd, os.O_WRONLY)
            self._pages = pages.PageWriter(
                fd,
                whole_pages=self._direct_fd,
                compression=compression,
                writeback=self._sync,
                check=check,
            )
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._direct_fd >= 0:
            os.close(self._direct_fd)
            self._direct_fd = -1
        self._file.close()

    def add(self, record: Record) -> None:
        """Append a record; they are kept in order."""
        self._encoder.encode_into(self._turn(record), self._records, -1)
        self._record_count += 1

    def add_raw(self, record: dict[str, Any]) -> None:
        """Append a record as `Reader.raw_records` gives it."""
        self._encoder.encode_into(record, self._records, -1)
        self._record_count += 1

    def write_pages(self, extents: Sequence[tuple[Source, int, int]]) -> int:
        """Append (source, start, length) extents of whole pages to the page store.

        Returns the store offset of the first; each next one follows the one before. The sources
        have been read when this returns, and were read from several threads.
        """
        with while_(f"writing pages to {self._directory}/{IMAGE_NAME}"):
            return self._pages.write(extents)

    def check_space(self, page_bytes: int) -> None:
        """Refuse if the file system of the image has no room for so many bytes of pages."""
        if self._compression != "none":
            page_bytes //= _EXPECTED_COMPRESSION
        needed = page_bytes + _SPACE_BESIDE_PAGES
        system = os.statvfs(self._file.directory_fd)
        free = system.f_bavail * system.f_frsize
        if free < needed:
            raise ImageError(
                f"the file system of {self._directory} has {free >> 20} MiB free, and the image "
                f"needs about {needed >> 20} MiB",
                hint="give another --image-path"
                if self._compression != "none"
                else "give another --image-path, or --compression=zstd",
            )

    def rehearse(self, more: int) -> None:
        """Write as much as `seal` will, if no pages and `more` bytes of records come yet.

        So that it has no reason to fail then.
        """
        with while_(f"completing {self._directory}/{IMAGE_NAME}"):
            size = len(self._pages.finish()) + len(self._records) + more + layout.TRAILER_BYTES
            pages.write_all(self._file.fd, bytes(size), layout.PAGE + self._pages.stored_bytes)
            self._rehearsed = True
            if self._sync:
                os.fsync(self._file.fd)

    def seal(self) -> None:
        """Write what is missing, sync, and give the image its name: now it is there."""
        with while_(f"completing {self._directory}/{IMAGE_NAME}"):
            index = self._pages.finish()
            records = self._records
            _ARRAY_START.pack_into(records, 0, _ARRAY32, self._record_count)
            if len(records) > layout.MOST_RECORD_BYTES:
                raise ImageError("the container has more metadata than an image can hold")
            trailer = Trailer(
                page_bytes=self._pages.page_bytes,
                stored_bytes=self._pages.stored_bytes,
                record_bytes=len(records),
                index_bytes=len(index),
                record_count=self._record_count,
                record_checksum=checksum(records),
                index_checksum=checksum(index),
            )
            fd = self._file.fd
            end = layout.encode_trailer(trailer)
            pages.write_all(fd, records, trailer.records_at)
            pages.write_all(fd, index + end, trailer.index_at)
            if self._rehearsed:
                os.ftruncate(fd, trailer.file_bytes)
            if self._parent:
                self._file.link(PARENT_NAME, self._parent.directory)
            self._file.commit(sync=self._sync)
            self._digest = layout.digest(self._header, end)

    @property
    def digest(self) -> str:
        """Return by what other images may name this one, once it is sealed."""
        return self._digest

    @property
    def identity(self) -> tuple[int, ...]:
        """Return what changes when somebody writes to the file, once it is sealed."""
        return _identity(self._file.fd)


class Reader:
    """An image whose header, sizes, records and index have been checked."""

    def __init__(self, directory: str, *, direct: bool = False) -> None:
        """Open directory/checkpoint.img. Pages are checked later, by whoever reads them.

        With `direct` uncompressed ones are read past the page cache, where that is possible.
        """
        self._fd = self._page_fd = self._direct_fd = -1
        self._page_base = 0
        self._digest = ""
        path = os.path.join(directory, IMAGE_NAME)
        try:
            # O_NONBLOCK: a FIFO in its place shall not make us wait.
            self._fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ImageError(
                f"no checkpoint in {directory}: it has no {IMAGE_NAME}",
                hint="--image-path names the directory that checkpoint wrote to",
            ) from error
        except OSError as error:
            raise ImageError(f"can't open {path}: {error.strerror}") from error
        try:
            with while_(f"reading {path}"):
                self.header, self._trailer = self._read_ends()
                self._encoded, self._table = self._read_tables()
        except BaseException:
            self.close()
            raise
        if direct and self.header.compression == "none":
            self._direct_fd = direct_io.opened(self._fd, os.O_RDONLY)
        self._wanted: Sequence[int] = range(len(self._table))
        self._verified = not self.page_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        for fd in (self._fd, self._page_fd, self._direct_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._page_fd = self._direct_fd = -1

    @property
    def page_bytes(self) -> int:
        """Return how many bytes of memory the page store holds."""
        return self._trailer.page_bytes

    @property
    def digest(self) -> str:
        """Return by what other images name this one."""
        return self._digest

    @property
    def identity(self) -> tuple[int, ...]:
        """Return what changes when somebody writes to the file."""
        return _identity(self._fd)

    def tags(self) -> list[str]:
        """Return of which kind each record is, in order; see `records`."""
        return [one.kind for one in self._decode(list[Tagged])]

    def records(self, kinds: Any) -> list[Any]:
        """Return all records, in order, as the classes that `kinds` unites, typed and checked."""
        return list(self._decode(list[kinds]))

    def raw_records(self) -> list[dict[str, Any]]:
        """Return all records as mappings, for who doesn't know their classes."""
        return list(self._decode(list[dict[str, Any]]))

    def open_pages(self) -> tuple[int, int]:
        """Return (descriptor, base): the page store's bytes lie there from offset `base` on.

        The descriptor is read-only for good: reopening it through /proc for writing fails. It
        stays ours, and is closed with the reader.
        """
        if self._page_fd < 0:
            self._page_fd, self._page_base = self._open_pages()
        return self._page_fd, self._page_base

    def read_memory(self, offset: int, length: int) -> bytes:
        """Return a few bytes of the page store, by their store offset."""
        return pages.read_memory(self._fd, self._table, offset, length)

    @property
    def _chunk_fd(self) -> int:
        """The descriptor by which whole chunks are read into aligned memory."""
        return self._direct_fd if self._direct_fd >= 0 else self._fd

    def verify_pages(self) -> None:
        """Check all page chunks but those left out, by several threads; a wrong one is named."""
        if not self._verified:
            pages.verify(self._chunk_fd, self._table, self._wanted)
            self._verified = True

    def each_chunk(
        self, jobs: Iterable[tuple[int, Job]], use: Callable[[Job, memoryview], None]
    ) -> None:
        """Read chunks and check them, by several threads; see pages.each_chunk."""
        pages.each_chunk(self._chunk_fd, self._table, jobs, use)

    def leave_out(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Leave chunks that lie within (start, end) ranges to `chunks` and `each_chunk`.

        The ranges are in order and apart.
        """
        left_out: set[int] = set()
        for start, end in ranges:
            # The last chunk may be shorter than others.
            last = len(self._table) if end == self.page_bytes else end // CHUNK
            left_out.update(range(layout.chunk_count(start), last))
        self._wanted = [number for number in self._wanted if number not in left_out]

    @property
    def store(self) -> tuple[int, pages.ChunkTable]:
        """Return the open file, and where chunks lie in it."""
        return self._fd, self._table

    def chunks(self) -> pages.Chunks:
        """Return a reader of single chunks, which works on the same open file."""
        return pages.Chunks([self.store])

    def _read_ends(self) -> tuple[Header, Trailer]:
        """Return what stands at both ends of the file, once the file is known to be whole."""
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{IMAGE_NAME} is not a regular file")
        start = self._part("header", 0, min(PAGE, status.st_size))
        version, facts = layout.decode_header(bytes(start))
        if facts.compression not in COMPRESSIONS:
            raise ImageError(f"{IMAGE_NAME} has an unknown compression, {facts.compression!r}")
        size = min(layout.TRAILER_BYTES, status.st_size - PAGE)
        end = self._part("trailer", status.st_size - size, size)
        trailer = layout.decode_trailer(bytes(end), status.st_size)
        self._digest = layout.digest(bytes(start), bytes(end))
        header = Header(
            version=version,
            made=facts.made,
            hostname=facts.hostname,
            kernel=facts.kernel,
            machine=facts.machine,
            woodfrog=facts.woodfrog,
            compression=facts.compression,
            parent=facts.parent,
            page_bytes=trailer.page_bytes,
            record_count=trailer.record_count,
            file_bytes=status.st_size,
        )
        return header, trailer

    def _read_tables(self) -> tuple[bytearray, pages.ChunkTable]:
        """Return the encoded records and the index, both checked."""
        trailer = self._trailer
        records = self._part("records", trailer.records_at, trailer.record_bytes)
        if checksum(records) != trailer.record_checksum:
            raise ImageError(f"{IMAGE_NAME} is damaged: the checksum of its records doesn't fit")
        # A larger count than its field holds is damaged too, and no reason for a struct.error.
        if trailer.record_count >> 32 or records[: _ARRAY_START.size] != _ARRAY_START.pack(
            _ARRAY32, trailer.record_count
        ):
            raise ImageError(f"{IMAGE_NAME} is damaged: its records have another number")
        index = self._part("index", trailer.index_at, trailer.index_bytes)
        if checksum(index) != trailer.index_checksum:
            raise ImageError(f"{IMAGE_NAME} is damaged: the checksum of its index doesn't fit")
        table = pages.ChunkTable(
            bytes(index),
            page_bytes=trailer.page_bytes,
            stored_bytes=trailer.stored_bytes,
            compression=self.header.compression,
        )
        return records, table

    def _part(self, name: str, at: int, length: int) -> bytearray:
        try:
            part = bytearray(length)
        except MemoryError as error:
            raise ImageError(f"the {name} of {IMAGE_NAME} don't fit into memory") from error
        pages.read_exactly(self._fd, part, at)
        return part

    def _decode(self, kind: Any) -> Any:
        try:
            return msgspec.msgpack.decode(self._encoded, type=kind)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise ImageError(f"{IMAGE_NAME} has records that make no sense: {error}") from error

    def _open_pages(self) -> tuple[int, int]:
        if self.header.compression == "none":
            try:
                return page_file.reopened_read_only(self._fd), PAGE
            except OSError:
                pass  # not root, or the image is on a mount that can't be cloned: copy it
        copy = page_file.sealed_copy(self._fd, self._table, self._wanted)
        self._verified = True
        return copy, 0
