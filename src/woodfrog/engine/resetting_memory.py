"""Set the memory of a held process back to what an image has, touching only what differs."""

import errno
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, groupby, pairwise, repeat

import msgspec
from msgspec.structs import replace

from woodfrog.engine.differing import Pairs
from woodfrog.engine.shared_objects import SharedObject
from woodfrog.engine.standing import Standing
from woodfrog.errors import UnsupportedResource
from woodfrog.image import direct_io
from woodfrog.image.chain import Chain
from woodfrog.image.layout import ANCESTOR, CHUNK
from woodfrog.image.pages import read_exactly
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.comparing import equal_pages
from woodfrog.kernel.pagemap import Pagemap, Ranges
from woodfrog.kernel.process_memory import FileContents, ProcessMemory, write_memory
from woodfrog.kernel.reading_many import Reads
from woodfrog.remote.address import page_up
from woodfrog.remote.program import Program
from woodfrog.remote.stub import Stub
from woodfrog.resources import memory_making, page_sets
from woodfrog.resources.deleted_files import DeletedFile, Found
from woodfrog.resources.memory import PROT_WRITE, Mapping, PageRange, Source
from woodfrog.resources.shared_memory import SharedMemory

_MADV_DONTNEED, _MADV_DONTNEED_LOCKED = 4, 24
_MADV_GUARD_INSTALL, _MADV_GUARD_REMOVE = 102, 103
_FALLOC_KEEP_SIZE, _FALLOC_PUNCH_HOLE = 1, 2
_PROT_READ_WRITE = 3
_CALLS_AT_ONCE = 100
_MOST_KEPT = 256 << 20


class _Write(msgspec.Struct, frozen=True):
    """Pages to be written to the memory of a process, `pid`, or to a file: `fd` is open on either.

    Those that may be the same already are compared first. A file has no more than `size` bytes.
    """

    fd: int
    start: int
    length: int
    store: int
    compare: bool
    size: int | None = None
    pid: int = 0


class Layout(msgspec.Struct, frozen=True):
    """How the mappings of a process have to change, and which stay."""

    unmap: list[Mapping]
    make: list[Mapping]
    protect: list[tuple[int, int, int]]
    opened: list[Mapping]  # private ones that can be written to when they are protected
    kept: list[Mapping]  # private ones
    locked: list[tuple[int, int]]  # of those


def compare_layouts(then: list[Mapping], now: list[Mapping], pairs: Pairs) -> Layout:
    """Compare mappings piece by piece; raises UnsupportedResource for what can't be made."""
    cuts = sorted({edge for one in (*then, *now) for edge in (one.start, one.end)})
    layout = Layout([], [], [], [], [], [])
    at_then = at_now = 0
    for start, end in pairwise(cuts):
        while at_then < len(then) and then[at_then].end <= start:
            at_then += 1
        while at_now < len(now) and now[at_now].end <= start:
            at_now += 1
        wanted = _piece(then, at_then, start, end)
        found = _piece(now, at_now, start, end)
        if wanted and found and _is_same(wanted, found, pairs):
            if wanted.protection != found.protection:
                layout.protect.append((start, end, wanted.protection))
            if not wanted.shared:
                if wanted.protection & ~found.protection & PROT_WRITE:
                    layout.opened.append(wanted)
                layout.kept.append(found)
                if found.locked:
                    layout.locked.append((start, end))
            continue
        if found:
            if found.sealed:
                raise _impossible(f"memory at {start:#x} is sealed (mseal) since")
            layout.unmap.append(found)
        if wanted:
            if wanted.source not in (Source.ANONYMOUS, Source.FILE) or wanted.huge_page:
                raise _impossible(f"shared memory at {start:#x} was unmapped since")
            layout.make.append(wanted)
    return layout


def _piece(mappings: list[Mapping], at: int, start: int, end: int) -> Mapping | None:
    if at == len(mappings) or mappings[at].start > start:
        return None
    one = mappings[at]
    offset = one.offset + start - one.start if one.source is not Source.ANONYMOUS else one.offset
    return msgspec.structs.replace(one, start=start, end=end, offset=offset)


def _is_same(then: Mapping, now: Mapping, pairs: Pairs) -> bool:
    if then.source is Source.SHARED and not pairs.match("object", then.object, now.object):
        return False
    here = msgspec.structs.replace(
        now, protection=then.protection, object=then.object, lock_on_fault=then.lock_on_fault
    )
    return then == here


def _leave_to_brk(layout: Layout, start: int, end: int) -> None:
    """Let brk(2) make the heap larger again; only protections are set then."""
    for one in list(layout.make):
        if start <= one.start and one.end <= end:
            layout.make.remove(one)
            if one.protection != _PROT_READ_WRITE:
                layout.protect.append((one.start, one.end, one.protection))


def _impossible(what: str) -> UnsupportedResource:
    return UnsupportedResource(
        f"{what}, which a rollback in place can't undo",
        hint="restore the image into a new container instead",
    )


