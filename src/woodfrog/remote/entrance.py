"""Running a program here, in a process that never comes back from it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import NoReturn, cast

from woodfrog.remote.program import LOOP, Program

# mov r15, rdi; xor r14d, r14d; jmp to the loop
_ENTER = bytes.fromhex("4989ff 4531f6 e9")
_JUMP_BYTES = 4
_AT = -(-len(LOOP) // 16) * 16


def code() -> bytes:
    """Return the code of a stub's first page, with a way in for a process that runs itself."""
    way = -(_AT + len(_ENTER) + _JUMP_BYTES)
    return LOOP.ljust(_AT, b"\0") + _ENTER + way.to_bytes(_JUMP_BYTES, "little", signed=True)


def into(program: Program, base: int) -> Callable[[], NoReturn]:
    """Put a program where it runs, and return what enters it; `code` is mapped at `base`.

    A fork may call that, too. Nothing that was made is of use afterwards.
    """
    assembled = program.assemble()
    ctypes.memmove(program.base, assembled, len(assembled))
    enter = ctypes.PYFUNCTYPE(None, ctypes.c_uint64)(base + _AT)
    entry = ctypes.c_uint64(program.entry)
    return cast("Callable[[], NoReturn]", lambda: enter(entry))
