"""What a task waited for before it was held, and since when.

A stop hides both: the kernel then shows the stop instead of the wait. So look before it.
"""

import re
from typing import NamedTuple

from woodfrog.kernel.abi.x86_64 import SYS

# Calls that end by themselves after a time that no one can read from outside.
_TIMED = frozenset(
    (
        SYS.NANOSLEEP,
        SYS.CLOCK_NANOSLEEP,
        SYS.POLL,
        SYS.FUTEX,
        SYS.FUTEX_WAITV,
        SYS.RESTART_SYSCALL,
        SYS.EPOLL_WAIT,
        SYS.EPOLL_PWAIT,
        SYS.EPOLL_PWAIT2,
        SYS.RT_SIGTIMEDWAIT,
        SYS.SEMTIMEDOP,
        SYS.IO_GETEVENTS,
        SYS.IO_PGETEVENTS,
        SYS.READ,
        SYS.READV,
        SYS.RECVFROM,
        SYS.RECVMSG,
        SYS.ACCEPT,
        SYS.ACCEPT4,
        SYS.WRITE,
        SYS.WRITEV,
        SYS.SENDTO,
        SYS.SENDMSG,
        SYS.CONNECT,
    )
)
_EXEC_START = re.compile(rb"se\.exec_start\s*:\s*(\d+)\.(\d+)")


class Waiting(NamedTuple):
    """A call that a task slept in: its number, where in the kernel, and since when.

    `since` is in nanoseconds of the scheduler's clock (`scheduler_clock`), 0 if unknown.
    """

    number: int
    channel: str
    since: int


def look_before_the_hold(path: str) -> Waiting | None:
    """Tell in which call the task sleeps; None if it runs. `path` is /proc/PID/task/TID."""
    try:
        with open(f"{path}/syscall", "rb") as file:
            first = file.read().split(None, 1)[0]
        if not first.isdigit():
            return None
        number = int(first)
        if number not in _TIMED:
            return Waiting(number, "", 0)
        with open(f"{path}/wchan", encoding="ascii") as file:
            channel = file.read()
        return Waiting(number, channel, last_on_cpu(path))
    except (OSError, IndexError):
        return None


def last_on_cpu(path: str) -> int:
    """Return when the task last ran, in nanoseconds of the scheduler's clock; 0 if not told."""
    try:
        with open(f"{path}/sched", "rb") as file:
            match = _EXEC_START.search(file.read(2048))
    except OSError:
        return 0
    return int(match[1]) * 1_000_000 + int(match[2]) if match else 0


def scheduler_clock() -> int:
    """Return the scheduler's clock now, in nanoseconds: we are running, so it is our own time."""
    return last_on_cpu("/proc/thread-self")
