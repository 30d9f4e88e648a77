"""Which memory of a template is in huge pages."""

from woodfrog.engine.template import mostly_filled
from woodfrog.resources.memory import PageRange

HUGE = 2 << 20
START = 8 * HUGE


def pages(*ranges: tuple[int, int]) -> list[PageRange]:
    """Return pages at these (offset, length) from START, in KiB."""
    return [PageRange(start=START + at * 1024, length=n * 1024, store=0) for at, n in ranges]


def test_what_is_mostly_filled_is_huge() -> None:
    end = START + 3 * HUGE
    assert mostly_filled(START, end, []) == []
    assert mostly_filled(START, end, pages((0, 3 * 2048))) == [(START, end)]
    # Pieces count together, and a piece counts for each block that it lies in.
    with_holes = pages((0, 1008), (1024, 1008), (2048, 1500), (4096 - 100, 2048))
    assert mostly_filled(START, end, with_holes) == [(START, end)]
    assert mostly_filled(START, end, pages((0, 1500), (2048, 2048))) == [
        (START + HUGE, START + 2 * HUGE)
    ]


def test_a_huge_page_lies_within_its_mapping() -> None:
    whole = pages((0, 3 * 2048))
    assert mostly_filled(START + 4096, START + 3 * HUGE - 4096, whole) == [
        (START + HUGE, START + 2 * HUGE)
    ]
