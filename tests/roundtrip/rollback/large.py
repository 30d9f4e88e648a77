"""Has much memory, and advice about it; what was mapped last gives its place to what comes next."""

import mmap
from itertools import pairwise

from told import obey

MIB = 1 << 20
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
DONT_DUMP, DUMP = 16, 17  # MADV_DONTDUMP, MADV_DODUMP

large = mmap.mmap(-1, 80 * MIB, flags=PRIVATE)
for page in range(0, len(large), 4096):
    large[page] = 1
large.madvise(DONT_DUMP)
last = mmap.mmap(-1, MIB, flags=PRIVATE)
last[:] = bytes(range(256)) * (MIB // 256)

CHANGES = {
    "write": lambda: large.__setitem__(slice(0, MIB), bytes(MIB)),
    "advise": lambda: large.madvise(DUMP),
    "unmap": lambda: last.close(),
}


def check() -> None:
    """Raise AssertionError unless memory and advice are as they were."""
    assert all(large[page] == 1 for page in range(0, len(large), 4096))
    assert last[:] == bytes(range(256)) * (MIB // 256)
    with open("/proc/self/smaps") as smaps:
        entries = smaps.read().split("\nVmFlags:")
    size = ["Size:", str(len(large) >> 10), "kB"]
    [flags] = [
        after.partition("\n")[0]
        for entry, after in pairwise(entries)
        if size in map(str.split, entry.splitlines())
    ]
    assert "dd" in flags.split()


obey(CHANGES, check)
