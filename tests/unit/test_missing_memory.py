"""What an address space lacks, and what becomes of that."""

import random

from woodfrog.engine.reading_pages import ranges
from woodfrog.resources.memory import Mapping, PageRange, Source
from woodfrog.resources.missing_memory import Missing, divide, large, may_wait

PAGE = 4096
MADV_DONTFORK, MADV_WIPEONFORK = 10, 18


def page(start: int, length: int, store: int) -> PageRange:
    return PageRange(start=start * PAGE, length=length * PAGE, store=store * PAGE)


def mapping(start: int, end: int, **how: object) -> Mapping:
    source = how.pop("source", Source.ANONYMOUS)
    fields = {"protection": 3, "shared": False, "source": source} | how
    return Mapping(start=start * PAGE, end=end * PAGE, **fields)  # type: ignore[arg-type]


def test_only_what_the_kernel_tells_all_about_comes_later() -> None:
    mappings = [
        mapping(0, 2),
        mapping(2, 4, source=Source.FILE),
        mapping(4, 6, locked=True),
        mapping(6, 8, grows_down=True),
        mapping(8, 10, advice=[MADV_WIPEONFORK]),
        mapping(10, 12, advice=[MADV_DONTFORK]),
        mapping(12, 14),
        mapping(14, 16, protection=0),
    ]
    # One range over all but the two last mappings, and a page of the last.
    pages = [page(0, 12, 100), page(15, 1, 112)]
    division = divide(mappings, pages, may_wait)

    assert division.later == [page(0, 2, 100), page(10, 2, 110), page(15, 1, 112)]
    assert division.mappings == [(0, 2 * PAGE), (10 * PAGE, 12 * PAGE), (14 * PAGE, 16 * PAGE)]
    at_once = [(one.start, one.length, one.store) for one in division.at_once]
    wanted = [page(number, 2, 100 + number) for number in (2, 4, 6, 8)]
    assert at_once == [(one.start, one.length, one.store) for one in wanted]
    assert ranges([*division.later, *division.at_once, page(0, 1, 200)]) == [
        (100 * PAGE, 113 * PAGE),
        (200 * PAGE, 201 * PAGE),
    ]


def test_large_mappings_are_those_with_many_pages_in_few_pieces() -> None:
    madv_hugepage, madv_nohugepage = 14, 15
    mappings = [
        mapping(0, 1000),
        mapping(1000, 2000, advice=[madv_nohugepage]),
        mapping(2000, 3000, advice=[madv_hugepage]),
        mapping(3000, 4000, locked=True),
        mapping(4000, 5000, source=Source.FILE),
        mapping(5000, 6000),
        mapping(6000, 7000),
    ]
    pieces = [page(5000 + 2 * number, 1, 5000 + number) for number in range(500)]
    # One piece lies in five mappings, the last mapping has less than 1 MiB.
    pages = [page(0, 5000, 0), *pieces, page(6000, 255, 5500)]
    for huge_by_default, wanted in ((False, [0, 1000]), (True, [1000])):
        is_large = large(mappings, pages, huge_by_default=huge_by_default)
        assert [one.start // PAGE for one in mappings if is_large(one)] == wanted


def test_whatever_is_taken_and_moved_the_rest_is_missing() -> None:
    dice = random.Random(1)
    for _ in range(200):
        # What each page lacks, as a plain table beside.
        table: dict[int, int] = {}
        pages = []
        at = 0
        for _ in range(dice.randrange(6)):
            at += dice.randrange(4)
            length = dice.randrange(1, 8)
            store = dice.randrange(1000)
            pages.append(page(at, length, store))
            table |= {at + i: store + i for i in range(length)}
            at += length
        missing = Missing(pages)
        for _ in range(20):
            start, length, target = dice.randrange(40), dice.randrange(12), dice.randrange(100, 140)
            if dice.random() < 0.7:
                missing.take(start * PAGE, (start + length) * PAGE)
                for number in range(start, start + length):
                    table.pop(number, None)
            else:
                missing.move(start * PAGE, target * PAGE, length * PAGE)
                for number in range(length):
                    table.pop(target + number, None)
                    if start + number in table:
                        table[target + number] = table.pop(start + number)
            assert missing.bytes == len(table) * PAGE
            child = missing.copy()
            for number in range(150):
                found = child.at(number * PAGE + 5)
                assert (found[2] - 5) // PAGE == table[number] if found else number not in table
            if table:
                start, _, store = child.first()
                assert (start // PAGE, store // PAGE) == (min(table), table[min(table)])
            assert bool(len(missing)) == bool(table)
