"""Which pages are a mapping's own, by each of the ways in which kernels tell it."""

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from needs import needs
from woodfrog.kernel import features, syscalls, userfaultfd
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.pagemap import Pagemap, Ranges, Walk
from woodfrog.kernel.procfs.maps import read_smaps

PAGE = 4096
MADV_NOHUGEPAGE, MADV_GUARD_INSTALL = 15, 102


@pytest.fixture(params=["", features.PAGEMAP_GUARD, features.PAGEMAP_SCAN])
def without(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Kernels that have all, none of the newest, and none of what PAGEMAP_SCAN can."""
    monkeypatch.setenv("WOODFROG_WITHOUT", request.param)
    features.disabled.cache_clear()
    yield request.param
    monkeypatch.undo()
    features.disabled.cache_clear()


class Area:
    """Private memory of ours, all in small pages."""

    def __init__(self, pages: int, file: int = -1) -> None:
        flags = mmap.MAP_PRIVATE | (mmap.MAP_ANONYMOUS if file < 0 else 0)
        self.is_anonymous = file < 0
        self.length = pages * PAGE
        self.start = syscalls.mmap(HERE, 0, self.length, 3, flags, file)
        syscalls.madvise(HERE, self.start, self.length, MADV_NOHUGEPAGE)

    def write(self, page: int) -> None:
        """Write to a page, which then is the mapping's own."""
        ctypes.memset(self.start + page * PAGE + 7, 1, 1)

    def look(self, page: int) -> None:
        """Read a page, which then is the zero page or the file's."""
        ctypes.string_at(self.start + page * PAGE, 1)

    def own(self, first: int = 0, last: int | None = None) -> list[tuple[int, int]]:
        """Return what is told of it, in page numbers, the last one not included."""
        start = self.start + first * PAGE
        end = self.start + (self.length if last is None else last * PAGE)
        with Pagemap(os.getpid()) as pagemap:
            found = pagemap.own_pages(start, end)
            if self.is_anonymous:
                assert pagemap.own_pages(start, end, anonymous=True) == found
        return self.numbered(found)

    def numbered(self, ranges: Ranges) -> list[tuple[int, int]]:
        """Turn addresses into page numbers."""
        return [((a - self.start) // PAGE, (b - self.start) // PAGE) for a, b in ranges]

    def close(self) -> None:
        """Unmap it."""
        syscalls.munmap(HERE, self.start, self.length)


@pytest.fixture
def area() -> Iterator[Area]:
    """A hundred pages that were never touched."""
    found = Area(100)
    yield found
    found.close()


def test_memory_never_touched_has_no_pages(without: str, area: Area) -> None:
    assert area.own() == []


def test_pages_written_to_are_told(without: str, area: Area) -> None:
    for page in (0, 5, 6, 7, 50, 99):
        area.write(page)
    syscalls.madvise(HERE, area.start + 50 * PAGE, PAGE, mmap.MADV_DONTNEED)
    assert area.own() == [(0, 1), (5, 8), (99, 100)]


def test_the_zero_page_is_not_told_where_the_kernel_knows_it(without: str, area: Area) -> None:
    area.write(10)
    area.look(11)
    area.look(20)
    told_apart = without != features.PAGEMAP_SCAN
    assert area.own() == ([(10, 11)] if told_apart else [(10, 12), (20, 21)])


def test_only_the_range_that_was_asked_for_is_told(without: str, area: Area) -> None:
    for page in range(10, 20):
        area.write(page)
    assert area.own(12, 15) == [(12, 15)]
    assert area.own(15, 90) == [(15, 20)]
    assert area.own(30, 90) == []


def test_a_page_that_is_still_its_files_is_not_told(without: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"frog" * 4096)
    with path.open("rb") as file:
        area = Area(4, file.fileno())
    area.look(0)
    area.look(1)
    area.write(2)
    area.look(3)
    assert area.own() == [(2, 3)]
    area.close()


def test_pages_without_access_are_told(without: str, area: Area) -> None:
    area.write(3)
    syscalls.mprotect(HERE, area.start, area.length, 0)
    assert area.own() == [(3, 4)]


def test_a_page_that_is_shared_since_a_fork_is_told(without: str, area: Area) -> None:
    area.write(3)
    child = os.fork()
    if child == 0:
        os._exit(0 if area.own() == [(3, 4)] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert area.own() == [(3, 4)]


@pytest.mark.parametrize("ranges", [4095, 4096, 4097, 9000])
def test_more_ranges_than_one_scan_returns_are_told(without: str, ranges: int) -> None:
    area = Area(2 * ranges)
    for page in range(0, 2 * ranges, 2):
        area.write(page)
    assert area.own() == [(page, page + 1) for page in range(0, 2 * ranges, 2)]
    area.close()


def test_a_mapping_larger_than_one_read_is_told(without: str) -> None:
    # Bulk reads cover 2 GiB at a time; nothing of this is in memory but three pages.
    area = Area(3 * 512 * 1024)
    last = area.length // PAGE - 1
    for page in (0, 512 * 1024 - 1, 512 * 1024, last):
        area.write(page)
    assert area.own() == [(0, 1), (512 * 1024 - 1, 512 * 1024 + 1), (last, last + 1)]
    area.close()


def test_guard_pages_are_not_told_where_the_kernel_knows_them(without: str, area: Area) -> None:
    for page in range(10, 20):
        area.write(page)
    try:
        syscalls.madvise(HERE, area.start + 12 * PAGE, 3 * PAGE, MADV_GUARD_INSTALL)
    except OSError:
        pytest.skip("this kernel has no guard pages (Linux 6.13)")
    # PAGEMAP_SCAN of Linux 6.13 to 6.15 can't tell them from swapped pages.
    told_apart = without != features.PAGEMAP_GUARD
    assert area.own() == ([(10, 12), (15, 20)] if told_apart else [(10, 20)])
    with Pagemap(os.getpid()) as pagemap:
        guards = area.numbered(pagemap.guard_regions(area.start, area.start + area.length))
    assert guards == ([] if without else [(12, 15)])


def test_another_process_is_read_by_its_id(without: str, sleeper: int) -> None:
    stack = next(m for m in read_smaps(sleeper) if m.name == b"[stack]")
    with Pagemap(sleeper) as pagemap:
        own = pagemap.own_pages(stack.start, stack.end)
    assert own[-1][1] == stack.end


def test_what_is_written_to_is_noted_page_by_page(area: Area) -> None:
    if not features.wanted(features.PAGEMAP_SCAN):
        pytest.skip("needs PAGEMAP_SCAN")
    for page in range(4):
        area.write(page)
    end = area.start + area.length
    descriptor = userfaultfd.create(HERE, kernel_too=False)
    try:
        userfaultfd.begin_to_note(HERE, descriptor)
        with Pagemap(os.getpid()) as pagemap:
            assert pagemap.unwritten(area.start, end) == []
            userfaultfd.note(HERE, descriptor, area.start, area.length)
            pagemap.protect(area.start, end, anonymous=True)
            area.write(1)
            area.write(5)
            area.look(2)
            found = pagemap.unwritten(area.start, end)
            assert pagemap.unwritten(area.start, end, anonymous=True) == found
        assert found == [
            (area.start, area.start + PAGE),
            (area.start + 2 * PAGE, area.start + 4 * PAGE),
        ]
    finally:
        os.close(descriptor)
    with Pagemap(os.getpid()) as pagemap:
        assert pagemap.unwritten(area.start, end) == []


@needs("kernel 6.7")
@pytest.mark.parametrize("pages", ["small", "huge"])
def test_one_walk_tells_the_same_as_three(pages: str) -> None:
    area = Area(4096)
    if pages == "huge":
        syscalls.madvise(HERE, area.start, area.length, mmap.MADV_HUGEPAGE)
    end = area.start + area.length
    descriptor = userfaultfd.create(HERE, kernel_too=False)
    userfaultfd.begin_to_note(HERE, descriptor)

    def compared(pagemap: Pagemap) -> Walk:
        own, guards = pagemap.own_and_guards(area.start, end, anonymous=True)
        unwritten = pagemap.unwritten(area.start, end, anonymous=True)
        assert pagemap.walk(area.start, end, anonymous=True) == (own, unwritten, guards)
        assert pagemap.walk(area.start, end) == (own, unwritten, guards)
        return Walk(own, unwritten, guards)

    for page in range(3000):
        area.write(page)
    area.look(3100)
    with Pagemap(os.getpid()) as pagemap:
        assert not compared(pagemap).unwritten
        with pytest.raises(PermissionError):  # or all would count as written to
            pagemap._walk_around(area.start, end)
        userfaultfd.note(HERE, descriptor, area.start, area.length)
        assert not compared(pagemap).unwritten
        pagemap.protect(area.start, end, anonymous=True)
        assert area.numbered(compared(pagemap).unwritten)[0][0] == 0
        for page in (*range(0, 3000, 2), 3050, 3200):
            area.write(page)
        syscalls.madvise(HERE, area.start + 3 * PAGE, 2 * PAGE, mmap.MADV_DONTNEED)
        # So much has page tables of its own, which may go as well.
        syscalls.madvise(HERE, area.start + 512 * PAGE, 1500 * PAGE, mmap.MADV_DONTNEED)
        area.look(600)
        area.write(601)
        try:
            for page in (7, 8, 1000, 4000):
                syscalls.madvise(HERE, area.start + page * PAGE, PAGE, MADV_GUARD_INSTALL)
        except OSError:
            pass  # before Linux 6.13
        found = compared(pagemap)
        if pages == "small":
            unwritten = area.numbered(found.unwritten)
            assert (1, 2) in unwritten
            assert not any(a <= 512 < b for a, b in unwritten)
            assert len(unwritten) > 700
            syscalls.munmap(HERE, area.start + 2100 * PAGE, PAGE)
            syscalls.mmap(HERE, area.start + 2100 * PAGE, PAGE, 3, 0x32, -1)
            assert not any(a <= 2100 < b for a, b in area.numbered(compared(pagemap).unwritten))
    os.close(descriptor)
    area.close()
