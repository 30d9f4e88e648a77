"""Comparing memory page by page, at the speed of memcmp(3) and without Python's lock."""

import ctypes
from collections.abc import Iterator
from typing import TypeAlias

from woodfrog.kernel.abi.x86_64 import PAGE

_BLOCK = 16 * PAGE
_Memory: TypeAlias = bytearray | memoryview

_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_memcmp.restype = ctypes.c_int


def equal_pages(
    one: _Memory, at: int, other: _Memory, other_at: int, length: int
) -> Iterator[tuple[int, int]]:
    """Go through the (start, end) runs of whole pages, from 0 on, that are the same in both.

    Neither may be read-only.
    """
    if at + length > len(one) or other_at + length > len(other):
        raise ValueError("more is to be compared than there is")
    left = ctypes.addressof(ctypes.c_char.from_buffer(one)) + at
    right = ctypes.addressof(ctypes.c_char.from_buffer(other)) + other_at
    if not _memcmp(left, right, length):
        yield 0, length
        return
    begin = -1
    for block in range(0, length, _BLOCK):
        end = min(block + _BLOCK, length)
        step = PAGE if _memcmp(left + block, right + block, end - block) else end - block
        for page in range(block, end, step):
            if step > PAGE or not _memcmp(left + page, right + page, PAGE):
                begin = page if begin < 0 else begin
            elif begin >= 0:
                yield begin, page
                begin = -1
    if begin >= 0:
        yield begin, length
