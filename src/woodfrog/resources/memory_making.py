"""An address space made again in a task: its mappings, their pages, advice and protections."""

import os
from collections import abc
from collections.abc import Callable, Container, Iterator, Sequence
from types import MappingProxyType

from woodfrog.kernel import features, syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.remote.address import TASK_SIZE
from woodfrog.remote.program import Program
from woodfrog.resources import memory_policy, page_sets
from woodfrog.resources.memory import (
    MAP_ANONYMOUS,
    MAP_FIXED_NOREPLACE,
    MAP_GROWSDOWN,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
    AddressSpace,
    Mapping,
    PageRange,
    Source,
)

MAP_DROPPABLE = 0x08
_MREMAP_MAYMOVE_FIXED = 3
_MLOCK_ONFAULT = 1
_PR_SET_VMA, _PR_SET_VMA_ANON_NAME = 0x53564D41, 0
_MADV_DONTNEED, _MADV_GUARD_INSTALL = 4, 102


def unmap_all(program: Program, keep: Sequence[tuple[int, int]]) -> None:
    """Unmap all but some (start, end) ranges: the stub's own area, and what it has inherited."""
    for start, end in page_sets.gaps(0, TASK_SIZE, sorted(keep)):
        syscalls.munmap(program, start, end - start)


def _with_pages(mappings: Sequence[Mapping], pages: Sequence[PageRange]) -> set[int]:
    """Return the starts of the mappings that have pages of their own; both are in order."""
    found = set()
    rest = iter(pages)
    page = next(rest, None)
    for mapping in mappings:
        while page and page.start + page.length <= mapping.start:
            page = next(rest, None)
        if page is None:
            break
        if page.start < mapping.end:
            found.add(mapping.start)
    return found


def restore_mappings(
    program: Program,
    mappings: Sequence[Mapping],
    pages: Sequence[PageRange],
    descriptor_of: Callable[[int, bool], int],
    ready: abc.Mapping[int, tuple[int, int]] = MappingProxyType({}),
) -> None:
    """Map everything, writable where pages have to be filled in.

    And only there: what is writable counts as promised memory, and a program may reserve terabytes.
    `descriptor_of` gives the stub's descriptor of a mapping's object, perhaps for writing. What
    lies `ready` somewhere else, and so much of it, by where it belongs, is moved there.
    """
    filled = _with_pages(mappings, pages)
    opened: dict[tuple[bytes, bool], int] = {}
    for mapping in mappings:
        if mapping.source in (Source.SYSV, Source.OPENED, Source.IO_URING, Source.AIO):
            continue  # attached before
        if mapping.start in ready:
            at, has = ready[mapping.start]
            length = mapping.end - mapping.start
            moved = (at, has, length, _MREMAP_MAYMOVE_FIXED, mapping.start)
            program.expect(program.call(SYS.MREMAP, *moved), mapping.start)
            continue
        flags = MAP_FIXED_NOREPLACE | (MAP_SHARED if mapping.shared else MAP_PRIVATE)
        protection = mapping.protection
        if not mapping.shared and mapping.start in filled:
            protection |= PROT_WRITE
        if not mapping.reserves:
            flags |= MAP_NORESERVE
        fd = -1
        match mapping.source:
            case Source.ANONYMOUS:
                flags |= MAP_ANONYMOUS
                if mapping.droppable and features.droppable():
                    flags = flags & ~MAP_PRIVATE | MAP_DROPPABLE
                if mapping.grows_down:
                    # Not MAP_STACK: since Linux 6.7 (commit c4608d1bf7c6) it means MADV_NOHUGEPAGE.
                    flags |= MAP_GROWSDOWN
            case Source.SHARED:
                fd = descriptor_of(mapping.object, mapping.writable)
            case Source.FILE:
                key = (mapping.path, mapping.writable)
                if key not in opened:
                    access = os.O_RDWR if mapping.writable else os.O_RDONLY
                    opened[key] = syscalls.openat2(
                        program, mapping.path, access | os.O_CLOEXEC | os.O_NONBLOCK
                    )
                fd = opened[key]
        address = syscalls.mmap(
            program,
            mapping.start,
            mapping.end - mapping.start,
            protection,
            flags,
            fd,
            0 if fd == -1 else mapping.offset,
        )
        program.expect(address, mapping.start)
    for fd in opened.values():
        syscalls.close(program, fd)


