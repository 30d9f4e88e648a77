"""Set the memory of a held process back to what an image has, touching only what differs."""

import errno
import os
from collections.abc import Callable, Iterator
from itertools import pairwise

import msgspec

from woodfrog.engine.differing import Pairs
from woodfrog.engine.putting_back import Contents, Write
from woodfrog.engine.shared_objects import SharedObject
from woodfrog.engine.standing import Standing
from woodfrog.errors import UnsupportedResource
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import PAGE, SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.pagemap import Pagemap, Ranges
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
    if then.source is Source.SYSV and then.object != now.object:
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

    def _lacking(self, pages: list[PageRange], own: Ranges) -> list[Write]:
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

    def _writes(self, pages: list[PageRange], *, compare: bool) -> Iterator[Write]:
        memory, pid = self._memory, self._one.held.pid
        for page in pages:
            yield Write(memory, page.start, page.length, page.store, compare, None, pid)

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
        # What is behind an end is cleared when the file is cut there.
        kept = has if now.size == then.size else page_sets.common(has, [(0, then.size & -PAGE)])
        present = page_sets.within(wanted, kept)
        whole = isinstance(then, SharedMemory)
        self.writes = [
            Write(fd, one.start, one.length, one.store, compare, then.size, whole=whole)
            for pages, compare in ((present, True), (_minus(wanted, present), False))
            for one in pages
        ]

    def refuse_if_changed(self, contents: Contents) -> None:
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


def _minus(pages: list[PageRange], others: list[PageRange]) -> list[PageRange]:
    """Return the pages that aren't among others."""
    return page_sets.without(pages, [(page.start, page.start + page.length) for page in others])
