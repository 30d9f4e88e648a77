"""Shared memory of an image: which pages it may have, and where they may stand."""

import pytest

from woodfrog.errors import ImageError
from woodfrog.image.layout import ANCESTOR, PAGE
from woodfrog.resources.memory import Extent, PageRange
from woodfrog.resources.shared_memory import SharedMemory, check

STORES = [2 * PAGE, 3 * PAGE]


def memory(*inherited: tuple[int, int, int], pages: int = 8, huge_page: int = 0) -> SharedMemory:
    """Return memory whose third and fourth page are its own; others are (start, length, store)."""
    return SharedMemory(
        id=1,
        memfd=None,
        size=pages * PAGE,
        seals=0,
        extents=[] if huge_page else [Extent(start=2 * PAGE, length=2 * PAGE)],
        store=0,
        huge_page=huge_page,
        inherited=[PageRange(start=a, length=b, store=c) for a, b, c in inherited],
    )


def test_pages_are_told_in_order_wherever_they_stand() -> None:
    one = memory((0, PAGE, ANCESTOR + PAGE), (4 * PAGE, 2 * PAGE, ANCESTOR))
    check(one, STORES)
    assert [(page.start, page.length, page.store) for page in one.pages] == [
        (0, PAGE, ANCESTOR + PAGE),
        (2 * PAGE, 2 * PAGE, 0),
        (4 * PAGE, 2 * PAGE, ANCESTOR),
    ]


@pytest.mark.parametrize(
    ("inherited", "why"),
    [
        ((0, PAGE + 1, ANCESTOR), "not whole"),
        ((0, -PAGE, ANCESTOR), "not whole"),
        ((PAGE, 2 * PAGE, ANCESTOR), "out of order"),
        ((3 * PAGE, PAGE, ANCESTOR), "out of order"),
        ((0, PAGE, ANCESTOR + 3 * PAGE), "outside the page store"),
        ((0, PAGE, 2 * ANCESTOR), "outside the page store"),
        ((0, PAGE, -PAGE), "outside the page store"),
        ((7 * PAGE, 2 * PAGE, ANCESTOR), "past its end"),
    ],
)
def test_impossible_pages_are_refused(inherited: tuple[int, int, int], why: str) -> None:
    with pytest.raises(ImageError, match=why):
        check(memory(inherited), STORES)


def test_huge_pages_are_not_inherited() -> None:
    one = memory((0, PAGE, ANCESTOR), pages=512, huge_page=512 * PAGE)
    with pytest.raises(ImageError, match="huge pages"):
        check(one, STORES)
