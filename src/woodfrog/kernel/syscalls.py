"""The catalogue: one typed function per system call, `Caller` first.

Flags and layouts are those of the man pages. Functions that return an `int` work in programs too,
where it is a placeholder; those that fill a buffer return it, and it holds its bytes once the call
has run.
"""

import struct
from collections.abc import Sequence

from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import Caller
from woodfrog.kernel.mounts import (
    AT_FDCWD,
    RESOLVE_BENEATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    look_up,
)

F_DUPFD, F_SETFL = 0, 4


# --- files ---------------------------------------------------------------------------------------


def openat2(
    on: Caller,
    path: bytes,
    flags: int,
    *,
    directory: int = AT_FDCWD,
    mode: int = 0,
    resolve: int = RESOLVE_NO_MAGICLINKS,
) -> int:
    """Open a path, never through the magic links of /proc."""
    how = struct.pack("<3Q", flags, mode, resolve)
    if resolve & (RESOLVE_BENEATH | RESOLVE_IN_ROOT):
        return look_up(on, directory, path, how)
    return on.call(SYS.OPENAT2, directory, path, how, len(how))


def open_by_handle(on: Caller, kind: int, handle: bytes, flags: int) -> int:
    """Open what a handle stands for (name_to_handle_at(2)), by the mount of the working directory.

    Unlike a descriptor, that may be one that was opened by O_PATH.
    """
    packed = struct.pack("<Ii", len(handle), kind) + handle
    return on.call(SYS.OPEN_BY_HANDLE_AT, AT_FDCWD, packed, flags)


def close(on: Caller, fd: int) -> int:
    """Close one descriptor."""
    return on.call(SYS.CLOSE, fd)


def close_range(on: Caller, first: int, last: int) -> int:
    """Close all descriptors from `first` to `last`."""
    return on.call(SYS.CLOSE_RANGE, first, last, 0)


def duplicate_to(on: Caller, fd: int, new: int, *, cloexec: bool) -> int:
    """Make descriptor `new` name the same file as `fd`, which must be another number."""
    return on.call(SYS.DUP3, fd, new, 0o2000000 if cloexec else 0)


def duplicate_above(on: Caller, fd: int, lowest: int) -> int:
    """Return a new descriptor, `lowest` or higher, for the same file."""
    return on.call(SYS.FCNTL, fd, F_DUPFD, lowest)


def set_status_flags(on: Caller, fd: int, flags: int) -> int:
    """Set O_APPEND, O_NONBLOCK and the like."""
    return on.call(SYS.FCNTL, fd, F_SETFL, flags)


def lseek(on: Caller, fd: int, offset: int) -> int:
    """Set the file's position."""
    return on.call(SYS.LSEEK, fd, offset, 0)


def write(on: Caller, fd: int, data: bytes) -> int:
    """Write bytes; returns how many were taken."""
    return on.call(SYS.WRITE, fd, data, len(data))


def pipe2(on: Caller, flags: int) -> bytearray:
    """Make a pipe; the buffer becomes its read end and its write end, 32 bits each."""
    ends = bytearray(8)
    on.call(SYS.PIPE2, ends, flags)
    return ends


def eventfd(on: Caller, flags: int) -> int:
    """Return a new event counter that stands at zero."""
    return on.call(SYS.EVENTFD2, 0, flags)


def memfd_create(on: Caller, name: bytes, flags: int) -> int:
    """Return a new anonymous file."""
    return on.call(SYS.MEMFD_CREATE, name, flags)


def ftruncate(on: Caller, fd: int, size: int) -> int:
    """Set a file's size."""
    return on.call(SYS.FTRUNCATE, fd, size)


def preadv(on: Caller, fd: int, vectors: bytes, count: int, offset: int) -> int:
    """Read from an offset into memory at `count` (address, length) pairs."""
    # The kernel takes the offset in two longs: on 64 bits the low one holds all of it.
    return on.call(SYS.PREADV, fd, vectors, count, offset, 0)


# --- memory --------------------------------------------------------------------------------------


def mmap(
    on: Caller, start: int, length: int, protection: int, flags: int, fd: int = -1, offset: int = 0
) -> int:
    """Map memory; returns the address."""
    return on.call(SYS.MMAP, start, length, protection, flags, fd, offset)


def munmap(on: Caller, start: int, length: int) -> int:
    """Unmap memory."""
    return on.call(SYS.MUNMAP, start, length)


def mprotect(on: Caller, start: int, length: int, protection: int) -> int:
    """Set a range's protection."""
    return on.call(SYS.MPROTECT, start, length, protection)


def madvise(on: Caller, start: int, length: int, advice: int) -> int:
    """Give an MADV_* advice on a range."""
    return on.call(SYS.MADVISE, start, length, advice)


# --- processes -----------------------------------------------------------------------------------


def prctl(on: Caller, option: int, *arguments: int | bytes | bytearray) -> int:
    """Run one PR_* operation."""
    padding = (0,) * (4 - len(arguments))
    return on.call(SYS.PRCTL, option, *arguments, *padding)


def rt_sigaction(on: Caller, signal: int, action: bytes | None, old: bytearray | None) -> int:
    """Set and/or get a signal's action, as struct kernel_sigaction (32 bytes)."""
    return on.call(SYS.RT_SIGACTION, signal, action or 0, old if old is not None else 0, 8)


def sigaltstack(on: Caller, new: bytes | None, old: bytearray | None) -> int:
    """Set and/or get the task's alternate signal stack, as stack_t (24 bytes)."""
    return on.call(SYS.SIGALTSTACK, new or 0, old if old is not None else 0)


def prlimit(on: Caller, pid: int, resource: int, new: bytes | None, old: bytearray | None) -> int:
    """Set and/or get a limit, as struct rlimit64 (soft, hard)."""
    return on.call(SYS.PRLIMIT64, pid, resource, new or 0, old if old is not None else 0)


def clone3(on: Caller, flags: int, exit_signal: int, ids: Sequence[int]) -> int:
    """Clone the calling task.

    The child gets `ids` in its pid namespaces, outermost first; those above get any.
    """
    wanted = struct.pack(f"<{len(ids)}i", *reversed(ids))
    # struct clone_args: flags pidfd child_tid parent_tid exit_signal stack stack_size tls set_tid
    # set_tid_size cgroup. A program gives data an address of its own at once.
    address = on.address_of(wanted) if ids else 0  # type: ignore[attr-defined]
    arguments = struct.pack("<11Q", flags, 0, 0, 0, exit_signal, 0, 0, 0, address, len(ids), 0)
    return on.call(SYS.CLONE3, arguments, len(arguments))
