"""The processes' own pages on their way into the image."""

from woodfrog.engine import sharing
from woodfrog.engine.collecting import CollectedProcess
from woodfrog.image.container_file import Writer
from woodfrog.kernel.process_memory import ProcessMemory
from woodfrog.resources.memory import Mapping, PageRange

# MADV_DONTFORK, MADV_WIPEONFORK
_NOT_FORKED = {10, 18}


class PageWriter:
    """Writes pages, those that processes share only once; parents come before their children."""

    def __init__(self, image: Writer) -> None:
        self._image = image
        self._stored: dict[int, sharing.Ranges] = {}
        self._early: dict[int, list[PageRange]] = {}
        self.bytes = 0

    def write_unforked(self, one: CollectedProcess) -> None:
        """Write from a process itself what its copy doesn't have."""
        mappings = [mapping for mapping in one.space.mappings if _is_unforked(mapping)]
        extents = one.space.find_pages(one.held.pid, mappings)
        self._early[one.held.pid] = self._write(ProcessMemory(one.held.memory), extents)

    def write(self, one: CollectedProcess, pid: int, memory: ProcessMemory) -> list[PageRange]:
        """Write all other pages, from a process or its copy, which is `pid` on the host."""
        mappings, early = one.space.mappings, self._early.pop(one.held.pid, None)
        if early is not None:
            mappings = [mapping for mapping in mappings if not _is_unforked(mapping)]
        extents = one.space.find_pages(pid, mappings)
        parent = self._stored.get(one.held.leader.stat.parent)
        own, pages = sharing.split(pid, extents, parent)
        pages += self._write(memory, own)
        pages.sort(key=lambda page: page.start)
        self._stored[one.held.group] = sharing.Ranges(pid, pages)
        return sorted([*pages, *(early or ())], key=lambda page: page.start)

    def _write(self, memory: ProcessMemory, extents: list[tuple[int, int]]) -> list[PageRange]:
        offset = self._image.write_pages([(memory, start, end - start) for start, end in extents])
        pages = []
        for start, end in extents:
            pages.append(PageRange(start=start, length=end - start, store=offset))
            offset += end - start
            self.bytes += end - start
        return pages


def _is_unforked(mapping: Mapping) -> bool:
    """Tell whether a copy of the process lacks a mapping, or has it empty."""
    return mapping.is_private_huge or not _NOT_FORKED.isdisjoint(mapping.advice)
