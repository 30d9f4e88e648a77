"""Huge pages of hugetlbfs: Documentation/admin-guide/mm/hugetlbpage.rst."""

import os
import struct

import msgspec

from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE

MAP_HUGETLB, MAP_HUGE_SHIFT = 0x40000, 26
_HUGETLBFS_MAGIC = 0x958458F6
_POOLS = "/sys/kernel/mm/hugepages"


class Pool(msgspec.Struct, frozen=True):
    """How many pages of one size this machine has, and how many of them can still be had."""

    total: int
    available: int


def page_size(fd: int) -> int:
    """Return the size of a file's pages if they are huge ones, else 0."""
    found = bytearray(120)  # struct statfs: type, block size, ...
    HERE.call(SYS.FSTATFS, fd, found)
    kind, size = struct.unpack_from("<2q", found)
    return size if kind == _HUGETLBFS_MAGIC else 0


def size_flag(size: int) -> int:
    """Return a page size as the flags of mmap, memfd_create and shmget have it."""
    return (size.bit_length() - 1) << MAP_HUGE_SHIFT


def pool_directory(size: int) -> str:
    """Return where the pool of pages of one size is told and set."""
    return f"{_POOLS}/hugepages-{size >> 10}kB"


def pool(size: int) -> Pool | None:
    """Look at the pool of pages of one size; None if the machine has no pages of that size."""
    directory = pool_directory(size)
    if not os.path.isdir(directory):
        return None

    def number(name: str) -> int:
        with open(f"{directory}/{name}", encoding="ascii") as file:
            return int(file.read())

    # What is reserved is free still, but promised; what is surplus goes beyond the pool.
    more = max(0, number("nr_overcommit_hugepages") - number("surplus_hugepages"))
    available = number("free_hugepages") - number("resv_hugepages") + more
    return Pool(number("nr_hugepages"), max(0, available))
