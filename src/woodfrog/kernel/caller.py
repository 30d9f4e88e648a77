"""Where system calls run: the `Caller` protocol, and `HERE`, our own process."""

from __future__ import annotations

import ctypes
import os

from woodfrog.kernel.abi.x86_64 import call_name

TYPE_CHECKING = False  # the typing module costs every command 5 ms
if TYPE_CHECKING:
    from typing import Any, Protocol
else:
    Protocol = object

Argument = int | bytes | bytearray

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long

_WORD = (1 << 64) - 1


class Caller(Protocol):
    """A place where system calls can run: this process, a tracee, a program."""

    def call(self, number: int, *arguments: Argument) -> int:
        """Run one call. `bytes` are passed in; a `bytearray` is passed in and filled.

        Returns the kernel's result. Raises OSError, naming the call, if it is an error.
        """


def checked(number: int, result: int) -> int:
    """Return a raw kernel result, or raise OSError as `os` does if it is an error."""
    if -4096 < result < 0:
        raise OSError(-result, f"{call_name(number)}: {os.strerror(-result)}")
    return result


class _Here:
    """Our own process."""

    def call(self, number: int, *arguments: Argument) -> int:
        words: list[Any] = []
        for argument in arguments:
            if isinstance(argument, int):
                words.append(ctypes.c_uint64(argument & _WORD))
            elif isinstance(argument, bytes):
                words.append(ctypes.c_char_p(argument))
            else:
                words.append((ctypes.c_char * len(argument)).from_buffer(argument))
        result: int = _syscall(ctypes.c_uint64(number), *words)
        if result == -1:
            error = ctypes.get_errno()
            raise OSError(error, f"{call_name(number)}: {os.strerror(error)}")
        return result


HERE: Caller = _Here()
