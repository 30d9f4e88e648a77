"""Reading files as a child of ours sees them: one that is born where our children are born now.

A fork of us would take long, and the pages that it shares with us are then copied, one by one, as
we go on. So it has our memory (vfork(2)), in which it runs but a few bytes of machine code.
"""

import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Sequence
from functools import cache

from woodfrog.kernel.abi.x86_64 import PAGE, SYS
from woodfrog.kernel.caller import HERE

_READ_EXEC = 5
_MOST_BYTES = 4096
# As in _READ_BY_CHILD: path, what fstat(2) fills, what read(2) fills, how long that is; result.
_ROW = struct.Struct("<4Qq")
_STAT_BYTES = 144
_INODE = struct.Struct("<8xQ")
# read_by_child(row, end): returns what clone(2) does, when the child has ended.
_READ_BY_CHILD = bytes.fromhex(
    "53 41 54 48 89 fb 49 89 f4"  # push rbx, r12; rbx: row, r12: end
    "b8 38 00 00 00 bf 11 41 00 00"  # clone(CLONE_VM | CLONE_VFORK | SIGCHLD,
    "31 f6 31 d2 45 31 d2 45 31 c0 0f 05"  # 0, 0, 0, 0)
    "85 c0 74 04 41 5c 5b c3"  # we: pop, ret
    "4c 39 e3 73 3f"  # the child, which writes to no stack: while rbx < r12:
    "b8 02 00 00 00 48 8b 3b be 00 00 08 00 31 d2 0f 05"  # open(path, O_CLOEXEC, 0)
    "85 c0 78 20 41 89 c5"  # unless that failed, r13d: descriptor
    "b8 05 00 00 00 44 89 ef 48 8b 73 08 0f 05"  # fstat(descriptor, ...)
    "31 c0 44 89 ef 48 8b 73 10 48 8b 53 18 0f 05"  # read(descriptor, ..., length)
    "48 89 43 20 48 83 c3 28 eb bc"  # result; rbx: the next row
    "b8 3c 00 00 00 31 ff 0f 05"  # exit(0)
)


def read_by_child(paths: Sequence[str]) -> list[tuple[int, bytes]]:
    """Return the inode number of each file, and what is in it; (0, b"") if it is not there.

    Raises OSError if it can't be read, or no child can be made.
    """
    text = b"".join(os.fsencode(path) + b"\0" for path in paths)
    names = ctypes.create_string_buffer(text, len(text))
    room = ctypes.create_string_buffer((_STAT_BYTES + _MOST_BYTES) * len(paths))
    name, at = ctypes.addressof(names), ctypes.addressof(room)
    rows = []
    for path in paths:
        rows.append(_ROW.pack(name, at, at + _STAT_BYTES, _MOST_BYTES, 0))
        name += len(os.fsencode(path)) + 1
        at += _STAT_BYTES + _MOST_BYTES
    table = ctypes.create_string_buffer(b"".join(rows), _ROW.size * len(rows))
    start = ctypes.addressof(table)
    child = _code().run(start, start + len(table))
    if child < 0:
        raise OSError(-child, f"clone: {os.strerror(-child)}")
    os.waitpid(child, 0)
    found = []
    for number, (path, row) in enumerate(zip(paths, _ROW.iter_unpack(table.raw), strict=True)):
        result = row[-1]
        if result < 0 and result != -errno.ENOENT:
            raise OSError(-result, os.strerror(-result), path)
        begin = (_STAT_BYTES + _MOST_BYTES) * number
        (inode,) = _INODE.unpack_from(room, begin)
        begin += _STAT_BYTES
        found.append((inode, room.raw[begin : begin + max(result, 0)]))
    return found


def prepare() -> None:
    """Do what takes time now, rather than when something is read first."""
    _code()


class _Code:
    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, PAGE)
        self._memory.write(_READ_BY_CHILD)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        HERE.call(SYS.MPROTECT, start, PAGE, _READ_EXEC)
        self.run = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_uint64, ctypes.c_uint64)(start)


@cache
def _code() -> _Code:
    return _Code()
