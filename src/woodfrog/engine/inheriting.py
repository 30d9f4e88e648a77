"""Memory that children have from their parents since fork(2): they get it that way again.

While the tree is made, a stub has what its next child was born with, at its final addresses: so
the child has it copy-on-write. What has changed since then, each fills in for itself. A parent's
pages that changed between two forks are changed between the two here, too.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from woodfrog.engine import reading_pages, sharing
from woodfrog.engine.pids import Member
from woodfrog.engine.reading_pages import Space
from woodfrog.image.chain import Chain
from woodfrog.kernel import syscalls
from woodfrog.remote.program import Program
from woodfrog.remote.stub import Stub
from woodfrog.resources import credentials, memory_making, page_sets
from woodfrog.resources.memory import AddressSpace, Mapping, PageRange, Source
from woodfrog.resources.process import Process

_PROT_READ_WRITE = 3
# MADV_DONTFORK, MADV_WIPEONFORK
_NOT_INHERITED = frozenset((10, 18))
# MADV_HUGEPAGE, MADV_NOHUGEPAGE: one or the other it remains.
_FOR_GOOD = frozenset((14, 15))


class Inherited(NamedTuple):
    """What a stub has mapped, readable and writable, and the pages that are in it."""

    pieces: list[Mapping] = []
    pages: list[PageRange] = []


class Wish(msgspec.Struct, frozen=True):
    """Pages that a child is to inherit, and its mappings, in some of which they are."""

    mappings: Sequence[Mapping]
    pages: list[PageRange]


class Reconciled(msgspec.Struct, frozen=True):
    """What an address space has still to do, with what it has inherited.

    `kept` are ranges that stay mapped, and `dropped` those of their pages that it hasn't any more;
    `mappings` and `pages` are to be made. `starts` are those of mappings of which something stays.
    """

    kept: list[tuple[int, int]]
    dropped: list[tuple[int, int]]
    mappings: list[Mapping]
    pages: list[PageRange]
    starts: frozenset[int]


def reconcile(inherited: Inherited, space: AddressSpace, pages: Sequence[PageRange]) -> Reconciled:
    """Compare what was inherited with what there has to be: a process's memory and these pages."""
    if not inherited.pieces:
        return Reconciled([], [], space.mappings, list(pages), frozenset())
    same: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for piece, mapping in _overlaps(inherited.pieces, space.mappings):
        if _is_inheritable(mapping) and _kind(piece) == _kind(mapping):
            same[mapping.start].append(_overlap(piece, mapping))
    mappings = [
        part
        for one in space.mappings
        for part in _parts(one, page_sets.gaps(one.start, one.end, same.get(one.start, [])))
    ]
    kept = [one for ranges in same.values() for one in ranges]
    there = page_sets.within(inherited.pages, kept)
    right = page_sets.ranges(page_sets.same(there, pages))
    dropped = page_sets.ranges(page_sets.without(there, right))
    return Reconciled(kept, dropped, mappings, page_sets.without(pages, right), frozenset(same))


class Inheritance:
    """Has stubs keep for a moment what their children inherit.

    Files are opened by the new container's capabilities.
    """

    def __init__(
        self, reader: Chain, processes: Iterable[Process], capabilities: int, permitted: int
    ) -> None:
        self._by_pid = {one.pid: one for one in processes}
        self._reader = reader
        self._capabilities = capabilities
        self._permitted = permitted
        self._of: dict[int, Inherited] = {}

    def of(self, pid: int) -> Inherited:
        """Return what the stub of a process has by now."""
        return self._of.get(pid, Inherited())

    def bear(self, parent: Member, child: Member) -> None:
        """Note that a child has been made: it has what its parent had."""
        owner = self._owner(parent)
        if owner in self._of and isinstance(child, Process) and not child.shares.memory:
            self._of[child.pid] = self._of[owner]

    def _owner(self, member: Member) -> int:
        """Return whose a process's memory is, which it may share with another (CLONE_VM)."""
        return member.shares.memory or member.pid

    def wishes(self, parent: Member, children: Iterable[Member]) -> dict[int, Wish]:
        """Return what each child has in common with its parent, or siblings near to it."""
        found: dict[int, Wish] = {}
        if not isinstance(parent, Process):
            return found
        family = sorted((one for one in children if isinstance(one, Process)), key=_pid)
        for place, child in enumerate(family):
            before = family[max(place - sharing.NEAR, 0) : place]
            siblings = [*reversed(before), *family[place + 1 : place + 1 + sharing.NEAR]]
            pages = _common(child, [self._by_pid.get(self._owner(parent), parent), *siblings])
            if pages:
                found[child.pid] = Wish(child.memory.mappings, pages)
        return found

    def prepare(self, stub: Stub, parent: Member, wish: Wish) -> None:
        """Have a parent's stub keep what its next child is born with."""
        owner = self._owner(parent)
        before = self._of.get(owner)
        program = stub.program()
        if before is None:
            memory_making.unmap_all(program, [stub.area])
            before = Inherited()
        credentials.set_effective(program, self._capabilities, self._permitted)
        pieces, pages = _have(program, list(_with_some_of(wish.mappings, wish.pages)), before)
        credentials.set_effective(program, self._permitted, self._permitted)
        right = page_sets.ranges(page_sets.same(wish.pages, pages))
        new = page_sets.without(wish.pages, right)
        if owner in self._of and pieces == before.pieces and not new:
            return  # the sibling before had just the same
        old = page_sets.within(pages, page_sets.ranges(new))
        memory_making.drop(program, page_sets.ranges(old))
        stub.run(program)
        reading_pages.fill(self._reader, [Space(stub, pieces, new)])
        pages = sorted(
            [*page_sets.without(pages, page_sets.ranges(new)), *new], key=lambda one: one.start
        )
        self._of[owner] = Inherited(pieces, pages)


