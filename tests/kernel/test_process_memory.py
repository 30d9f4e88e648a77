"""Memory and files are read in bulk, range after range."""

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from entering import Entered
from woodfrog.kernel import syscalls
from woodfrog.kernel.process_memory import FileContents, ProcessMemory, read_written, write_memory

PAGE = 4096
PAGES = 16


@pytest.fixture
def numbered(guest: Entered) -> Iterator[int]:
    """Memory of the guest, each page full of its number."""
    start = syscalls.mmap(guest, 0, PAGES * PAGE, 3, 0x22)
    for page in range(PAGES):
        os.pwrite(guest.memory, bytes([page + 1]) * PAGE, start + page * PAGE)
    yield start
    syscalls.munmap(guest, start, PAGES * PAGE)


def pages(guest: Entered, start: int, *wanted: tuple[int, int]) -> list[int]:
    """Read (page, count) ranges and return the number that each page is full of."""
    into = bytearray(PAGE * sum(count for _, count in wanted))
    ranges = [(start + page * PAGE, count * PAGE) for page, count in wanted]
    ProcessMemory(guest.memory).read(memoryview(into), ranges)
    found = [into[at : at + PAGE] for at in range(0, len(into), PAGE)]
    assert all(len(set(page)) == 1 for page in found)
    return [page[0] for page in found]


def test_ranges_come_in_the_order_asked_for(guest: Entered, numbered: int) -> None:
    assert pages(guest, numbered, (3, 2), (0, 1), (15, 1)) == [4, 5, 1, 16]


def test_nothing_is_read_for_no_ranges(guest: Entered, numbered: int) -> None:
    assert pages(guest, numbered) == []


def test_very_many_ranges_are_read(guest: Entered, numbered: int) -> None:
    wanted = [(number % PAGES, 1) for number in range(2500)]
    assert pages(guest, numbered, *wanted) == [page + 1 for page, _ in wanted]


def test_memory_that_its_owner_may_not_read_is_read(guest: Entered, numbered: int) -> None:
    syscalls.mprotect(guest, numbered + 2 * PAGE, 3 * PAGE, 0)
    assert pages(guest, numbered, (0, PAGES)) == list(range(1, PAGES + 1))


def test_pages_are_read_and_written_many_by_one_call(guest: Entered, numbered: int) -> None:
    wanted = [(numbered + number % PAGES * PAGE, PAGE) for number in range(2500)]
    into = bytearray(2500 * PAGE)
    read_written(guest.pid, memoryview(into), wanted)
    assert into[::PAGE] == bytes(number % PAGES + 1 for number in range(2500))
    swapped = bytearray(into[PAGE : 2 * PAGE] + into[:PAGE])
    write_memory(guest.pid, memoryview(swapped), wanted[:2])
    assert pages(guest, numbered, (0, 3)) == [2, 1, 3]


@pytest.mark.parametrize("transfer", [read_written, write_memory])
def test_memory_that_its_owner_may_not_reach_is_an_error(
    guest: Entered,
    numbered: int,
    transfer: Callable[[int, memoryview, list[tuple[int, int]]], None],
) -> None:
    syscalls.mprotect(guest, numbered + 2 * PAGE, PAGE, 0)
    with pytest.raises(OSError, match="can't be reached"):
        transfer(guest.pid, memoryview(bytearray(3 * PAGE)), [(numbered, 3 * PAGE)])


def test_memory_that_is_gone_is_an_error(guest: Entered, numbered: int) -> None:
    syscalls.munmap(guest, numbered + 5 * PAGE, PAGE)
    with pytest.raises(OSError) as refusal:
        pages(guest, numbered, (4, 4))
    assert refusal.value.errno in (errno.EIO, errno.EFAULT)


def test_several_threads_read_at_once(guest: Entered, numbered: int) -> None:
    with ThreadPoolExecutor(2) as threads:
        found = threads.map(lambda n: pages(guest, numbered, (n % PAGES, 1)), range(400))
        assert list(found) == [[n % PAGES + 1] for n in range(400)]


def test_what_is_past_the_end_of_a_file_is_zeros() -> None:
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(b"abcdefgh")
        into = bytearray(b"x" * 12)
        FileContents(file.fileno()).read(memoryview(into), [(6, 6), (1, 3), (100, 3)])
    assert into == b"gh\0\0\0\0bcd\0\0\0"