class MemoryReset:
    """What is to be done to one process's memory; `look` changes nothing."""

    def __init__(self, one: Standing, pairs: Pairs, unwritten: Ranges | None) -> None:
        """`unwritten` is what the kernel knows not to have changed since the image, if it does."""
        self._one = one
        self._unwritten = unwritten
        then, now = one.then.memory, one.now.space.mappings
        self.layout = compare_layouts(then.mappings, now, pairs)
        self._memory = one.held.memory
        brk_now = int(one.now.space.fields["brk"])  # type: ignore[call-overload]
        self._brk = then.brk if then.brk != brk_now else 0
        self._shrinks = self._brk < brk_now
        self.brk_grows = max(page_up(then.brk) - page_up(brk_now), 0)
        if self._brk > brk_now:
            _leave_to_brk(self.layout, brk_now, self._brk)
        own: Ranges = []
        self._guards: Ranges = []
        with Pagemap(one.held.pid) as pagemap:
            for kept in self.layout.kept:
                start, end = kept.start, kept.end
                if walk := one.held.walked.get((start, end)):
                    own += walk.own
                    self._guards += walk.guards
                    continue
                found = pagemap.own_and_guards(start, end, anonymous=kept.is_anonymous)
                own += found[0]
                self._guards += found[1]
        self._drop = page_sets.outside(own, then.pages)
        self.writes = self._lacking(then.pages, own)

    @property
    def files(self) -> set[bytes]:
        """Return the paths of the files that are mapped again."""
        return {one.path for one in self.layout.make if one.source is Source.FILE}

    def _lacking(self, pages: list[PageRange], own: Ranges) -> list[_Write]:
        """Return all that the image has but what is known to be unchanged; it may be equal."""
        unwritten = self._unwritten
        if unwritten is not None:
            # What is unwritten is there; of what was mapped anew nothing is.
            kept = [(one.start, one.end) for one in self.layout.kept]
            left = page_sets.without(pages, page_sets.common(unwritten, kept))
            return [*self._writes(left, compare=False)]
        present = page_sets.within(pages, own)
        lacking = _minus(pages, present)
        return [*self._writes(present, compare=True), *self._writes(lacking, compare=False)]

    def _writes(self, pages: list[PageRange], *, compare: bool) -> Iterator[_Write]:
        memory, pid = self._memory, self._one.held.pid
        for page in pages:
            yield _Write(memory, page.start, page.length, page.store, compare, None, pid)

    def arrange(self, stub: Stub) -> None:
        """Change the mappings, and take away pages that the image lacks."""
        then = self._one.then.memory
        calls: list[Callable[..., object]] = []
        layout = self.layout
        guards = [(guard.start, guard.start + guard.length) for guard in then.guards]
        locked = layout.locked
        for start, end in self._guards:
            if (start, end) not in guards:
                calls.append(_advise(start, end, _MADV_GUARD_REMOVE))
        # It fails where nothing is mapped to be given back, or something is in the way.
        if self._brk and self._shrinks:
            calls.append(self._set_brk)
        for one in layout.unmap:
            calls.append(lambda p, m=one: syscalls.munmap(p, m.start, m.end - m.start))
        if self._brk and not self._shrinks:
            calls.append(self._set_brk)
        for one in layout.make:
            calls.append(lambda p, m=one: memory_making.restore_mappings(p, [m], [], _no_object))
            calls.append(lambda p, m=one: memory_making.advise(p, [m]))
        for start, end in self._drop:
            is_locked = any(low < end and start < high for low, high in locked)
            advice = _MADV_DONTNEED_LOCKED if is_locked else _MADV_DONTNEED
            calls.append(_advise(start, end, advice))
        _run(stub, calls)

    def _set_brk(self, program: Program) -> None:
        program.expect(program.call(SYS.BRK, self._brk), self._brk)

    def finish(self, stub: Stub) -> None:
        """Do what comes when all pages are in place."""
        calls: list[Callable[..., object]] = []
        for start, end, protection in self.layout.protect:
            calls.append(_protect(start, end, protection))
        for one in self.layout.make:
            calls.append(lambda p, m=one: memory_making.protect(p, [m], [], ()))
        for guard in self._one.then.memory.guards:
            end = guard.start + guard.length
            if (guard.start, end) not in self._guards:
                calls.append(_advise(guard.start, end, _MADV_GUARD_INSTALL))
        _run(stub, calls)


def _advise(start: int, end: int, advice: int) -> Callable[..., object]:
    return lambda program: syscalls.madvise(program, start, end - start, advice)


def _protect(start: int, end: int, protection: int) -> Callable[..., object]:
    return lambda program: syscalls.mprotect(program, start, end - start, protection)


def _no_object(number: int, for_writing: bool) -> int:
    raise AssertionError("only private memory and files are mapped again")


def _run(stub: Stub, calls: list[Callable[..., object]]) -> None:
    for first in range(0, len(calls), _CALLS_AT_ONCE):
        program = stub.program()
        for call in calls[first : first + _CALLS_AT_ONCE]:
            call(program)
        stub.run(program)


