"""FUSE: which file systems are served by programs (Documentation/filesystems/fuse.rst).

To look at a file of one is to wait for its program, which never answers while it is held. `look`
asks nobody.
"""

import os
import struct

import msgspec

from woodfrog.kernel import mounts
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.procfs.reading import read_file

DEVICE = 10, 229  # /dev/fuse, whatever it is called
_AT_FDCWD, _AT_NO_AUTOMOUNT, _AT_STATX_DONT_SYNC = -100, 0x800, 0x4000
_STATX_TYPE_AND_INODE = 0x1 | 0x2 | 0x100
_MODE_AT, _INODE_AT, _DEVICES_AT = 28, 32, 128  # in struct statx
_STATX_BYTES = 256
_MINOR_BITS = 20  # as the kernel itself has device numbers


class Looked(msgspec.Struct, frozen=True):
    """What the kernel knows by itself of a file: device numbers are (major, minor)."""

    mode: int
    inode: int
    special: tuple[int, int]  # which device a device node is
    device: tuple[int, int]  # of the file system


def look(path: str) -> Looked:
    """Return what a path leads to, without asking who serves the file system. Raises OSError."""
    found = bytearray(_STATX_BYTES)
    flags = _AT_NO_AUTOMOUNT | _AT_STATX_DONT_SYNC
    HERE.call(SYS.STATX, _AT_FDCWD, os.fsencode(path), flags, _STATX_TYPE_AND_INODE, found)
    (mode,) = struct.unpack_from("<H", found, _MODE_AT)
    (inode,) = struct.unpack_from("<Q", found, _INODE_AT)
    numbers = struct.unpack_from("<4I", found, _DEVICES_AT)
    return Looked(mode, inode, numbers[:2], numbers[2:])


def served() -> frozenset[tuple[int, int]]:
    """Return the devices of all file systems of the machine that a program may have to answer for.

    Mounted in whatever namespace, or nowhere any more. Who may not know that is told of none.
    """
    # To ask for what the kernel doesn't have would make it look for a module.
    if b"\tfusectl\n" not in read_file("/proc/filesystems"):
        return frozenset()
    try:
        control = mounts.new_mount(HERE, "fusectl", 0)
    except PermissionError:
        return frozenset()
    try:
        here = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=control)
        try:
            numbers = [int(name) for name in os.listdir(here)]
        finally:
            os.close(here)
    finally:
        os.close(control)
    return frozenset((number >> _MINOR_BITS, number & (1 << _MINOR_BITS) - 1) for number in numbers)