def _pid(one: Process) -> int:
    return one.pid


def _common(child: Process, relatives: Sequence[Process]) -> list[PageRange]:
    """Return the pages that a child has in common with any of its relatives."""
    inheritable = [(one.start, one.end) for one in child.memory.mappings if _is_inheritable(one)]
    left = page_sets.within(child.memory.pages, inheritable)
    found: list[PageRange] = []
    for relative in relatives:
        common = page_sets.same(left, relative.memory.pages)
        left = page_sets.without(left, page_sets.ranges(common))
        found += common
    return sorted(found, key=lambda one: one.start)


def _is_inheritable(mapping: Mapping) -> bool:
    """Tell whether a mapping can be had by fork(2) as it is made."""
    return (
        not mapping.shared
        and mapping.source in (Source.ANONYMOUS, Source.FILE)
        and not mapping.huge_page
        and not mapping.droppable
        and _NOT_INHERITED.isdisjoint(mapping.advice)
    )


def _kind(mapping: Mapping) -> tuple[object, ...]:
    """Return what must be the same in parent and child, since it can't be changed afterwards."""
    return (
        mapping.path,
        mapping.offset - mapping.start if mapping.path else 0,
        mapping.no_reserve,
        mapping.grows_down,
        mapping.name,
        mapping.policy,
        [one for one in mapping.advice if one in _FOR_GOOD],
    )


def _with_some_of(mappings: Sequence[Mapping], pages: Sequence[PageRange]) -> Iterator[Mapping]:
    """Yield the mappings in which pages are."""
    at = 0
    for mapping in mappings:
        while at < len(pages) and pages[at].start + pages[at].length <= mapping.start:
            at += 1
        if at < len(pages) and pages[at].start < mapping.end:
            yield mapping


def _have(program: Program, mappings: Sequence[Mapping], before: Inherited) -> Inherited:
    """Map what mappings have and a stub hasn't; what is in their way goes."""
    there: dict[int, list[tuple[int, int]]] = defaultdict(list)
    in_the_way: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for piece, mapping in _overlaps(before.pieces, mappings):
        if _kind(piece) == _kind(mapping):
            there[mapping.start].append(_overlap(piece, mapping))
        else:
            in_the_way[piece.start].append(_overlap(piece, mapping))
    gone = [one for ranges in in_the_way.values() for one in ranges]
    for start, end in gone:
        syscalls.munmap(program, start, end - start)
    rest = [
        part
        for piece in before.pieces
        for part in _parts(
            piece, page_sets.gaps(piece.start, piece.end, in_the_way.get(piece.start, []))
        )
    ]
    new = [
        msgspec.structs.replace(
            part,
            protection=_PROT_READ_WRITE,
            advice=[advice for advice in part.advice if advice in _FOR_GOOD],
        )
        for one in mappings
        for part in _parts(one, page_sets.gaps(one.start, one.end, there.get(one.start, [])))
    ]
    memory_making.restore_mappings(program, new, [], _nothing_shared)
    memory_making.advise(program, new)
    pieces = sorted([*rest, *new], key=lambda one: one.start)
    return Inherited(pieces, page_sets.without(before.pages, gone))


def _overlaps(
    pieces: Sequence[Mapping], mappings: Sequence[Mapping]
) -> Iterator[tuple[Mapping, Mapping]]:
    """Yield all pairs that have addresses in common; both are in order."""
    first = 0
    for piece in pieces:
        while first < len(mappings) and mappings[first].end <= piece.start:
            first += 1
        at = first
        while at < len(mappings) and mappings[at].start < piece.end:
            yield piece, mappings[at]
            at += 1


def _overlap(piece: Mapping, mapping: Mapping) -> tuple[int, int]:
    return max(piece.start, mapping.start), min(piece.end, mapping.end)


def _nothing_shared(number: int, writable: bool) -> int:
    raise AssertionError("only private memory is inherited")


def _parts(mapping: Mapping, ranges: Iterable[tuple[int, int]]) -> Iterator[Mapping]:
    for start, end in ranges:
        offset = mapping.offset + (start - mapping.start if mapping.path else 0)
        yield msgspec.structs.replace(mapping, start=start, end=end, offset=offset)
