"""Reading another process's memory in bulk: process_vm_readv(2)."""

import ctypes
import os
from collections.abc import Sequence

_libc = ctypes.CDLL(None, use_errno=True)
_process_vm_readv = _libc.process_vm_readv
_process_vm_readv.argtypes = [
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_ulong,
    ctypes.c_void_p,
    ctypes.c_ulong,
    ctypes.c_ulong,
]
_process_vm_readv.restype = ctypes.c_ssize_t

_IOV_MAX = 1024
_EFAULT = 14


class ProcessMemory:
    """The memory of one process, by its id; `memory` is a descriptor of its /proc/PID/mem.

    May be used from several threads at once.
    """

    def __init__(self, pid: int, memory: int) -> None:
        self._pid = pid
        self._memory = memory

    def read(self, into: memoryview, ranges: Sequence[tuple[int, int]]) -> None:
        """Fill `into` with these (address, length) ranges, one after the other."""
        start = 0
        for first in range(0, len(ranges), _IOV_MAX):
            some = ranges[first : first + _IOV_MAX]
            length = sum(size for _, size in some)
            self._read(into[start : start + length], some)
            start += length

    def _read(self, into: memoryview, ranges: Sequence[tuple[int, int]]) -> None:
        words: list[int] = []
        for address, length in ranges:
            words += (address, length)
        remote = (ctypes.c_uint64 * len(words))(*words)
        buffer = (ctypes.c_char * len(into)).from_buffer(into)
        local = (ctypes.c_uint64 * 2)(ctypes.addressof(buffer), len(into))
        got = _process_vm_readv(self._pid, local, 1, remote, len(ranges), 0)
        if got == len(into):
            return
        error = ctypes.get_errno() if got < 0 else _EFAULT
        if error != _EFAULT:
            raise OSError(error, f"process_vm_readv of process {self._pid}: {os.strerror(error)}")
        # Memory that even its owner may not read (PROT_NONE) is readable through the file.
        at = 0
        for address, length in ranges:
            if os.preadv(self._memory, [into[at : at + length]], address) != length:
                raise OSError(_EFAULT, f"memory of process {self._pid} at {address:#x} is gone")
            at += length


class FileContents:
    """The contents of an open file; may be used from several threads at once."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self, into: memoryview, ranges: Sequence[tuple[int, int]]) -> None:
        """Fill `into` with these (offset, length) ranges; past the end come zeros."""
        at = 0
        for offset, length in ranges:
            piece = into[at : at + length]
            got = 0
            while got < length:
                count = os.preadv(self._fd, [piece[got:]], offset + got)
                if count == 0:
                    piece[got:] = bytes(length - got)
                    break
                got += count
            at += length
