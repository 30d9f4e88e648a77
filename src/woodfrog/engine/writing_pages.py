"""The processes' own pages on their way into the image."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate
from operator import attrgetter

from woodfrog.engine import sharing
from woodfrog.engine.changes import Changes
from woodfrog.engine.collected import CollectedProcess
from woodfrog.engine.shared_objects import SharedObject
from woodfrog.image import direct_io
from woodfrog.image.container_file import Source, Writer
from woodfrog.image.record import Record
from woodfrog.kernel.process_memory import (
    FileContents,
    ProcessMemory,
    WholePages,
    read_written,
)
from woodfrog.resources import page_sets
from woodfrog.resources.deleted_files import Found
from woodfrog.resources.memory import Mapping, PageRange

# MADV_DONTFORK, MADV_WIPEONFORK
_NOT_FORKED = {10, 18}


# More than this, and more than this part of a process's memory, is better copied by fork(2).
_LITTLE, _SMALL_PART = 1 << 20, 64


class _Kept:
    """Pages of a process that we have copied for ourselves, one after the other."""

    def __init__(
        self, extents: list[tuple[int, int]], same: list[PageRange], contents: memoryview
    ) -> None:
        self.extents = extents
        self.same = same
        self.contents = contents

    def read(self, into: memoryview, ranges: Sequence[tuple[int, int]]) -> None:
        """Fill `into` with these (offset, length) ranges."""
        at = 0
        for offset, length in ranges:
            into[at : at + length] = self.contents[offset : offset + length]
            at += length


class PageWriter:
    """Writes pages, those that processes share only once; parents come before their children."""

    def __init__(self, image: Writer, changes: Changes | None = None) -> None:
        """`changes` tells which pages need not be written, since a parent image has them."""
        self._image = image
        self._changes = changes
        self._stored: dict[int, sharing.Ranges] = {}
        # The children of each parent that have been written.
        self._siblings: dict[int, list[int]] = defaultdict(list)
        self._early: dict[int, list[PageRange]] = {}
        self._kept: dict[int, _Kept] = {}
        self.bytes = self.unchanged = 0

    def keep_changed(self, processes: list[CollectedProcess]) -> list[CollectedProcess]:
        """Keep what has changed of held processes, where the kernel knows that this is little.

        Returns those that need a copy of all; `write_kept` writes the others.
        """
        if self._changes is None:
            return processes
        left = []
        for one in processes:
            changed = self._changes.changed_bytes(one)
            if changed is None or changed > max(_LITTLE, one.held.own_bytes // _SMALL_PART):
                left.append(one)
                continue
            memory = ProcessMemory(one.held.memory)
            extents = one.space.find_pages(one.held.pid, one.space.mappings, one.held.walked)
            extents, same = self._changes.split(one, extents, memory)
            lengths = [end - start for start, end in extents]
            total = sum(lengths)
            contents = direct_io.room(total)
            wanted = [*zip([start for start, _ in extents], lengths, strict=True)]
            try:
                read_written(one.held.pid, contents, wanted)
            except OSError:
                memory.read(contents, wanted)
            self._kept[one.held.pid] = _Kept(extents, same, contents)
        return left

    def has_kept(self, one: CollectedProcess) -> bool:
        """Tell whether what has changed of a process was kept."""
        return one.held.pid in self._kept

    def write_kept(self, one: CollectedProcess) -> list[PageRange]:
        """Write what was kept of a process."""
        kept = self._kept.pop(one.held.pid)
        self.unchanged += sum([page.length for page in kept.same])
        offset = self._image.write_pages([(kept, 0, len(kept.contents))])
        written = self._written(kept.extents, offset)
        pages = sorted([*kept.same, *written], key=attrgetter("start"))
        self._stored[one.held.group] = sharing.Ranges(one.held.pid, pages)
        return pages

    def write_unforked(self, one: CollectedProcess) -> None:
        """Write from a process itself what its copy doesn't have."""
        mappings = [mapping for mapping in one.space.mappings if _is_unforked(mapping)]
        extents = one.space.find_pages(one.held.pid, mappings)
        self._early[one.held.pid] = self._write_changed(
            one, ProcessMemory(one.held.memory), extents
        )

    def write(self, one: CollectedProcess, pid: int, memory: ProcessMemory) -> list[PageRange]:
        """Write all other pages, from a process or its copy, which is `pid` on the host."""
        mappings, early = one.space.mappings, self._early.pop(one.held.pid, None)
        if early is not None:
            mappings = [mapping for mapping in mappings if not _is_unforked(mapping)]
        extents = one.space.find_pages(pid, mappings)
        parent = one.held.leader.stat.parent
        # What the parent has written to since, siblings may share still.
        siblings = self._siblings[parent]
        family = [parent, *reversed(siblings[-sharing.NEAR :])]
        relatives = [self._stored[group] for group in family if group in self._stored]
        own, pages = sharing.split(pid, _joined(extents), relatives)
        pages += self._write_changed(one, memory, own)
        pages.sort(key=lambda page: page.start)
        self._stored[one.held.group] = sharing.Ranges(pid, pages)
        siblings.append(one.held.group)
        # Ranges of pages in a record are each of one mapping.
        private = [(mapping.start, mapping.end) for mapping in mappings if not mapping.shared]
        pages = page_sets.within(pages, private)
        return sorted([*pages, *(early or ())], key=lambda page: page.start)

    def write_object(self, one: SharedObject | Found) -> Record:
        """Write shared memory or a deleted file; returns its record."""
        contents = FileContents(one.fd)
        if isinstance(one, SharedObject):
            contents = WholePages(one.fd)
            if self._changes:
                self._changes.take_out(one, contents)
                self.unchanged += sum(page.length for page in one.inherited)
        store = self._image.write_pages(
            [(contents, extent.start, extent.length) for extent in one.extents]
        )
        return one.record(store)

    def _write_changed(
        self, one: CollectedProcess, memory: ProcessMemory, extents: list[tuple[int, int]]
    ) -> list[PageRange]:
        if self._changes is None:
            return self._write(memory, extents)
        changed, same = self._changes.split(one, extents, memory)
        self.unchanged += sum(page.length for page in same)
        return sorted([*same, *self._write(memory, changed)], key=lambda page: page.start)

    def _write(self, memory: Source, extents: list[tuple[int, int]]) -> list[PageRange]:
        offset = self._image.write_pages([(memory, start, end - start) for start, end in extents])
        return self._written(extents, offset)

    def _written(self, extents: list[tuple[int, int]], offset: int) -> list[PageRange]:
        """Return pages that stand one after the other from an offset of the store on."""
        places = [*accumulate((end - start for start, end in extents), initial=offset)]
        self.bytes += places[-1] - offset
        return [
            PageRange(start=start, length=end - start, store=place)
            for (start, end), place in zip(extents, places, strict=False)
        ]


def _joined(extents: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join extents that touch, of neighbouring mappings: what is together takes less time."""
    joined: list[tuple[int, int]] = []
    for start, end in extents:
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, end))
    return joined


def _is_unforked(mapping: Mapping) -> bool:
    """Tell whether a copy of the process lacks a mapping, or has it empty."""
    return mapping.is_private_huge or not _NOT_FORKED.isdisjoint(mapping.advice)
