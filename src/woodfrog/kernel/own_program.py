"""Our own program, as /proc/self/exe leads to it: out of reach of who is executed after us.

A program of a container that comes to be an execution of /proc/self/exe (by a link, or by a script
whose interpreter that is) has our interpreter's file on the host as its own, and may write to it
once nobody executes that. A path that is looked at first can be another when it is executed. So
what the link leads to is the file on a mount of its own that is read-only.
"""

from __future__ import annotations

import ctypes
import os
import struct

from woodfrog.kernel import mounts
from woodfrog.kernel.abi.x86_64 import PAGE, SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.process import PR_SET_MM
from woodfrog.kernel.procfs.reading import read_file

_PR_SET_MM_MAP = 14
_MM_MAP = struct.Struct("<12QIi")  # struct prctl_mm_map
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_READ, _WRITE, _EXECUTE = 1, 2, 4
_PROTECTIONS = (b"r", _READ), (b"w", _WRITE), (b"x", _EXECUTE)
_MAP_PRIVATE, _MAP_FIXED, _MAP_ANONYMOUS = 0x02, 0x10, 0x20
# replace(new, old, length, protection): copies memory, protects the copy, and moves it to the old
# place, in one go: the interpreter has its own state there. Returns what the last call returned.
_REPLACE = bytes.fromhex(
    "53 41 54 41 55 41 56"  # push rbx, r12, r13, r14
    "48 89 fb 49 89 f4 49 89 d5 49 89 ce"  # rbx: new, r12: old, r13: length, r14: protection
    "48 89 d1 fc f3 a4"  # copy
    "b8 0a 00 00 00 48 89 df 4c 89 ee 4c 89 f2 0f 05"  # mprotect(new, length, protection)
    "48 85 c0 75 19"  # if that failed, return
    "b8 19 00 00 00 48 89 df 4c 89 ee 4c 89 ea"  # mremap(new, length, length,
    "41 ba 03 00 00 00 4d 89 e0 0f 05"  # MREMAP_MAYMOVE | MREMAP_FIXED, old)
    "41 5e 41 5d 41 5c 5b c3"  # pop, ret
)
_CALLED = b"woodfrog\0init\0"
_FUNCTION = ctypes.CFUNCTYPE(ctypes.c_long, *[ctypes.c_ulong] * 4)


def make_read_only() -> bool:
    """Have /proc/self/exe lead to our program by a read-only mount; tells whether that could be.

    For a process of one thread, with the right to mount, in the mount namespace that has the file.
    """
    try:
        _make_read_only()
    except OSError:
        return False
    return True


def _make_read_only() -> None:
    path = os.fsencode(os.readlink("/proc/self/exe"))
    place = os.open("/proc/self/exe", os.O_PATH | os.O_CLOEXEC)
    try:
        mount = mounts.clone_mount(HERE, place)
    finally:
        os.close(place)
    try:
        mounts.mount_setattr(HERE, mount, set_=mounts.MOUNT_ATTR_RDONLY)
        program = os.open(f"/proc/self/fd/{mount}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(mount)
    try:
        ours = _mappings(path)
        # What the linker has written to before it protected it: the beginning of what is written.
        written = {start for start, _, protection, _ in ours if protection & _WRITE}
        # The link can't be changed while anything of the old file is mapped.
        flags = _MAP_PRIVATE | _MAP_ANONYMOUS
        code = HERE.call(SYS.MMAP, 0, PAGE, _READ | _WRITE | _EXECUTE, flags, -1, 0)
        ctypes.memmove(code, _REPLACE, len(_REPLACE))
        replace = _FUNCTION(code)
        for start, end, protection, offset in ours:
            if start in written or (end in written and not protection & _EXECUTE):
                _copy(replace, start, end - start, protection)
            else:
                flags = _MAP_PRIVATE | _MAP_FIXED
                HERE.call(SYS.MMAP, start, end - start, protection, flags, program, offset)
        HERE.call(SYS.MUNMAP, code, PAGE)
        _set_link(program)
    finally:
        os.close(program)


def _mappings(path: bytes) -> list[tuple[int, int, int, int]]:
    """Return where a file is mapped by us: start, end, protection and offset."""
    found = []
    # Nothing else is imported for it: this is part of commands that are to be fast.
    for line in read_file("/proc/self/maps").split(b"\n"):
        fields = line.split(b" ", 5)
        if fields[5:] and fields[5].lstrip(b" ") == path:
            start, end = (int(one, 16) for one in fields[0].split(b"-"))
            protection = sum(bit for letter, bit in _PROTECTIONS if letter in fields[1])
            found.append((start, end, protection, int(fields[2], 16)))
    return found


def _copy(
    replace: Callable[[int, int, int, int], int], start: int, length: int, protection: int
) -> None:
    flags = _MAP_PRIVATE | _MAP_ANONYMOUS
    new = HERE.call(SYS.MMAP, 0, length, _READ | _WRITE, flags, -1, 0)
    if replace(new, start, length, protection) != start:
        HERE.call(SYS.MUNMAP, new, length)
        raise OSError("cannot move a mapping")


def _set_link(program: int) -> None:
    """Set where /proc/self/exe leads. What is set with it stays, but for what we were called with.

    Everybody in a container can read /proc/PID/cmdline, and it has paths of the host.
    """
    with open("/proc/self/stat", "rb", buffering=0) as file:
        fields = [int(one) for one in file.readall().rpartition(b")")[2].split()[1:]]
    # As proc_pid_stat(5) counts them, but that the first here is the fourth there.
    code, stack, data, heap = (
        fields[at - 4 : at - 4 + count] for at, count in ((26, 2), (28, 1), (45, 2), (47, 1))
    )
    end = HERE.call(SYS.BRK, 0)
    flags = _MAP_PRIVATE | _MAP_ANONYMOUS
    called = HERE.call(SYS.MMAP, 0, PAGE, _READ | _WRITE, flags, -1, 0)
    ctypes.memmove(called, _CALLED, len(_CALLED))
    behind = called + len(_CALLED)
    own = _MM_MAP.pack(
        *code, *data, *heap, end, *stack, called, behind, behind, behind, 0, 0, program
    )
    HERE.call(SYS.PRCTL, PR_SET_MM, _PR_SET_MM_MAP, own, len(own), 0)
