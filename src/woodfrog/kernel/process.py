"""Processes: what prctl(2) sets, and pidfds."""

from __future__ import annotations

import struct

from woodfrog.kernel.abi.x86_64 import SYS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from woodfrog.kernel.caller import Caller

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_SET_TIMERSLACK = 29
PR_SET_MM = 35
PR_SET_NO_NEW_PRIVS = 38
PR_SET_CHILD_SUBREAPER = 36
PR_GET_CHILD_SUBREAPER = 37

CLOSE_RANGE_CLOEXEC = 4
KEYCTL_JOIN_SESSION_KEYRING = 1
KEYCTL_SETPERM = 5
# What such a keyring grants anyway (all to who possesses it; to its user view, read and link),
# and search to its user: without it nobody finds the keyring by its name.
_KEYRING_PERMISSIONS = 0x3F1B0000

# _IOWR(0xFF, 11, struct pidfd_info) with the struct's first published size.
PIDFD_GET_INFO = 0xC040FF0B
PIDFD_INFO_EXIT = 1 << 3


def prctl(on: Caller, option: int, *arguments: int) -> int:
    """Set or ask one of the attributes that prctl(2) knows."""
    padded = (*arguments, 0, 0, 0, 0)[:4]
    return on.call(SYS.PRCTL, option, *padded)


def is_subreaper(on: Caller) -> bool:
    """Tell whether orphans among our descendants are handed to us."""
    answer = bytearray(4)
    on.call(SYS.PRCTL, PR_GET_CHILD_SUBREAPER, answer, 0, 0, 0)
    return any(answer)


def pidfd_open(on: Caller, pid: int) -> int:
    """Return a descriptor (close-on-exec) that stays tied to this very process."""
    return on.call(SYS.PIDFD_OPEN, pid, 0)


def pidfd_getfd(on: Caller, pidfd: int, descriptor: int) -> int:
    """Return a duplicate (close-on-exec) of another process's descriptor."""
    return on.call(SYS.PIDFD_GETFD, pidfd, descriptor, 0)


def pidfd_send_signal(on: Caller, pidfd: int, number: int) -> None:
    """Send a signal to this very process, even if its pid has been given away."""
    on.call(SYS.PIDFD_SEND_SIGNAL, pidfd, number, 0, 0)


def pidfd_exit_status(on: Caller, pidfd: int) -> int | None:
    """Return the wait status of a process that was reaped (since Linux 6.15), else None."""
    info = bytearray(64)
    info[0:8] = struct.pack("Q", PIDFD_INFO_EXIT)
    try:
        on.call(SYS.IOCTL, pidfd, PIDFD_GET_INFO, info)
    except OSError:
        return None
    mask, status = struct.unpack_from("Q", info)[0], struct.unpack_from("i", info, 60)[0]
    return int(status) if mask & PIDFD_INFO_EXIT else None


def close_on_exec_from(on: Caller, first: int) -> None:
    """Mark every descriptor from `first` on as close-on-exec."""
    on.call(SYS.CLOSE_RANGE, first, 0xFFFFFFFF, CLOSE_RANGE_CLOEXEC)


def close_all_from(on: Caller, first: int, but: set[int]) -> None:
    """Close every descriptor from `first` on, except for some."""
    for number in sorted(number for number in but if number >= first):
        if number > first:
            on.call(SYS.CLOSE_RANGE, first, number - 1, 0)
        first = number + 1
    on.call(SYS.CLOSE_RANGE, first, 0xFFFFFFFF, 0)


def join_session_keyring(on: Caller, name: str) -> None:
    """Leave the session keyring for one of this name, made if there is none that we may search."""
    keyring = on.call(SYS.KEYCTL, KEYCTL_JOIN_SESSION_KEYRING, name.encode() + b"\0")
    on.call(SYS.KEYCTL, KEYCTL_SETPERM, keyring, _KEYRING_PERMISSIONS)
