"""What smaps tells of a mapping by flags and names, and what of that can't be kept."""

import os
from collections.abc import Iterable
from functools import lru_cache

from woodfrog.errors import UnsupportedResource
from woodfrog.kernel import features
from woodfrog.kernel.procfs.maps import Mapping

# VmFlags of smaps and the advice that brings them back, in an order that works.
ADVICE = (
    ("sr", 2),
    ("rr", 1),
    ("dc", 10),
    ("dd", 16),
    ("wf", 18),
    ("hg", 14),
    ("nh", 15),
    ("mg", 12),
)
KNOWN_ADVICE = frozenset(advice for _, advice in ADVICE)
_REFUSED = {
    "io": "maps a device's memory",
    "pf": "maps a device's memory",
    "sf": "is mapped by MAP_SYNC",
    "um": "is registered with a userfaultfd",
    "uw": "is registered with a userfaultfd",
    "ss": "is a shadow stack",
}
# Before Linux 6.10 its memory looks like a device's.
IO_URING = b"anon_inode:[io_uring]"
AIO = b"/[aio] (deleted)"
# A packet socket's rings, a BPF map.
OPENED = (b"socket:[", b"anon_inode:bpf-map")
SECRET = b"/secretmem (deleted)"
# How names of anonymous memory look: of private and of shared one.
_NAMED, NAMED_SHARED = b"[anon:", b"[anon_shmem:"
_PROT_EXEC = 4


def refuse(found: Mapping, *, noted: bool) -> None:
    """Refuse a mapping that can't be made again.

    `noted` if we have the kernel note what is written to in this process, by a userfaultfd.
    """
    ours = ("uw",) if noted else ()
    reasons = [_REFUSED[flag] for flag in found.flags if flag in _REFUSED and flag not in ours]
    if found.name == IO_URING:
        return
    if found.name == SECRET:
        reasons.append("is secret memory (memfd_secret), which nobody else can read")
    # One that may only be executed has a key of the kernel's own.
    if found.protection_key and found.protection != _PROT_EXEC:
        reasons.append("has a protection key (pkey_mprotect)")
    if reasons:
        raise _cannot_save(found, reasons[0])


def refuse_registered(listed: Iterable[Mapping]) -> None:
    """Refuse mappings of which somebody handles the faults, by a userfaultfd."""
    for found in listed:
        for flag in ("um", "uw"):
            if flag in found.flags:
                raise _cannot_save(found, _REFUSED[flag])


def _cannot_save(found: Mapping, why: str) -> UnsupportedResource:
    return UnsupportedResource(
        f"the mapping at {found.start:#x} ({os.fsdecode(found.name) or 'anonymous'}) {why},"
        " which cannot be saved yet"
    )


@lru_cache
def advice(flags: frozenset[str]) -> tuple[int, ...]:
    """Return the MADV_* that a mapping's flags tell of; of such sets there are few."""
    return tuple(number for flag, number in ADVICE if flag in flags)


def given_name(name: bytes) -> bytes:
    """Return the name that a program gave to anonymous memory, if it has one."""
    for kind in (_NAMED, NAMED_SHARED):
        if name.startswith(kind) and name.endswith(b"]"):
            return name[len(kind) : -1]
    return b""


def locks_on_fault(found: Mapping) -> bool | None:
    """Tell whether a mapping is locked as its pages come; None if nobody knows, or it isn't."""
    if "lo" not in found.flags:
        return None
    return "lf" in found.flags or (False if features.shows_lock_on_fault() else None)


def huge_page(pid: int, found: Mapping) -> int:
    """Return the size of the pages of hugetlbfs that a mapping is made of, or 0."""
    if "ht" not in found.flags:
        return 0
    return os.statvfs(f"/proc/{pid}/map_files/{found.start:x}-{found.end:x}").f_bsize
