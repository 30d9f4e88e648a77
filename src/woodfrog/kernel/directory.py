"""getdents64(2): the entries of a directory, with the positions behind them."""

import struct
from collections.abc import Iterator

from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE

_ENTRY = struct.Struct("<QqHB")  # struct linux_dirent64: inode, position behind it, length, type
_AT_ONCE = 1 << 15


def entries(descriptor: int) -> Iterator[tuple[bytes, int]]:
    """Give the names that are still to be read, and where in the directory each ends."""
    room = bytearray(_AT_ONCE)
    while got := HERE.call(SYS.GETDENTS64, descriptor, room, len(room)):
        at = 0
        while at < got:
            _, position, length, _ = _ENTRY.unpack_from(room, at)
            name = bytes(room[at + _ENTRY.size : at + length])
            yield name[: name.index(0)], position
            at += length
