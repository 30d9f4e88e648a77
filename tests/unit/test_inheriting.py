"""What a stub has from its parent's, and what of that its process can use."""

import random

from woodfrog.engine.inheriting import Inherited, reconcile
from woodfrog.resources import page_sets
from woodfrog.resources.memory import AddressSpace, Mapping, PageRange, Source

PAGE = 4096


def page(start: int, length: int, store: int) -> PageRange:
    return PageRange(start=start * PAGE, length=length * PAGE, store=store * PAGE)


def mapping(start: int, end: int, **how: object) -> Mapping:
    fields = {"protection": 3, "shared": False, "source": Source.ANONYMOUS} | how
    return Mapping(start=start * PAGE, end=end * PAGE, **fields)  # type: ignore[arg-type]


def space(*mappings: Mapping) -> AddressSpace:
    numbers = dict.fromkeys(AddressSpace.__struct_fields__, 0)
    return AddressSpace(**numbers | {"mappings": [*mappings], "pages": []})  # type: ignore[arg-type]


def chosen(chance: random.Random, store: int) -> dict[int, int]:
    """Return some of 40 pages, by their numbers, and where they stand in the store."""
    return {at: at + store for at in range(40) if chance.random() < 0.5}


def pages_of(places: dict[int, int]) -> list[PageRange]:
    found: list[PageRange] = []
    for at, store in sorted(places.items()):
        last = found[-1] if found else page(0, 0, 0)
        end = (last.start + last.length, last.store + last.length)
        if end == (at * PAGE, store * PAGE) and at % 7:
            found[-1] = page(last.start // PAGE, last.length // PAGE + 1, last.store // PAGE)
        else:
            found.append(page(at, 1, store))
    return found


def places_of(pages: list[PageRange]) -> dict[int, int]:
    return {
        (one.start + at) // PAGE: (one.store + at) // PAGE
        for one in pages
        for at in range(0, one.length, PAGE)
    }


def test_sets_of_pages_are_what_sets_of_their_numbers_are() -> None:
    for seed in range(200):
        chance = random.Random(seed)
        one = chosen(chance, 100)
        other = {at: at + chance.choice((100, 500)) for at in chosen(chance, 0)}
        ranges = page_sets.ranges(pages_of(other))
        same = {at: store for at, store in one.items() if other.get(at) == store}
        inside = {at: store for at, store in one.items() if at in other}

        assert places_of(page_sets.same(pages_of(one), pages_of(other))) == same
        assert places_of(page_sets.within(pages_of(one), ranges)) == inside
        outside = places_of(page_sets.without(pages_of(one), ranges))
        assert outside == {at: store for at, store in one.items() if at not in other}
        between = [
            at
            for low, high in page_sets.gaps(0, 40 * PAGE, ranges)
            for at in range(low, high, PAGE)
        ]
        assert [at // PAGE for at in between] == [at for at in range(40) if at not in other]


def test_what_is_of_the_same_kind_stays_and_the_rest_is_made() -> None:
    inherited = Inherited(
        [mapping(0, 10), mapping(20, 30, no_reserve=True)], [page(1, 4, 101), page(22, 2, 122)]
    )
    process = space(mapping(2, 6, protection=1), mapping(8, 14), mapping(20, 25))
    pages = [page(2, 2, 102), page(4, 1, 200), page(12, 1, 201), page(22, 2, 122)]

    rest = reconcile(inherited, process, pages)

    assert rest.kept == [(2 * PAGE, 6 * PAGE), (8 * PAGE, 10 * PAGE)]
    assert rest.mappings == [mapping(10, 14), mapping(20, 25)]
    assert rest.dropped == [(4 * PAGE, 5 * PAGE)]
    assert rest.pages == [page(4, 1, 200), page(12, 1, 201), page(22, 2, 122)]
    assert rest.starts == {2 * PAGE, 8 * PAGE}


def test_a_process_that_inherits_nothing_makes_all_of_its_memory() -> None:
    process, pages = space(mapping(0, 4)), [page(0, 2, 7)]
    rest = reconcile(Inherited(), process, pages)
    assert (rest.kept, rest.mappings, rest.pages) == ([], process.mappings, pages)
