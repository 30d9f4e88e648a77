"""Where system calls run: the `Caller` protocol, and `HERE`, our own process."""

from __future__ import annotations

import ctypes
import os

from woodfrog.kernel.abi.x86_64 import call_name

TYPE_CHECKING = False  # the typing module costs every command 5 ms
if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object

Argument = int | bytes | bytearray

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
# The number and all six arguments are words; ctypes takes bytes and arrays for addresses.
_syscall.argtypes = [ctypes.c_long] + [ctypes.c_void_p] * 6
_syscall.restype = ctypes.c_long
_REST = tuple((0,) * (6 - count) for count in range(7))


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
        words = [
            (ctypes.c_char * len(argument)).from_buffer(argument)
            if isinstance(argument, bytearray)
            else argument
            for argument in arguments
        ]
        result: int = _syscall(number, *words, *_REST[len(words)])
        if result == -1:
            error = ctypes.get_errno()
            raise OSError(error, f"{call_name(number)}: {os.strerror(error)}")
        return result


HERE: Caller = _Here()
