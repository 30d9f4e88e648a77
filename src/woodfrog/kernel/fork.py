"""fork(2) whose child is born in a cgroup (v2), which needs no move afterwards."""

from __future__ import annotations

import ctypes
import os
import struct

from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE

# It keeps the interpreter's lock, as os.fork does.
_syscall = ctypes.PyDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long

_CLONE_CHILD_CLEARTID, _CLONE_CHILD_SETTID = 0x200000, 0x1000000
_CLONE_INTO_CGROUP = 0x200000000
_PR_GET_TID_ADDRESS = 40
_SIGCHLD = 17
# struct clone_args of clone3(2): flags, pidfd, child_tid, parent_tid, exit_signal, stack,
# stack_size, tls, set_tid, set_tid_size, cgroup
_CLONE_ARGS = struct.Struct("<11Q")


def fork_into_cgroup(group: int) -> int:
    """Fork, for a process of one thread, like os.fork; `group` is a descriptor of a v2 cgroup.

    The interpreter isn't told: all that it does then is about other threads and what they held, but
    with threading loaded a child writes to 200 pages for that, of which each is copied (0.5 ms).

    Raises OSError where the kernel, or a filter around us, doesn't have that.
    """
    # Where the C library knows the thread's id from: it is to know the child's.
    answer = bytearray(8)
    HERE.call(SYS.PRCTL, _PR_GET_TID_ADDRESS, answer, 0, 0, 0)
    (thread_id,) = struct.unpack("<Q", answer)
    flags = _CLONE_INTO_CGROUP | _CLONE_CHILD_SETTID | _CLONE_CHILD_CLEARTID
    arguments = ctypes.create_string_buffer(
        _CLONE_ARGS.pack(flags, 0, thread_id, 0, _SIGCHLD, 0, 0, 0, 0, 0, group), _CLONE_ARGS.size
    )
    pid: int = _syscall(ctypes.c_uint64(SYS.CLONE3), arguments, ctypes.c_size_t(_CLONE_ARGS.size))
    if pid < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"clone3: {os.strerror(error)}")
    return pid