class SharedReset:
    """What is to be done to shared memory or a deleted file.

    `fd` is open for writing, if the container itself can write there.
    """

    def __init__(
        self,
        then: SharedMemory | DeletedFile,
        now: SharedObject | Found,
        fd: int,
        *,
        may_write: bool,
    ) -> None:
        self._fd = fd
        self._may_write = may_write
        self._size = then.size
        wanted = then.pages
        has = [(one.start, one.start + one.length) for one in now.extents if one.start < then.size]
        self._punch = page_sets.outside(has, wanted)
        present = page_sets.within(wanted, has)
        self.writes = [
            _Write(fd, page.start, page.length, page.store, True, then.size) for page in present
        ]
        self.writes += (
            _Write(fd, page.start, page.length, page.store, False, then.size)
            for page in _minus(wanted, present)
        )

    def refuse_if_changed(self, contents: "Contents") -> None:
        """Refuse what has changed and nobody in the container can write to (any more)."""
        same_layout = os.fstat(self._fd).st_size == self._size and not self._punch
        if not (self._may_write or (same_layout and not contents.goes_to(self._fd))):
            raise _impossible("shared memory or a deleted file has changed that it only reads now")

    def arrange(self) -> None:
        """Set back its size, and take away pages that the image lacks."""
        if not self._may_write:
            return
        if os.fstat(self._fd).st_size != self._size:
            os.ftruncate(self._fd, self._size)
        for start, end in self._punch:
            try:
                how = _FALLOC_KEEP_SIZE | _FALLOC_PUNCH_HOLE
                HERE.call(SYS.FALLOCATE, self._fd, how, start, end - start)
            except OSError as error:
                if error.errno != errno.EPERM:  # sealed against writing: nobody has written
                    raise


class Contents:
    """What is to be written of an image: read and checked while nothing is touched yet.

    As much as we like to keep in our own memory; the rest is read again.
    """

    def __init__(self, image: Chain, writes: Iterable[_Write], *, trusted: bool) -> None:
        """If the image is `trusted`, nobody has written to its file since all of it was right."""
        self._image = image
        self._kept: list[tuple[_Write, bytes]] = []
        # What was read plainly, of processes' memory, one after the other.
        self._plain: list[_Write] = []
        self._data = memoryview(bytearray())
        self._left: list[_Write] = []
        self._lock = threading.Lock()
        self._own = threading.local()
        self.looked_at = self.written = 0
        jobs: dict[int, list[_Write]] = defaultdict(list)
        plain = image.plain_store if trusted else None
        if plain:
            writes = self._take_plainly(writes, *plain)
        for one in writes:
            self.looked_at += one.length
            for piece in _in_chunks(one):
                jobs[piece.store // CHUNK].append(piece)
        image.each_chunk(sorted(jobs.items()), self._take)

    def _take_plainly(self, writes: Iterable[_Write], fd: int, base: int) -> list[_Write]:
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
        jobs: dict[int, list[_Write]] = defaultdict(list)
        for one in self._left:
            jobs[one.store // CHUNK].append(one)

        def use(pieces: list[_Write], contents: memoryview) -> None:
            for one in pieces:
                _put(one, contents[one.store % CHUNK :][: one.length])

        self._image.each_chunk(sorted(jobs.items()), use)

    def _take(self, pieces: list[_Write], contents: memoryview) -> None:
        """Keep what differs of a chunk's pages, or note it."""
        for one in self._differing(pieces, contents):
            with self._lock:
                self.written += one.length
                if self.written > _MOST_KEPT:
                    self._left.append(one)
                    continue
            data = bytes(contents[one.store % CHUNK :][: one.length])
            self._kept.append((one, data))

    def _differing(self, pieces: list[_Write], contents: memoryview) -> Iterator[_Write]:
        """Go through what is to be written, leaving out pages that are compared and the same."""
        for one in pieces:
            if not one.compare:
                yield one
                continue
            theirs = self._theirs()[: one.length]
            there = ProcessMemory(one.fd) if one.size is None else FileContents(one.fd)
            there.read(theirs, [(one.start, one.length)])
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


def _put(one: _Write, data: memoryview) -> None:
    if one.size is not None:
        data = data[: max(one.size - one.start, 0)]
    done = 0
    while done < len(data):
        done += os.pwrite(one.fd, data[done:], one.start + done)


def _in_chunks(one: _Write) -> Iterator[_Write]:
    """Cut what is to be written so that each piece lies in one chunk of the store."""
    done = 0
    while done < one.length:
        step = min(one.length - done, CHUNK - (one.store + done) % CHUNK)
        yield replace(one, start=one.start + done, length=step, store=one.store + done)
        done += step


def _minus(pages: list[PageRange], others: list[PageRange]) -> list[PageRange]:
    """Return the pages that aren't among others."""
    return page_sets.without(pages, [(page.start, page.start + page.length) for page in others])
