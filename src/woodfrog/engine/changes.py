"""What has changed since a parent image: a checkpoint stores only that.

Where the kernel has noted what was written to since then (engine/tracking.py), it says so. Where it
has not, each page is compared with what the parent has at its place.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import ExitStack

import msgspec

from woodfrog.engine.collected import CollectedProcess
from woodfrog.engine.looking import CheckpointOptions
from woodfrog.engine.shared_objects import SharedObject
from woodfrog.engine.tracking import Tracker, still_noted
from woodfrog.errors import ImageError
from woodfrog.image.chain import Chain
from woodfrog.image.container_file import Parent
from woodfrog.image.layout import ANCESTOR, CHUNK
from woodfrog.image.pages import Source
from woodfrog.image.parallel import in_parallel, usable_cpus
from woodfrog.kernel.comparing import equal_pages
from woodfrog.kernel.pagemap import Pagemap, Ranges
from woodfrog.resources import memory_checks, page_sets
from woodfrog.resources.memory import Extent, PageRange


class _Space(msgspec.Struct):
    pages: list[PageRange]


class _Any(msgspec.Struct):
    """A record of which only this matters; in others these fields may be anything."""

    kind: str
    pid: msgspec.Raw = msgspec.Raw()
    memory: msgspec.Raw = msgspec.Raw()


# What tells shared memory: a memfd's name, or the size of what has none.
_Name = tuple[bytes | None, int]


class Changes:
    """The pages of a parent image, and which of a container's are still the same."""

    def __init__(self, parent: Chain) -> None:
        self._parent = parent
        self._pages: dict[int, list[PageRange]] = pages_by_process(parent)
        self._objects = _objects(parent)
        self._unwritten: dict[int, Ranges] = {}
        self.compared = 0

    def look(self, processes: Iterable[CollectedProcess], noted: Container[int]) -> None:
        """Ask the kernel what has not been written to since the parent was made.

        The processes are held; `noted` are those of which it knows, by their pids.
        """
        for one in processes:
            found = unwritten_since(one, noted)
            if found is not None:
                self._unwritten[one.held.pid] = found

    def changed_bytes(self, one: CollectedProcess) -> int | None:
        """Return about how much of a process has changed, if the kernel has told."""
        unwritten = self._unwritten.get(one.held.pid)
        if unwritten is None:
            return None
        return max(one.held.own_bytes - sum([end - start for start, end in unwritten]), 0)

    def split(
        self, one: CollectedProcess, extents: Ranges, contents: Source
    ) -> tuple[Ranges, list[PageRange]]:
        """Divide a process's pages into those that have changed, and where the others stand."""
        stored = self._pages.get(one.held.namespace_pid, [])
        unwritten = self._unwritten.get(one.held.pid)
        if unwritten is not None:
            same = page_sets.within(stored, page_sets.common(extents, unwritten))
        else:
            same = self._compare(page_sets.within(stored, extents), contents)
        return page_sets.outside(extents, same), [_of_parent(page) for page in same]

    def take_out(self, one: SharedObject, contents: Source) -> None:
        """Leave to the parent what of shared memory is as there.

        It has no name that is the same in two images. So the first one of a kind there is taken for
        the first one here; taking another costs no more than time, as all is compared.
        """
        others = self._objects[one.memfd, 0 if one.memfd else one.size]
        if not others or one.huge_page:
            return
        extents = [(extent.start, extent.start + extent.length) for extent in one.extents]
        same = self._compare(page_sets.within(others.popleft(), extents), contents)
        left = page_sets.outside(extents, same)
        one.inherit(
            [Extent(start=start, length=end - start) for start, end in left],
            [_of_parent(page) for page in same],
        )

    def _compare(self, candidates: list[PageRange], contents: Source) -> list[PageRange]:
        """Return the pages that are as in the parent, by their contents."""
        same: list[PageRange] = []
        self.compared += sum(one.length for one in candidates)

        def worker() -> Callable[[PageRange], None]:
            theirs = bytearray(CHUNK)
            chunks = self._parent.chunks()

            def compare(piece: PageRange) -> None:
                start, length, store = piece.start, piece.length, piece.store
                with memoryview(theirs) as view:
                    contents.read(view[:length], [(start, length)])
                ours = chunks.memory(store // CHUNK)
                equal = equal_pages(theirs, 0, ours, store % CHUNK, length)
                same.extend(
                    [
                        PageRange(start=start + begin, length=end - begin, store=store + begin)
                        for begin, end in equal
                    ]
                )

            return compare

        in_parallel(_in_chunks(candidates), worker, threads=min(2, usable_cpus()))
        same.sort(key=lambda page: page.start)
        return _joined(same)


def unwritten_since(one: CollectedProcess, noted: Container[int]) -> Ranges | None:
    """Return the pages of a held process that were not written to, if the kernel has noted it."""
    if one.held.pid not in noted:
        return None
    found: Ranges = []
    try:
        with Pagemap(one.held.pid) as pagemap:
            for mapping in one.space.mappings:
                start, end = mapping.start, mapping.end
                if walk := one.held.walked.get((start, end)):
                    found += walk.unwritten
                elif not mapping.shared:
                    found += pagemap.unwritten(start, end, anonymous=mapping.is_anonymous)
    except OSError:
        return None
    return found


class ParentImage:
    """The image that a checkpoint builds on, if there is one, and what is noted of the container.

    It stays open until `undo` unwinds.
    """

    def __init__(
        self, undo: ExitStack, options: CheckpointOptions, tracker: Tracker | None
    ) -> None:
        self.known = tracker.known() if tracker else None
        self.name: Parent | None = None
        self.changes: Changes | None = None
        if options.parent:
            chain = undo.enter_context(Chain(options.parent))
            self.name = chain.as_parent
            self.changes = Changes(chain)

    def look(self, processes: Iterable[CollectedProcess]) -> None:
        """Ask the kernel what it has noted since this image was made, while all is held."""
        known, name = self.known, self.name
        if self.changes and known and name and known.image == name.digest:
            self.changes.look(processes, still_noted(known))


def pages_by_process(image: Chain) -> dict[int, list[PageRange]]:
    """Return where an image has the pages of its processes, by their ids; raises ImageError."""
    found: dict[int, list[PageRange]] = {}
    try:
        for record in image.records(_Any):
            if record.kind in ("process", "pre-dump"):
                pid = msgspec.msgpack.decode(record.pid, type=int)
                found[pid] = msgspec.msgpack.decode(record.memory, type=_Space).pages
    except msgspec.MsgspecError as error:
        raise ImageError(f"the parent image has records that make no sense: {error}") from error
    for pages in found.values():
        memory_checks.check_pages(pages, image.store_bytes)
    return found


def _objects(image: Chain) -> defaultdict[_Name, deque[list[PageRange]]]:
    """Return where an image has the pages of its shared memory, in order; raises ImageError."""
    found: defaultdict[_Name, deque[list[PageRange]]] = defaultdict(deque)
    if "shared-memory" not in image.tags():
        return found
    from woodfrog.resources import shared_memory

    try:
        for tag, raw in zip(image.tags(), image.records(msgspec.Raw), strict=True):
            if tag == "shared-memory":
                one = msgspec.msgpack.decode(raw, type=shared_memory.SharedMemory)
                shared_memory.check(one, image.store_bytes)
                found[one.memfd, 0 if one.memfd else one.size].append(one.pages)
    except msgspec.MsgspecError as error:
        raise ImageError(f"the parent image has records that make no sense: {error}") from error
    return found


def _of_parent(page: PageRange) -> PageRange:
    return PageRange(start=page.start, length=page.length, store=page.store + ANCESTOR)


def _in_chunks(pages: Iterable[PageRange]) -> Iterator[PageRange]:
    """Cut pages so that each piece lies in one chunk of the store."""
    for page in pages:
        done = 0
        while done < page.length:
            step = min(page.length - done, CHUNK - (page.store + done) % CHUNK)
            yield PageRange(start=page.start + done, length=step, store=page.store + done)
            done += step


def _joined(pages: list[PageRange]) -> list[PageRange]:
    """Make one of neighbours that are neighbours in the store, too."""
    joined: list[PageRange] = []
    for page in pages:
        last = joined[-1] if joined else None
        if last and (last.start + last.length, last.store + last.length) == (
            page.start,
            page.store,
        ):
            length = last.length + page.length
            joined[-1] = PageRange(start=last.start, length=length, store=last.store)
        else:
            joined.append(page)
    return joined
