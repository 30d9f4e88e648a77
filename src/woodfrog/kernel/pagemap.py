"""Which pages of a mapping exist and are its own: PAGEMAP_SCAN, or /proc/PID/pagemap in bulk.

Documentation/admin-guide/mm/pagemap.rst. Ranges are lists of (start address, end address).
"""

import ctypes
import fcntl
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

from woodfrog.kernel import features
from woodfrog.kernel.abi.x86_64 import PAGE

Ranges: TypeAlias = list[tuple[int, int]]

_PAGEMAP_SCAN = (3 << 30) | (96 << 16) | (ord("f") << 8) | 16
_IS_NOTED, _IS_WRITTEN = 1 << 0, 1 << 1  # PAGE_IS_WPALLOWED, PAGE_IS_WRITTEN
_WP_MATCHING, _CHECK_NOTED = 1 << 0, 1 << 1
_IS_FILE, _IS_PRESENT, _IS_SWAPPED, _IS_PFNZERO = 1 << 2, 1 << 3, 1 << 4, 1 << 5
_IS_GUARD = 1 << 8  # since Linux 6.16
# Of a file, or the shared zero page.
_NOT_OWN = _IS_FILE | _IS_PFNZERO
# Own pages by all their categories, in anonymous memory.
_OWN = {_IS_PRESENT | _IS_WRITTEN, _IS_SWAPPED | _IS_WRITTEN, _IS_SWAPPED}
_VECTORS = 4096
# Entries read at a time: 2 GiB of addresses, 4 MiB of pagemap.
_STEP = 512 * 1024
_NOTHING = bytes(8 * _STEP)

_PRESENT, _SWAPPED, _FILE_OR_SHARED = 1 << 63, 1 << 62, 1 << 61
_GUARD = 1 << 58  # since Linux 6.15; such a page counts as swapped, too


class Walk(NamedTuple):
    """What Pagemap says of a range: its own pages, those not written to, and guard pages."""

    own: Ranges
    unwritten: Ranges
    guards: Ranges


