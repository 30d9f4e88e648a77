"""Reading from very many open files, by a loop of machine code: Python takes longer for a call."""

import ctypes
import mmap
import struct
from collections.abc import Sequence
from functools import cache

from woodfrog.kernel.abi.x86_64 import PAGE, SYS
from woodfrog.kernel.caller import HERE

_READ_EXEC = 5
# As in _READ_ALL: descriptor, address, length, offset; result.
_ROW = struct.Struct("<4Qq")
_RESULT = struct.Struct("<32xq")
# read_all(row, end): calls pread64(2) for each row of a table, and puts the result into it.
_READ_ALL = bytes.fromhex(
    "53 41 54 48 89 fb 49 89 f4"  # push rbx, r12; rbx: row, r12: end
    "4c 39 e3 73 20"  # while rbx < r12:
    "b8 11 00 00 00 48 8b 3b 48 8b 73 08"  # rax: pread64, rdi and rsi: its first words,
    "48 8b 53 10 4c 8b 53 18 0f 05"  # rdx and r10: the others
    "48 89 43 20 48 83 c3 28 eb db"  # result; rbx: the next row
    "41 5c 5b c3"  # pop, ret
)


class Reads:
    """Reads that can be done again and again; each is (descriptor, length, offset)."""

    def __init__(self, reads: Sequence[tuple[int, int, int]], into: bytearray | memoryview) -> None:
        """`into` takes what is read, one after the other; it must be as long as all of them."""
        if sum([length for _, length, _ in reads]) > len(into):
            raise ValueError("more is to be read than there is room for")
        self._into = (ctypes.c_char * len(into)).from_buffer(into)
        address = ctypes.addressof(self._into)
        rows = []
        for descriptor, length, offset in reads:
            rows.append(_ROW.pack(descriptor, address, length, offset, 0))
            address += length
        self._table = ctypes.create_string_buffer(b"".join(rows), _ROW.size * len(rows) or 1)
        self._end = _ROW.size * len(rows)

    def run(self) -> list[int]:
        """Read; returns how many bytes each gave, or its -errno."""
        start = ctypes.addressof(self._table)
        _code().run(start, start + self._end)
        return [result for (result,) in _RESULT.iter_unpack(self._table.raw[: self._end])]


class _Code:
    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, PAGE)
        self._memory.write(_READ_ALL)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        HERE.call(SYS.MPROTECT, start, PAGE, _READ_EXEC)
        self.run = ctypes.CFUNCTYPE(None, ctypes.c_uint64, ctypes.c_uint64)(start)


@cache
def _code() -> _Code:
    return _Code()
