"""What a task waited for before it was held, and since when.

A stop hides both: the kernel then shows the stop instead of the wait. So look before it.
"""

import os
import time

from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.procfs.reading import read_file

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
        SYS.IO_URING_ENTER,
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
_SWITCHES = b"\nnr_voluntary_switches"
_EXEC_START = b"\nse.exec_start"


class Waiting:
    """A call that a task slept in: its number, where in the kernel, and since when.

    `since` is in nanoseconds of our CLOCK_MONOTONIC, 0 if unknown. `switches` is how often the task
    has given up its CPU by itself: it tells whether it still is the same wait.
    """

    # (`pause` imports this, and neither msgspec nor typing.)
    __slots__ = ("channel", "number", "since", "switches")

    def __init__(self, number: int, channel: str, since: int, switches: int = 0) -> None:
        self.number = number
        self.channel = channel
        self.since = since
        self.switches = switches

    @property
    def slept_ns(self) -> int:
        """How long the task has been waiting, as far as that is known."""
        return max(0, time.monotonic_ns() - self.since) if self.since else 0

    def as_it_was(self, before: "Waiting | None") -> "Waiting":
        """Return the wait that it was before it was paused, if it is the same wait.

        A pause either leaves a task asleep where it was, or has it sleep once more, elsewhere.
        """
        if before is None or before.number != self.number:
            return self
        once_more = 0 if before.channel == self.channel else 1
        same = self.switches - before.switches == once_more
        if not same:
            return self
        return Waiting(before.number, before.channel, before.since, self.switches)


class SchedulerClocks:
    """The clock by which /proc/PID/sched tells when a task last ran: each CPU has its own.

    They differ by the time that was stolen from each CPU or spent in interrupts.
    """

    def __init__(self) -> None:
        self._offsets: dict[int, int | None] = {}

    def monotonic(self, cpu: int, time_ns: int) -> int:
        """Convert a CPU's clock to CLOCK_MONOTONIC; 0 if that can't be done."""
        if cpu not in self._offsets:
            self._offsets[cpu] = _offset(cpu)
        offset = self._offsets[cpu]
        return time_ns + offset if offset is not None else 0


def _offset(cpu: int) -> int | None:
    """Run on a CPU for a moment: what it then tells of us is its time now."""
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {cpu})
    except OSError:
        return None
    try:
        ours, _ = _last_on_cpu("/proc/thread-self")
        return time.monotonic_ns() - ours if ours else None
    finally:
        os.sched_setaffinity(0, allowed)


def look_before_the_hold(path: str, clocks: SchedulerClocks) -> Waiting | None:
    """Tell in which call the task sleeps; None if it runs. `path` is /proc/PID/task/TID."""
    try:
        first = read_file(f"{path}/syscall", in_pieces=False).split(None, 1)[0]
        if not first.isdigit():
            return None
        number = int(first)
        if number not in _TIMED:
            return Waiting(number, "", 0)
        channel = read_file(f"{path}/wchan").decode("ascii")
        cpu = int(read_file(f"{path}/stat").rpartition(b")")[2].split()[36])
        ran, switches = _last_on_cpu(path)
        return Waiting(number, channel, clocks.monotonic(cpu, ran) if ran else 0, switches)
    except (OSError, IndexError):
        return None


def _last_on_cpu(path: str) -> tuple[int, int]:
    """Return when the task last ran, in nanoseconds of its CPU's clock, and its switches.

    Both are 0 if the kernel doesn't tell.
    """
    try:
        text = read_file(f"{path}/sched", in_pieces=False)
    except OSError:
        return 0, 0
    ran, switches = _value(text, _EXEC_START), _value(text, _SWITCHES)
    if not ran or not switches:
        return 0, 0
    milliseconds, _, nanoseconds = ran.partition(b".")
    return int(milliseconds) * 1_000_000 + int(nanoseconds), int(switches)


def _value(text: bytes, name: bytes) -> bytes:
    """Return the value in the last line that begins with a name; empty if there is none.

    (The first line has what the task calls itself. A regular expression costs a millisecond when it
    is first used, while tasks are held.)
    """
    _, found, rest = text.rpartition(name)
    return rest.partition(b"\n")[0].partition(b":")[2].strip() if found else b""