def map_opened(program: Program, mappings: Sequence[Mapping], files: abc.Mapping[int, int]) -> None:
    """Map the memory of open files; `files` has the stub's descriptors of them."""
    for mapping in mappings:
        if mapping.source is Source.OPENED:
            start, length = mapping.start, mapping.end - mapping.start
            flags = MAP_SHARED | MAP_FIXED_NOREPLACE
            how = mapping.protection, flags, files[mapping.object], mapping.offset
            program.expect(syscalls.mmap(program, start, length, *how), start)


def advise(program: Program, mappings: Sequence[Mapping]) -> None:
    """Say how pages are to be made, before they are filled in; and what the memory is called."""
    for mapping in mappings:
        length = mapping.end - mapping.start
        if mapping.policy:
            # A machine without these nodes does without.
            program.may_fail(
                memory_policy.set_of_range(program, mapping.start, length, mapping.policy)
            )
        if mapping.name:
            # Not every kernel has names (CONFIG_ANON_VMA_NAME).
            named = (_PR_SET_VMA_ANON_NAME, mapping.start, length, mapping.name)
            program.may_fail(syscalls.prctl(program, _PR_SET_VMA, *named))
        for advice in mapping.advice:
            syscalls.madvise(program, mapping.start, mapping.end - mapping.start, advice)


def protect(
    program: Program,
    mappings: Sequence[Mapping],
    pages: Sequence[PageRange],
    inherited: Container[int],
) -> None:
    """Set the final protections, and lock what was locked.

    In `inherited` are the starts of mappings that can be read and written.
    """
    filled = _with_pages(mappings, pages)
    for mapping in mappings:
        written = not mapping.shared and mapping.start in filled
        is_other = mapping.start in inherited and mapping.protection != PROT_READ | PROT_WRITE
        if is_other or (written and not mapping.protection & PROT_WRITE):
            syscalls.mprotect(
                program, mapping.start, mapping.end - mapping.start, mapping.protection
            )
        if mapping.locked:
            on_fault = mapping.lock_on_fault
            if on_fault is None:
                on_fault = not _is_whole(mapping, pages)
            flags = _MLOCK_ONFAULT if on_fault else 0
            locked = program.call(SYS.MLOCK2, mapping.start, mapping.end - mapping.start, flags)
            if not mapping.protection or mapping.source is not Source.ANONYMOUS:
                # Locked it is, even if not all of it can be touched: as it was.
                program.may_fail(locked)


def _is_whole(mapping: Mapping, pages: Sequence[PageRange]) -> bool:
    """Tell whether all pages are there, where nobody knows if they are locked as they come.

    Those that were never touched must stay so.
    """
    present = sum(
        min(mapping.end, extent.start + extent.length) - max(mapping.start, extent.start)
        for extent in pages
        if extent.start < mapping.end and mapping.start < extent.start + extent.length
    )
    return present == mapping.end - mapping.start


def drop(program: Program, ranges: Sequence[tuple[int, int]]) -> None:
    """Let go of pages, so that there is what there was before them: nothing, or a file's."""
    for start, end in ranges:
        syscalls.madvise(program, start, end - start, _MADV_DONTNEED)


def seal(program: Program, mappings: Sequence[Mapping]) -> None:
    """Seal what was sealed (mseal(2)): from then on nobody changes it."""
    for mapping in mappings:
        if mapping.sealed and features.mseal():
            program.call(SYS.MSEAL, mapping.start, mapping.end - mapping.start, 0)


def lacking(mappings: Sequence[Mapping]) -> Iterator[str]:
    """Tell what this kernel can't do for a process's memory."""
    if any(one.sealed for one in mappings) and not features.mseal():
        yield "its sealed memory is no longer sealed: this kernel has no mseal(2)"
    if any(one.droppable for one in mappings) and not features.droppable():
        yield "its droppable memory is never dropped: this kernel has no MAP_DROPPABLE"


def install_guards(program: Program, space: AddressSpace) -> None:
    """Make guard regions (MADV_GUARD_INSTALL) again."""
    for extent in space.guards:
        syscalls.madvise(program, extent.start, extent.length, _MADV_GUARD_INSTALL)
