"""The page store as a descriptor that a restored process may read, and can't get to write."""

import fcntl
import os
from collections.abc import Sequence

from woodfrog.errors import ImageError
from woodfrog.image import pages
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE

_AT_EMPTY_PATH = 0x1000
_OPEN_TREE_CLONE = 1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_MOUNT_ATTR_RDONLY = 1
_MFD_NOEXEC_SEAL = 8


def reopened_read_only(fd: int) -> int:
    """Return the same file opened through a detached read-only mount.

    A plain read-only descriptor could be opened again for writing through /proc/self/fd.
    Raises OSError without CAP_SYS_ADMIN, or if the mount can't be cloned.
    """
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_EMPTY_PATH
    mount = HERE.call(SYS.OPEN_TREE, fd, b"", flags)
    try:
        # struct mount_attr: attr_set, attr_clr, propagation, userns_fd
        attributes = _MOUNT_ATTR_RDONLY.to_bytes(8, "little") + bytes(24)
        HERE.call(SYS.MOUNT_SETATTR, mount, b"", _AT_EMPTY_PATH, attributes, len(attributes))
        return os.open(f"/proc/self/fd/{mount}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(mount)


def sealed_copy(fd: int, table: pages.ChunkTable, chunks: Sequence[int]) -> int:
    """Return chunks of the page store, checked and decompressed, as a sealed file in memory."""
    available = _available_memory()
    wanted = sum(map(table.raw_bytes, chunks))
    if wanted > available:
        raise ImageError(
            f"the image holds {wanted >> 20} MiB of memory, and this machine has "
            f"{available >> 20} MiB available"
        )
    copy = _memory_file("woodfrog-pages")
    try:
        os.ftruncate(copy, table.page_bytes)
        pages.unpack_chunks(fd, table, chunks, copy)
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(copy, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(copy)
        raise
    return copy


def _memory_file(name: str) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create(name, flags | _MFD_NOEXEC_SEAL)
    except OSError:
        return os.memfd_create(name, flags)  # before Linux 6.3


def _available_memory() -> int:
    with open("/proc/meminfo", "rb") as table:
        for line in table:
            if line.startswith(b"MemAvailable:"):
                return int(line.split()[1]) * 1024
    raise ImageError("/proc/meminfo doesn't tell the available memory")