class Pagemap:
    """The page tables of one process, open for reading."""

    def __init__(self, pid: int) -> None:
        self._fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        self._vectors = (ctypes.c_uint64 * (3 * _VECTORS))()
        self._scans = features.wanted(features.PAGEMAP_SCAN)
        self._guards = self._scans and features.wanted(features.PAGEMAP_GUARD)
        self._is_tried = False

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)

    def __enter__(self) -> "Pagemap":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def own_pages(self, start: int, end: int, *, anonymous: bool = False) -> Ranges:
        """Return the ranges of anonymous or copied pages, in memory or swapped out.

        Pages that still are their file's, the shared zero page (but before Linux 6.7 nobody tells
        it from others), and pages never touched are left out. In `anonymous` memory there are no
        pages of files: then the kernel needs to look at the page tables only, not at each page.
        """
        if self.scans():
            any_of = _IS_PRESENT | _IS_SWAPPED
            return self._scan(start, end, self._no_pages(anonymous=anonymous), any_of)
        return self._read(start, end)

    def has_any(self, start: int, end: int) -> bool:
        """Tell whether there is any page, or one swapped out; looks no further than the first."""
        if not self.scans():
            return bool(self._read(start, end))
        any_of = _IS_PRESENT | _IS_SWAPPED
        return any(starts for starts, *_ in self._regions(start, end, 0, 0, any_of, pages=1))

    def unwritten(self, start: int, end: int, *, anonymous: bool = False) -> Ranges:
        """Return the own pages that nobody has written to since they were protected.

        A mapping that isn't noted (userfaultfd.note) has none. Raises OSError before Linux 6.7.
        """
        excluded = self._no_pages(anonymous=anonymous) | _IS_WRITTEN
        return self._scan(start, end, excluded, _IS_PRESENT | _IS_SWAPPED, required=_IS_NOTED)

    def protect(self, start: int, end: int, *, anonymous: bool = False) -> None:
        """Have it noted from now on which of a mapping's own pages are written to."""
        excluded = self._no_pages(anonymous=anonymous)
        any_of = _IS_PRESENT | _IS_SWAPPED
        self._scan(start, end, excluded, any_of, required=_IS_WRITTEN, flags=_WP_MATCHING)

    def _no_pages(self, *, anonymous: bool) -> int:
        return _not_own(anonymous=anonymous) | (_IS_GUARD if self.scans_guards() else 0)

    def scans(self) -> bool:
        """Tell whether the kernel finds pages by itself (PAGEMAP_SCAN)."""
        if not self._is_tried:
            self._is_tried = True
            self._guards = self._guards and self._can_exclude(_NOT_OWN | _IS_GUARD)
            self._scans = self._scans and (self._guards or self._can_exclude(_NOT_OWN))
        return self._scans

    def _can_exclude(self, pages: int) -> bool:
        try:
            self._scan(PAGE, 2 * PAGE, pages, _IS_PRESENT | _IS_SWAPPED)
        except OSError:
            return False
        return True

    def scans_guards(self) -> bool:
        """Tell whether it tells guard pages from others, too."""
        return self.scans() and self._guards

    def guard_regions(self, start: int, end: int) -> Ranges:
        """Return the ranges with guard pages (MADV_GUARD_INSTALL), where the kernel tells."""
        return self._scan(start, end, 0, _IS_GUARD) if self.scans_guards() else []

    def own_and_guards(
        self, start: int, end: int, *, anonymous: bool = False
    ) -> tuple[Ranges, Ranges]:
        """Return what `own_pages` does, and what `guard_regions` does, by one walk if possible."""
        if not self.scans_guards():
            return self.own_pages(start, end, anonymous=anonymous), []
        own: Ranges = []
        guards: Ranges = []
        any_of = _IS_PRESENT | _IS_SWAPPED | _IS_GUARD
        excluded = _not_own(anonymous=anonymous)
        regions = self._regions(start, end, excluded, excluded, any_of, told=_IS_GUARD)
        for starts, ends, told in regions:
            if not any(told):
                _add(own, starts, ends)
                continue
            for first, last, is_guard in zip(starts, ends, told, strict=True):
                _extend(guards if is_guard else own, first, last)
        return own, guards

    def walk(self, start: int, end: int, *, anonymous: bool = False) -> Walk:
        """Return what `own_and_guards` and `unwritten` do, of one mapping.

        Raises OSError before Linux 6.7.
        """
        if anonymous and self.scans_guards():
            try:
                return self._walk_around(start, end)
            except PermissionError:
                pass  # it isn't noted
        own, guards = self.own_and_guards(start, end, anonymous=anonymous)
        return Walk(own, self.unwritten(start, end, anonymous=anonymous), guards)

    def _walk_around(self, start: int, end: int) -> Walk:
        """Have the kernel tell all that is not a page as it was: most of a walk goes into telling.

        It is for anonymous memory, in which only own pages are protected. PermissionError if it is
        not noted.
        """
        written: Ranges = []
        absent: Ranges = []
        guards: Ranges = []
        any_of = _IS_PRESENT | _IS_WRITTEN | _IS_PFNZERO | _IS_GUARD
        regions = self._regions(
            start, end, _IS_PRESENT, 0, any_of, flags=_CHECK_NOTED, told=any_of | _IS_SWAPPED
        )
        for starts, ends, told in regions:
            found = [*zip(starts, ends, told, strict=True)]
            # What is swapped out, and nothing else, is as it was.
            written += [(a, b) for a, b, kind in found if kind != _IS_SWAPPED]
            absent += [(a, b) for a, b, kind in found if kind not in _OWN]
            guards += [(a, b) for a, b, kind in found if kind & _IS_GUARD]
        return Walk(_between(start, end, absent), _between(start, end, written), guards)

    def entries(self, start: int, end: int) -> memoryview:
        """Return the raw entries of a range, 64 bits for each page; zeros once it has ended."""
        length = (end - start) // PAGE * 8
        data = os.pread(self._fd, length, start // PAGE * 8).ljust(length, b"\0")
        return memoryview(data).cast("Q")

    def _scan(
        self,
        start: int,
        end: int,
        excluded: int,
        any_of: int,
        *,
        required: int = 0,
        flags: int = 0,
    ) -> Ranges:
        found: Ranges = []
        regions = self._regions(start, end, excluded, excluded | required, any_of, flags=flags)
        for starts, ends, _ in regions:
            _add(found, starts, ends)
        return found

    def _regions(
        self,
        start: int,
        end: int,
        inverted: int,
        all_of: int,
        any_of: int,
        *,
        flags: int = 0,
        told: int = 0,
        pages: int = 0,
    ) -> Iterator[tuple[list[int], list[int], list[int]]]:
        """Go through the ranges of pages in such categories, many at a time.

        `inverted` are those that a page is in when it isn't. Of each range come start, end, and
        those of its categories that are `told`. With a number of `pages` so many are looked for,
        and no more.
        """
        position = start
        while position < end:
            argument = bytearray(
                struct.pack(
                    "12Q",
                    96,
                    flags,
                    position,
                    end,
                    0,
                    ctypes.addressof(self._vectors),
                    _VECTORS,
                    pages,
                    inverted,
                    all_of,
                    any_of,
                    told,
                )
            )
            count = fcntl.ioctl(self._fd, _PAGEMAP_SCAN, argument)
            words = self._vectors[: 3 * count]
            yield words[::3], words[1::3], words[2::3]
            # walk_end can't be relied on: it may be where the kernel's own buffer was last full
            # (fs/proc/task_mmu.c, do_pagemap_scan: it is not set again when the walk completes).
            position = words[-2] if count == _VECTORS else end

    def _read(self, start: int, end: int) -> Ranges:
        found: Ranges = []
        for first in range(start // PAGE, end // PAGE, _STEP):
            count = min(_STEP, end // PAGE - first)
            data = os.pread(self._fd, 8 * count, 8 * first)
            # Terabytes may be reserved; nothing compares their nothing faster.
            if data == (_NOTHING if count == _STEP else bytes(8 * count)):
                continue
            for i, (word,) in enumerate(struct.iter_unpack("Q", data)):
                if word & (_PRESENT | _SWAPPED) and not word & (_FILE_OR_SHARED | _GUARD):
                    address = (first + i) * PAGE
                    _extend(found, address, address + PAGE)
        return found


def _not_own(*, anonymous: bool) -> int:
    return _IS_PFNZERO if anonymous else _NOT_OWN


def _between(start: int, end: int, there: Ranges) -> Ranges:
    """Return what of a range lies between others."""
    begins, stops = [start, *[b for _, b in there]], [*[a for a, _ in there], end]
    return [(a, b) for a, b in zip(begins, stops, strict=True) if a < b]


def _add(ranges: Ranges, starts: list[int], ends: list[int]) -> None:
    """Add ranges, in order; neighbours become one."""
    if starts and set(starts).isdisjoint(ends) and not (ranges and ranges[-1][1] == starts[0]):
        ranges += zip(starts, ends, strict=True)  # there may be very many
        return
    for start, end in zip(starts, ends, strict=True):
        _extend(ranges, start, end)


def _extend(ranges: Ranges, start: int, end: int) -> None:
    if ranges and ranges[-1][1] == start:
        ranges[-1] = (ranges[-1][0], end)
    else:
        ranges.append((start, end))


def page_frame(pid: int, address: int) -> int:
    """Return the number of the page frame at an address of a process; 0 if there is none."""
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as file:
        file.seek(address // PAGE * 8)
        entry = int.from_bytes(file.read(8), "little")
    return entry & (1 << 55) - 1 if entry & _PRESENT else 0
