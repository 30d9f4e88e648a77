"""An image whose memory lies ready in a process of ours, from which containers are forked.

Each mapping is *staged*: mapped as a whole somewhere else, at an address that is the same modulo
2 MiB (1 GiB if it is that large), and filled. A new container's first process is a fork of ours,
the others are forked from it, so all of them have all that copy-on-write; each moves its own part
into place by mremap(2), page tables and all, and unmaps the rest.

What a child has had in common with its parent since fork(2) it takes from where that takes it: so
they share it again. It writes what differs, and drops what it hasn't.
"""

import ctypes
import mmap
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NoReturn

import msgspec

from woodfrog.engine import kinship, reading_pages
from woodfrog.engine.alike import Alike
from woodfrog.engine.plan import Plan
from woodfrog.engine.root_stub import STUB_BYTES
from woodfrog.errors import ImageError, UnsupportedResource, while_
from woodfrog.image.chain import Chain, merged
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import PAGE
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.process_memory import write_memory
from woodfrog.kernel.procfs.maps import read_maps
from woodfrog.remote import entrance
from woodfrog.remote.address import free_range
from woodfrog.remote.stub import CODE_BYTES
from woodfrog.remote.vdso import own_vdso
from woodfrog.resources import missing_memory, page_sets
from woodfrog.resources.memory import (
    MAP_ANONYMOUS,
    MAP_FIXED_NOREPLACE,
    MAP_NORESERVE,
    MAP_PRIVATE,
    Mapping,
    PageRange,
)
from woodfrog.resources.process import Process

_READ_WRITE, _READ_EXECUTE = 3, 5
_HUGE, _LARGEST = 2 << 20, 1 << 30
_MADV_COLLAPSE = 25
_ENOUGH_FAILURES = 100
# Of a huge page: a fork copies one entry for it, and one for each small page.
_LEAST_FILLED = _HUGE // 4 * 3
# For each byte that differs so many must be common.
_LEAST_SHARED = 8


class Staged(msgspec.Struct, frozen=True):
    """A mapping that is moved to `start` from where it lies ready.

    That may be its parent's: `ready` bytes are there, the rest is empty, and `dropped` are ranges,
    where it belongs, of pages that it hasn't.
    """

    start: int
    at: int
    ready: int
    dropped: Sequence[tuple[int, int]] = ()


