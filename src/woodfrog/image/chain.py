"""An image together with those that it builds on: its parent, the parent's parent, and so on.

An image names its parent by digest, and says nothing of where that is: `parent`, a link beside
checkpoint.img, leads there, or the user does. So an image from a stranger opens no file that
nobody pointed at, and no image can be its own ancestor.
"""

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from types import TracebackType
from typing import Any, Self

from woodfrog.errors import ImageError
from woodfrog.image import pages
from woodfrog.image.container_file import Parent, Reader
from woodfrog.image.layout import (
    ANCESTOR,
    CHUNK,
    IMAGE_NAME,
    MOST_ANCESTORS,
    PAGE,
    PARENT_NAME,
    Header,
)
from woodfrog.image.parallel import Job

_CHUNKS_OF_LEVEL = ANCESTOR // CHUNK

Ranges = Sequence[tuple[int, int]]


class Chain:
    """An image and its ancestors; those are opened when they are first needed.

    Store offsets are of all of them: see `layout.ANCESTOR`.
    """

    def __init__(
        self, directory: str, parents: Sequence[str] = (), *, direct: bool = False
    ) -> None:
        """Open an image. `parents` are directories in which ancestors may be.

        With `direct` pages are read past the page cache.
        """
        self.directory = directory
        self._direct = direct
        self._parents = parents
        self._readers = [Reader(directory, direct=direct)]
        self._is_whole = False

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
        """Let go of all files."""
        for reader in self._readers:
            reader.close()

    @property
    def header(self) -> Header:
        """Return the header of the image itself."""
        return self._readers[0].header

    @property
    def digest(self) -> str:
        """Return by what other images name the image itself."""
        return self._readers[0].digest

    @property
    def identity(self) -> tuple[int, ...]:
        """Return what changes when somebody writes to the image's own file."""
        return self._readers[0].identity

    @property
    def plain_store(self) -> tuple[int, int] | None:
        """Return (descriptor, base) to read the image's own pages by, unchecked; None if packed."""
        if self.header.compression != "none":
            return None
        return self._readers[0].store[0], PAGE

    @property
    def levels(self) -> list[Reader]:
        """Return the image and all its ancestors, in this order; raises ImageError."""
        if not self._is_whole:
            directory = self.directory
            while digest := self._readers[-1].header.parent:
                if len(self._readers) > MOST_ANCESTORS:
                    raise ImageError(
                        f"the image builds on more than {MOST_ANCESTORS} others",
                        hint=f"`woodfrog merge` makes one of a chain: {directory}",
                    )
                directory, reader = self._open(directory, digest)
                self._readers.append(reader)
            self._is_whole = True
        return self._readers

    @property
    def as_parent(self) -> Parent:
        """Return the image as what another one may build on."""
        if len(self.levels) > MOST_ANCESTORS:
            raise ImageError(
                f"{self.directory} builds on {MOST_ANCESTORS} other images, which are the most",
                hint=f"`woodfrog merge {self.directory} --output=DIR` makes one image of them",
            )
        return Parent(self.directory, self.digest)

    @property
    def store_bytes(self) -> list[int]:
        """Return how many bytes of memory each level's page store holds."""
        return [reader.page_bytes for reader in self.levels]

    @property
    def page_bytes(self) -> int:
        """Return how many bytes of memory the image's own page store holds."""
        return self._readers[0].page_bytes

    def tags(self) -> list[str]:
        """Return of which kind each record of the image is."""
        return self._readers[0].tags()

    def records(self, kinds: Any) -> list[Any]:
        """Return all records of the image, typed and checked."""
        return self._readers[0].records(kinds)

    def raw_records(self) -> list[dict[str, Any]]:
        """Return all records of the image as mappings."""
        return self._readers[0].raw_records()

    def open_pages(self) -> tuple[int, int]:
        """Return (descriptor, base) of the image's own page store; see Reader."""
        return self._readers[0].open_pages()

    def read_memory(self, offset: int, length: int) -> bytes:
        """Return a few bytes of memory by their store offset."""
        level, place = divmod(offset, ANCESTOR)
        readers = self._readers if level == 0 else self.levels
        if not 0 <= level < len(readers):
            raise ImageError(f"{IMAGE_NAME} has a record of memory of an ancestor that it lacks")
        return readers[level].read_memory(place, length)

    def verify_pages(self) -> None:
        """Check all chunks but those left out."""
        for reader in self.levels:
            reader.verify_pages()

    def verify_own_pages(self) -> None:
        """Check those of the image itself; who reads others checks what is read."""
        self._readers[0].verify_pages()

    def each_chunk(
        self, jobs: Iterable[tuple[int, Job]], use: Callable[[Job, memoryview], None]
    ) -> None:
        """Read chunks, by numbers that go on through all levels, in order; see Reader."""
        for level, of_level in groupby(jobs, lambda job: job[0] // _CHUNKS_OF_LEVEL):
            numbered = [(number % _CHUNKS_OF_LEVEL, job) for number, job in of_level]
            self.levels[level].each_chunk(numbered, use)

    def leave_out(self, ranges: Ranges) -> None:
        """Leave chunks that lie within (start, end) ranges to `chunks`; see Reader."""
        for reader, of_level in self._divided(ranges):
            reader.leave_out(of_level)

    def chunks(self) -> pages.Chunks:
        """Return a reader of single chunks of all levels."""
        return pages.Chunks([reader.store for reader in self.levels])

    def _divided(self, ranges: Ranges) -> list[tuple[Reader, list[tuple[int, int]]]]:
        """Divide ranges of the store by levels; each within its level's own."""
        divided: list[tuple[Reader, list[tuple[int, int]]]] = [(one, []) for one in self.levels]
        for start, end in ranges:
            level, place = divmod(start, ANCESTOR)
            divided[level][1].append((place, place + end - start))
        return divided

    def _open(self, child: str, digest: str) -> tuple[str, Reader]:
        """Return where a parent is, and the parent."""
        beside = os.path.join(child, PARENT_NAME)
        found = []
        for directory in (*self._parents, beside):
            try:
                reader = Reader(directory, direct=self._direct)
            except ImageError as error:
                if os.path.lexists(os.path.join(directory, IMAGE_NAME)):
                    found.append(f"{directory}: {error}")
                continue
            if reader.digest == digest:
                # A path through many links is one link too many some time (path_resolution(7)).
                return os.path.realpath(directory), reader
            found.append(f"{directory} holds another image, or the parent was changed")
            reader.close()
        raise ImageError(
            f"the parent of the image in {child} is missing (its digest is {digest})"
            + "".join(f"; {one}" for one in found),
            hint=f"{beside} should lead to it; or name its directory by --parent",
        )


class Stored:
    """The memory of an image and its ancestors as a source, by store offsets, always checked."""

    def __init__(self, chain: Chain) -> None:
        self._chunks = chain.chunks()
        self._lock = threading.Lock()

    def read(self, into: memoryview, ranges: Ranges) -> None:
        """Fill `into` with these (offset, length) ranges, one after the other."""
        at = 0
        for offset, length in ranges:
            end = offset + length
            while offset < end:
                number, place = divmod(offset, CHUNK)
                step = min(end - offset, CHUNK - place)
                with self._lock:
                    into[at : at + step] = self._chunks.memory(number)[place : place + step]
                offset, at = offset + step, at + step


def merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Unite (start, end) ranges that touch or overlap; the result is in order."""
    united: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if united and start <= united[-1][1]:
            united[-1] = (united[-1][0], max(end, united[-1][1]))
        else:
            united.append((start, end))
    return united
