"""What is left to be stored when a parent image has pages, and what pages of ancestors may say."""

import random
from collections.abc import Set

import pytest

from woodfrog.engine import changes
from woodfrog.errors import ImageError
from woodfrog.image.layout import ANCESTOR
from woodfrog.kernel.comparing import equal_pages
from woodfrog.resources import memory_checks, page_sets
from woodfrog.resources.memory import PageRange

PAGE = 4096


def ranges(pages: set[int], cuts: Set[int] = frozenset()) -> list[tuple[int, int]]:
    """Return page numbers as ranges of addresses, which also end where a mapping does."""
    found: list[tuple[int, int]] = []
    for page in sorted(pages):
        if found and found[-1][1] == page * PAGE and page not in cuts:
            found[-1] = (found[-1][0], (page + 1) * PAGE)
        else:
            found.append((page * PAGE, (page + 1) * PAGE))
    return found


def numbers(found: list[tuple[int, int]]) -> set[int]:
    return {page for start, end in found for page in range(start // PAGE, end // PAGE)}


@pytest.mark.parametrize("seed", range(20))
def test_pages_are_divided_like_sets(seed: int) -> None:
    chance = random.Random(seed)
    ours, theirs = (set(chance.sample(range(60), chance.randrange(50))) for _ in range(2))
    cuts = set(chance.sample(range(60), 5))
    stored = [
        PageRange(start=start, length=end - start, store=start + 7 * PAGE)
        for start, end in ranges(theirs, set(chance.sample(range(60), 5)))
    ]
    extents = ranges(ours, cuts)

    both = page_sets.within(stored, extents)

    assert numbers([(one.start, one.start + one.length) for one in both]) == ours & theirs
    assert all(one.store == one.start + 7 * PAGE for one in both)
    for some, more in ((stored, extents[:2]), (stored[:2], extents)):
        have, asked = numbers(page_sets.ranges(some)), numbers(more)
        inside = page_sets.within(some, more)
        assert numbers(page_sets.ranges(inside)) == have & asked
        assert numbers(page_sets.ranges(page_sets.without(some, more))) == have - asked
    assert numbers(page_sets.common(extents, ranges(theirs))) == ours & theirs
    joined = changes._joined(both)
    assert len(joined) <= len(both)
    for pages in (both, joined):
        assert numbers(page_sets.outside(extents, pages)) == ours - theirs
    left = page_sets.without(stored, extents)
    assert numbers([(one.start, one.start + one.length) for one in left]) == theirs - ours
    assert all(one.store == one.start + 7 * PAGE for one in left)


def test_equal_pages_are_found_one_by_one() -> None:
    one = bytearray(random.Random(1).randbytes(70 * PAGE))
    other = bytes(3 * PAGE) + one
    twin = bytearray(other)
    assert list(equal_pages(one, 0, twin, 3 * PAGE, len(one))) == [(0, len(one))]
    for page in (0, 5, 6, 69):
        twin[(3 + page) * PAGE + 4095] ^= 1
    assert list(equal_pages(one, 0, twin, 3 * PAGE, len(one))) == [
        (PAGE, 5 * PAGE),
        (7 * PAGE, 69 * PAGE),
    ]
    assert list(equal_pages(one, PAGE, twin, 4 * PAGE, PAGE)) == [(0, PAGE)]
    with pytest.raises(ValueError, match="more"):
        list(equal_pages(one, PAGE, twin, 0, len(one)))


@pytest.mark.parametrize(
    "store", [-PAGE, 1, 3 * PAGE, ANCESTOR + 2 * PAGE, ANCESTOR - PAGE, 2 * ANCESTOR, 1 << 62]
)
def test_pages_outside_of_the_stores_of_a_chain_are_refused(store: int) -> None:
    lengths = [3 * PAGE, 2 * PAGE]
    for good in (0, 2 * PAGE, ANCESTOR, ANCESTOR + PAGE):
        memory_checks.check_pages([PageRange(start=PAGE, length=PAGE, store=good)], lengths)
    with pytest.raises(ImageError):
        memory_checks.check_pages([PageRange(start=PAGE, length=PAGE, store=store)], lengths)
