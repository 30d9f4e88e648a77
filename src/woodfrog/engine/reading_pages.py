"""The processes' own pages on their way out of the image: checked, and copied to where they belong.

Several threads of ours do that, each with a chunk that it has just checked and that its processor
still has at hand.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache

import msgspec

from woodfrog.errors import while_
from woodfrog.image.chain import Chain, merged
from woodfrog.image.layout import CHUNK
from woodfrog.kernel import userfaultfd
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.process_memory import write_memory
from woodfrog.remote import userfaults
from woodfrog.remote.stub import Stub
from woodfrog.resources import missing_memory
from woodfrog.resources.memory import Mapping, PageRange
from woodfrog.resources.missing_memory import Division

_HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage/enabled"


class Space(msgspec.Struct, frozen=True):
    """Mapped memory that may be written to, the pages that it lacks, and whose it is."""

    stub: Stub
    mappings: Sequence[Mapping]
    pages: Sequence[PageRange]


class _Target(msgspec.Struct, frozen=True, order=True):
    """Where pages go: a process, or an open userfaultfd of it."""

    pid: int
    descriptor: int = -1


# A piece of a chunk: whose it is, its offset in the chunk, its address there, its length.
_Piece = tuple[_Target, int, int, int]


def fill(reader: Chain, spaces: Iterable[Space]) -> None:
    """Fill in pages of processes that nobody uses yet.

    Raises ImageError if a chunk is damaged, OSError if there is no memory.
    """
    chunks: dict[int, list[_Piece]] = defaultdict(list)
    with while_("filling in the processes' memory"), ExitStack() as registered:
        for space in spaces:
            huge = _huge_by_default()
            large = missing_memory.large(space.mappings, space.pages, huge_by_default=huge)
            division = missing_memory.divide(space.mappings, space.pages, large)
            descriptor = registered.enter_context(_registered(space, division))
            pid = space.stub.pid
            _cut(division.at_once, _Target(pid), chunks)
            _cut(division.later, _Target(pid, descriptor), chunks)
        reader.each_chunk(sorted(chunks.items()), _copy)


def fill_pages(reader: Chain, pid: int, pages: Sequence[PageRange]) -> None:
    """Fill in pages of one process, whose addresses are mapped by now; raises like `fill`."""
    chunks: dict[int, list[_Piece]] = defaultdict(list)
    _cut(pages, _Target(pid), chunks)
    reader.each_chunk(sorted(chunks.items()), _copy)


def ranges(pages: Iterable[PageRange]) -> list[tuple[int, int]]:
    """Return the (start, end) ranges of the page store that pages have, in order and apart."""
    return merged((one.store, one.store + one.length) for one in pages)


@contextmanager
def _registered(space: Space, division: Division) -> Iterator[int]:
    """Give a userfaultfd of what is large, or -1 if there is no such memory or descriptor."""
    descriptor = -1
    if division.mappings:
        try:
            descriptor = userfaults.register(space.stub, division.mappings, waits=False)
        except OSError:
            pass  # the kernel has none, or sets limits: it is written, like the rest
    try:
        yield descriptor
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _cut(pages: Sequence[PageRange], to: _Target, chunks: dict[int, list[_Piece]]) -> None:
    """Cut pages into pieces that lie in one chunk each."""
    for page in pages:
        address, store, end = page.start, page.store, page.store + page.length
        while store < end:
            offset = store % CHUNK
            length = min(end - store, CHUNK - offset)
            chunks[store // CHUNK].append((to, offset, address, length))
            address, store = address + length, store + length


def _copy(pieces: list[_Piece], memory: memoryview) -> None:
    """Bring what a chunk holds to where it belongs: what is written as one, with one call."""
    writer, begin, end = _Target(0), 0, 0
    places: list[tuple[int, int]] = []
    for to, offset, address, length in sorted(pieces):
        if to.descriptor >= 0:
            done = userfaultfd.copy(HERE, to.descriptor, address, memory, offset, length)
            if done != length:
                raise OSError(-done, f"memory at {address:#x} can't be filled in")
            continue
        if places and (to != writer or offset != end):
            write_memory(writer.pid, memory[begin:end], places)
            places = []
        if not places:
            writer, begin, end = to, offset, offset
        places.append((address, length))
        end += length
    if places:
        write_memory(writer.pid, memory[begin:end], places)


@cache
def _huge_by_default() -> bool:
    """Tell whether private memory has huge pages unasked (Documentation: transhuge)."""
    try:
        with open(_HUGE_PAGES, "rb") as file:
            return b"[always]" in file.read()
    except FileNotFoundError:
        return False