class Template:
    """All of an image's private memory, in the process that loads it, and its records as a plan.

    What can't be moved is kept as well, and copied by each restore: pages of files, locked memory
    and stacks. At `base` is what the stubs begin with, the loop and memory of their own.
    """

    def __init__(self, directory: str, parents: Sequence[str] = ()) -> None:
        """Open an image and load its memory. Raises ImageError, or OSError without memory."""
        self.reader = Chain(directory, parents)
        self.vdso = own_vdso()
        self.plan = Plan(self.reader)
        _require(self.plan)
        self._staged: dict[int, list[Staged]] = {}
        # What lies ready, by where: from there to where, and as what it belongs where.
        self._stages: dict[int, _Stage] = {}
        # Where a process's other pages begin in `_kept`, and where they belong.
        self._others: dict[int, tuple[int, list[tuple[int, int]]]] = {}
        self.alike = Alike()
        # Has a fork of ours wait as a stub, for good; see forked_stub.
        self.stand_by: Callable[[], NoReturn] | None = None
        self.size = STUB_BYTES
        with while_("loading the image's memory"):
            self.bytes = self._load()
        # Whoever fills pages in has checked them.
        self.reader.leave_out(reading_pages.ranges(self.plan.pages))
        self.reader.verify_pages()
        self.reader.open_pages()  # once for all clones

    def staged(self, pid: int) -> list[Staged]:
        """Return what a process, by its id inside, moves into place."""
        return self._staged.get(pid, [])

    def fill(self, stub: int, pid: int) -> None:
        """Write what it doesn't move into a process, which is `stub` on the host."""
        begin, places = self._others[pid]
        if places:
            length = sum(one[1] for one in places)
            write_memory(stub, memoryview(self._kept)[begin : begin + length], places)

    def _load(self) -> int:
        """Load all pages; returns how many bytes they are."""
        forked = _forked_from_the_first(self.plan)
        place = _Place(self.plan)
        self.base = place.map_stub(self.size)
        moved: list[PageRange] = []
        copied: list[PageRange] = []
        for record in _parents_first(self.plan.processes):
            others: Sequence[PageRange] = record.memory.pages
            if record.pid in forked and not _shares_memory(record, self.plan):
                pages, others = self._stage(record, place)
                moved += pages
            begin = sum(one.length for one in copied)
            self._others[record.pid] = begin, [(one.start, one.length) for one in others]
            copied += others
        size = sum(one.length for one in copied)
        # Shared, so that no fork copies page tables of it.
        self._kept = mmap.mmap(-1, size or PAGE, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
        at = ctypes.addressof(ctypes.c_char.from_buffer(self._kept))
        for one in copied:
            moved.append(PageRange(start=at, length=one.length, store=one.store))
            at += one.length
        reading_pages.fill_pages(self.reader, os.getpid(), moved)
        return sum(one.length for one in moved)

    @property
    def ready(self) -> list[tuple[int, int]]:
        """Return all memory that lies ready, as (start, end) in order."""
        return sorted((at, one.end) for at, one in self._stages.items())

    def leave_memory(self) -> None:
        """Let go of what is staged, in a process that others are not forked from."""
        for start, end in self.ready:
            syscalls.munmap(HERE, start, end - start)

    def drop(self) -> None:
        """Let go of it."""
        self.leave_memory()
        self._staged.clear()
        self._stages.clear()
        self.reader.close()

    def _stage(
        self, record: Process, place: "_Place"
    ) -> tuple[list[PageRange], Sequence[PageRange]]:
        """Map what a process can move; returns those pages, at their addresses here, and others."""
        space = record.memory
        division = missing_memory.divide(space.mappings, space.pages, missing_memory.may_wait)
        wanted = {start for start, _ in division.mappings}
        of_parent = {one.start: one for one in self._staged.get(record.parent, ())}
        staged = self._staged[record.pid] = []
        moved: list[PageRange] = []
        others = division.at_once
        later = iter(division.later)
        page = next(later, None)
        for mapping in space.mappings:
            if mapping.start not in wanted:
                continue
            pages = []
            while page and page.start < mapping.end:
                pages.append(page)
                page = next(later, None)
            if shared := self._shared(mapping, pages, of_parent.get(mapping.start)):
                staged.append(shared[0])
                others += shared[1]
                continue
            at = place.map(mapping)
            length = mapping.end - mapping.start
            staged.append(Staged(mapping.start, at, length))
            self._stages[at] = _Stage(at + length, mapping.reserves, pages)
            away = at - mapping.start
            there = [
                PageRange(start=one.start + away, length=one.length, store=one.store)
                for one in pages
            ]
            for start, end in mostly_filled(at, at + length, there):
                _make_huge(start, end)
            moved += there
        return moved, others

    def _shared(
        self, mapping: Mapping, pages: Sequence[PageRange], other: Staged | None
    ) -> tuple[Staged, list[PageRange]] | None:
        """Tell how a mapping comes from where its parent's comes from, and which pages differ.

        Each clone has a copy of its own of those: if they are many, all is staged once more.
        """
        if other is None or self._stages[other.at].reserves != mapping.reserves:
            return None
        stage = self._stages[other.at]
        ready = min(stage.end - other.at, mapping.end - mapping.start)
        there = page_sets.within(stage.pages, [(mapping.start, mapping.start + ready)])
        right = page_sets.same(pages, there)
        rest = page_sets.without(pages, page_sets.ranges(right))
        if _bytes(rest) * _LEAST_SHARED > _bytes(right) or not right:
            return None
        dropped = page_sets.ranges(page_sets.without(there, page_sets.ranges(right)))
        return Staged(mapping.start, other.at, ready, dropped), rest


class _Stage(msgspec.Struct, frozen=True):
    """Memory that lies ready: its end, whether it is reserved, and pages, where they belong."""

    end: int
    reserves: bool
    pages: Sequence[PageRange]


class _Place:
    """Addresses here that neither we nor any process of the image uses."""

    def __init__(self, plan: Plan) -> None:
        used = plan.used_memory() + [(one[0], one[1]) for one in read_maps(os.getpid())]
        room = sum(
            mapping.end
            - mapping.start
            + 2 * min(_alignment(mapping), mapping.end - mapping.start)
            + 2 * _HUGE
            for record in plan.processes
            for mapping in record.memory.mappings
            if missing_memory.may_wait(mapping)
        )
        try:
            stub = CODE_BYTES + STUB_BYTES + PAGE
            self._next = free_range(used, room + _LARGEST + stub).start
        except ValueError:
            raise ImageError("the image's processes leave no room for a template") from None

    def map_stub(self, size: int) -> int:
        """Map what a stub has of its own: the loop, and memory; returns where."""
        base = self._next
        mode = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_NORESERVE
        syscalls.mmap(HERE, base, CODE_BYTES + size, _READ_WRITE, mode)
        code = entrance.code()
        ctypes.memmove(base, code, len(code))
        syscalls.mprotect(HERE, base, CODE_BYTES, _READ_EXECUTE)
        self._next = base + CODE_BYTES + size + PAGE
        return base

    def map(self, mapping: Mapping) -> int:
        """Map as much memory as a mapping has; pages between keep neighbours apart."""
        alignment, length = _alignment(mapping), mapping.end - mapping.start
        at = self._next + (mapping.start - self._next) % alignment
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
        if not mapping.reserves:
            flags |= MAP_NORESERVE
        syscalls.mmap(HERE, at, length, _READ_WRITE, flags)
        self._next = at + length + PAGE
        return at


def _alignment(mapping: Mapping) -> int:
    """Return by what a mapping may move, so that whole page tables move."""
    return _LARGEST if mapping.end - mapping.start >= _LARGEST else _HUGE


def _require(plan: Plan) -> None:
    """Refuse images whose processes can't be forked from one of ours."""
    if plan.container.uid_map:
        raise UnsupportedResource(
            "a template is not possible for a container with a user namespace",
            hint="restore it without",
        )


def _forked_from_the_first(plan: Plan) -> set[int]:
    """Return the pids of those that the first process makes, itself or by others."""
    makers = kinship.makers([*plan.processes, *plan.zombies])
    found = set()
    for record in plan.processes:
        pid, way = record.pid, []
        while pid != 1 and pid in makers and pid not in way:
            way.append(pid)
            pid = makers[pid].pid
        if pid == 1:
            found.add(record.pid)
    return found


def _parents_first(processes: Sequence[Process]) -> list[Process]:
    """Return processes so that none comes before its parent."""
    left = {one.pid: one for one in processes}
    found: list[Process] = []
    for record in processes:
        line = []
        while record.pid in left:
            line.append(left.pop(record.pid))
            record = left.get(record.parent, record)
        found += reversed(line)
    return found


def _bytes(pages: Sequence[PageRange]) -> int:
    return sum(one.length for one in pages)


def _shares_memory(record: Process, plan: Plan) -> bool:
    """Tell whether several processes have a memory, by clone(2)."""
    return bool(record.shares.memory) or any(
        other.shares.memory == record.pid for other in plan.processes
    )


def _make_huge(start: int, end: int) -> None:
    """Have huge pages there before anything is: later the kernel would copy all of it.

    One page of each must be there, or the kernel finds nothing to make one of.
    """
    for address in range(start, end, _HUGE):
        ctypes.memset(address, 0, 1)
    try:
        syscalls.madvise(HERE, start, end - start, _MADV_COLLAPSE)
        return
    except OSError:
        failed = 0
    # Memory is in pieces, and the kernel has given up at the first that it couldn't have. What
    # stays small makes forking take longer.
    for address in range(start, end, _HUGE):
        try:
            syscalls.madvise(HERE, address, _HUGE, _MADV_COLLAPSE)
        except OSError:
            failed += 1
            if failed == _ENOUGH_FAILURES:
                return


def mostly_filled(start: int, end: int, pages: Sequence[PageRange]) -> list[tuple[int, int]]:
    """Return where pages fill most of each huge page, as (start, end), within memory.

    The rest of those is zeros then, as it was for those who hadn't touched it.
    """
    filled: dict[int, int] = defaultdict(int)
    for page in pages:
        last = page.start + page.length
        for block in range(page.start // _HUGE * _HUGE, last, _HUGE):
            filled[block] += min(last, block + _HUGE) - max(page.start, block)
    return merged(
        (block, block + _HUGE)
        for block, length in filled.items()
        if length >= _LEAST_FILLED and start <= block and block + _HUGE <= end
    )
