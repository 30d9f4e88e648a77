"""Interval timers (setitimer(2)) and POSIX timers (timer_create(2)) of a process."""

import re
import struct
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby

from msgspec.structs import replace

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.image.record import Part
from woodfrog.kernel import features, syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.capability import CAP_WAKE_ALARM
from woodfrog.kernel.procfs.reading import read_file
from woodfrog.remote.program import Program

_ITIMERVAL = struct.Struct("<4q")
_ITIMERSPEC = struct.Struct("<4q")
_INTERVAL_TIMERS = (0, 1, 2)  # ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF
_SIGEV_SIGNAL, _SIGEV_NONE, _SIGEV_THREAD_ID = 0, 1, 4
_PR_TIMER_CREATE_RESTORE_IDS = 77
# Without PR_TIMER_CREATE_RESTORE_IDS a timer gets its id by making and deleting those before it.
_HIGHEST_ID = 100_000
_OF_A_THREAD = 4  # bit of a CPU clock; the bits above the lowest three are ~pid
_ALARM_CLOCKS = (8, 9)  # CLOCK_REALTIME_ALARM, CLOCK_BOOTTIME_ALARM
_REALTIME = 0
_CONTAINERS_CLOCKS = (1, 7)  # CLOCK_MONOTONIC and CLOCK_BOOTTIME, which go on after a restore
_TIMER_ABSTIME = 1
_SI_TIMER = -2
_TIMESPEC = struct.Struct("<2q")
_MOST = 1 << 63
_SECOND = 1_000_000_000

_ENTRY = (
    r"ID: (-?\d+)\nsignal: (\d+)/([0-9a-f]+)\nnotify: (\w+)/(pid|tid)\.(-?\d+)\nClockID: (-?\d+)"
)


class IntervalTimer(Part, frozen=True):
    """One armed timer of setitimer(2), in microseconds."""

    which: int
    interval_us: int
    left_us: int


class PosixTimer(Part, frozen=True):
    """One timer of timer_create(2); times in nanoseconds, `thread` 0 if it signals the process.

    `maker` is the thread whose CPU time it takes, counted from 1, or 0 if it takes no maker's.
    `at_ns` is when it rings next by its clock, for those that ring again and again, and those set
    to a time of CLOCK_REALTIME; else 0. Since its signal was queued it has `rung` so many times.
    """

    timer: int
    clock: int
    signal: int
    value: int
    notify: int
    thread: int
    interval_ns: int
    left_ns: int
    maker: int = 0
    at_ns: int = 0
    rung: int = 0

    @property
    def began_ns(self) -> int:
        """When it rang for the signal that is queued, or is to ring next, by its clock."""
        return self.at_ns - self.rung * self.interval_ns


def ask_interval_timers(program: Program) -> Callable[[], list[IntervalTimer]]:
    """Add the calls that tell the interval timers."""
    answers = [bytearray(_ITIMERVAL.size) for _ in _INTERVAL_TIMERS]
    for which, answer in zip(_INTERVAL_TIMERS, answers, strict=True):
        program.call(SYS.GETITIMER, which, answer)

    def answered() -> list[IntervalTimer]:
        found = []
        for which, answer in zip(_INTERVAL_TIMERS, answers, strict=True):
            interval_s, interval_us, left_s, left_us = _ITIMERVAL.unpack(answer)
            left = left_s * 1_000_000 + left_us
            # No time left but an interval: it has rung, and starts again when its signal is taken.
            if left or interval_s or interval_us:
                interval = interval_s * 1_000_000 + interval_us
                found.append(IntervalTimer(which=which, interval_us=interval, left_us=left))
        return found

    return answered


# What /proc tells of a timer: id, signal, value, how and whom it signals, and its clock.
Listed = tuple[str, ...]


def listed(path: str) -> list[Listed]:
    """Read what /proc tells of the POSIX timers of the process whose directory there is `path`.

    It tells them in no order that lasts; they are by their ids here.
    """
    try:
        text = read_file(f"{path}/timers").decode("ascii")
    except FileNotFoundError:
        raise UnsupportedResource(
            "this kernel does not tell POSIX timers (CONFIG_CHECKPOINT_RESTORE is off)"
        ) from None
    # The expression takes time to be compiled, and few have any.
    return sorted(re.findall(_ENTRY, text), key=lambda one: int(one[0])) if text else []


def ask_posix_timers(
    program: Program, entries: list[Listed], threads: Mapping[int, int]
) -> Callable[[], list[PosixTimer]]:
    """Add the calls that tell the rest of timers, in the process whose they are.

    `threads` leads from the ids of its threads as we see them to those that it sees.
    """
    answers = [bytearray(_ITIMERSPEC.size) for _ in entries]
    times = [(bytearray(_TIMESPEC.size), bytearray(_TIMESPEC.size)) for _ in entries]
    for entry, answer, (before, after) in zip(entries, answers, times, strict=True):
        has_time = int(entry[-1]) in (_REALTIME, *_CONTAINERS_CLOCKS)
        if has_time:
            program.call(SYS.CLOCK_GETTIME, int(entry[-1]), before)
        program.call(SYS.TIMER_GETTIME, int(entry[0]), answer)
        if has_time:
            program.call(SYS.CLOCK_GETTIME, int(entry[-1]), after)

    def answered() -> list[PosixTimer]:
        found = []
        for entry, answer, (before, after) in zip(entries, answers, times, strict=True):
            timer, signal, value, how, target, target_id, clock = entry
            notify = {"signal": _SIGEV_SIGNAL, "none": _SIGEV_NONE}.get(how, 2)
            thread = 0
            if target == "tid":
                thread = threads.get(int(target_id), 0)
                # Signals to a thread that has ended reach nobody.
                notify = notify | _SIGEV_THREAD_ID if thread else _SIGEV_NONE
            interval_s, interval_ns, left_s, left_ns = _ITIMERSPEC.unpack(answer)
            interval, left = interval_s * _SECOND + interval_ns, left_s * _SECOND + left_ns
            at = 0
            if left and int(clock) == _REALTIME:
                at = _absolute(_nanoseconds(before) + left, _nanoseconds(after) + left)
            elif left and interval and int(clock) in _CONTAINERS_CLOCKS:
                at = _nanoseconds(before) + left
            found.append(
                PosixTimer(
                    timer=int(timer),
                    clock=int(clock),
                    signal=int(signal),
                    value=int(value, 16),
                    notify=notify,
                    thread=thread,
                    interval_ns=interval,
                    left_ns=left,
                    at_ns=at,
                    maker=_maker(int(clock), thread, list(threads.values())),
                )
            )
        found.sort(key=lambda one: one.timer)
        return found

    return answered


def ask_overrun(program: Program, timer: int) -> int:
    """Add the call that tells how often a timer had rung beyond the signal that was taken last."""
    return program.call(SYS.TIMER_GETOVERRUN, timer)


def rings_on(timer: PosixTimer) -> bool:
    """Tell whether a timer rings again and again, by a clock that goes on after a restore."""
    return bool(timer.at_ns and timer.interval_ns and timer.clock in _CONTAINERS_CLOCKS)


def ask_next_time(program: Program, timer: PosixTimer) -> Callable[[], int]:
    """Add the calls that tell when a timer rings next, by its clock."""
    now, answer = bytearray(_TIMESPEC.size), bytearray(_ITIMERSPEC.size)
    program.call(SYS.CLOCK_GETTIME, timer.clock, now)
    program.call(SYS.TIMER_GETTIME, timer.timer, answer)
    return lambda: _nanoseconds(now) + _nanoseconds(answer[_TIMESPEC.size :])


def _nanoseconds(time: bytes | bytearray) -> int:
    seconds, nanoseconds = _TIMESPEC.unpack(time)
    return int(seconds * _SECOND + nanoseconds)


def _absolute(earliest: int, latest: int) -> int:
    """Return when a timer of CLOCK_REALTIME rings, if it is set to a time of that; else 0."""
    from woodfrog.kernel.procfs.timer_list import realtime_expirations

    return next((at for at in realtime_expirations() if earliest <= at <= latest), 0)


def _maker(clock: int, signalled: int, threads: list[int]) -> int:
    """Return the thread whose own CPU time a timer takes, counted from 1, 0 for other clocks.

    The kernel doesn't tell, but such a timer is for the thread that it signals, as in runtimes that
    profile themselves.
    """
    if clock >= 0 or clock >> 3 != -1 or not clock & _OF_A_THREAD:
        return 0
    if not signalled and len(threads) > 1:
        raise UnsupportedResource(
            "has a timer of the CPU time of the thread that made it (CLOCK_THREAD_CPUTIME_ID), and"
            " only the kernel knows which that was"
        )
    return threads.index(signalled) + 1 if signalled else 1


def timer_of(info: bytes) -> int | None:
    """Return the id of the POSIX timer that has sent a queued signal; None if none has."""
    code, timer = struct.unpack_from("<8xi4xi", info)
    return timer if code == _SI_TIMER else None


def without_rung(
    pending: list[bytes], intervals: list[IntervalTimer], timers: list[PosixTimer]
) -> list[bytes]:
    """Leave out the queued signals of timers that ring again as soon as they are armed."""
    rung = any(timer.which == 0 and not timer.left_us for timer in intervals)
    again = {timer.timer for timer in timers if timer.rung}
    sigalrm, si_kernel = 14, 0x80
    left: list[bytes] = []
    for info in reversed(pending):
        timer = timer_of(info)
        if timer in again:
            again.remove(timer)  # an earlier one is of another time
        elif not rung or struct.unpack_from("<i4xi", info) != (sigalrm, si_kernel):
            left.append(info)
    return left[::-1]


def by_other_clocks(timers: list[PosixTimer]) -> list[PosixTimer]:
    """Return timers for where the clocks aren't what they were: they ring after the time left."""
    return [
        replace(timer, at_ns=0, rung=0) if timer.clock in _CONTAINERS_CLOCKS else timer
        for timer in timers
    ]


def refuse_wider(who: str, timers: list[PosixTimer], bounding: int, threads: int) -> None:
    """Refuse ids that are out of reach, and timers that the new container could not make."""
    if any(not 0 <= one.maker <= threads for one in timers):
        raise ImageError(f"{who} has a POSIX timer that none of its threads can make")
    highest = (1 << 31) - 1 if features.timer_restore_ids() else _HIGHEST_ID
    if any(not 0 <= one.timer <= highest for one in timers):
        raise ImageError(f"{who} has a POSIX timer whose id is out of reach")
    if any(
        not 0 <= number < _MOST
        for one in timers
        for number in (one.interval_ns, one.left_ns, one.at_ns, one.rung, one.began_ns)
    ):
        raise ImageError(f"{who} has a POSIX timer of an impossible time")
    # The kernel takes no more of a clock's number than it has room for.
    if any(not -(1 << 31) <= one.clock < 1 << 31 for one in timers):
        raise ImageError(f"{who} has a POSIX timer of an impossible clock")
    if any(one.clock in _ALARM_CLOCKS for one in timers) and not bounding >> CAP_WAKE_ALARM & 1:
        raise UnsupportedResource(
            f"{who} has a timer that wakes the machine, which the new container may not do",
            hint="add CAP_WAKE_ALARM to process.capabilities.bounding of the bundle's config.json",
        )


def by_maker(timers: list[PosixTimer]) -> Iterator[tuple[int, int, list[PosixTimer]]]:
    """Yield timers in the order of their ids: the `maker` of some, the first id, and them."""
    next_id = 0
    for maker, some in groupby(timers, key=lambda one: one.maker):
        group = list(some)
        yield maker, next_id, group
        next_id = group[-1].timer + 1


def create_posix_timers(program: Program, timers: list[PosixTimer], next_id: int) -> None:
    """Make the timers, not armed yet, under the ids that the program knows.

    Lower ids than `next_id` are taken or have been.
    """
    restores_ids = features.timer_restore_ids()
    if restores_ids:
        syscalls.prctl(program, _PR_TIMER_CREATE_RESTORE_IDS, 1)
    for timer in timers:
        event = struct.pack("<Qiii", timer.value, timer.signal, timer.notify, timer.thread).ljust(
            64, b"\0"
        )
        wanted = struct.pack("<i", timer.timer)
        if not restores_ids:
            for passed in range(next_id, timer.timer):
                program.call(
                    SYS.TIMER_CREATE,
                    0,
                    struct.pack("<Qii", 0, 0, _SIGEV_NONE).ljust(64, b"\0"),
                    bytearray(4),
                )
                program.call(SYS.TIMER_DELETE, passed)
        program.call(SYS.TIMER_CREATE, timer.clock, event, bytearray(wanted))
        next_id = timer.timer + 1
    if restores_ids:
        syscalls.prctl(program, _PR_TIMER_CREATE_RESTORE_IDS, 0)


def arm(program: Program, intervals: list[IntervalTimer], timers: list[PosixTimer]) -> None:
    """Start all timers with the time that was left."""
    for interval in intervals:
        value = _ITIMERVAL.pack(
            *divmod(interval.interval_us, 1_000_000), *divmod(interval.left_us or 1, 1_000_000)
        )
        program.call(SYS.SETITIMER, interval.which, value, 0)
    for timer in timers:
        if timer.left_ns:
            # What has rung by then rings at once, and its signal tells how often.
            first = timer.began_ns if timer.at_ns else timer.left_ns
            set_posix_timer(program, timer, first, absolute=bool(timer.at_ns))


def set_posix_timer(program: Program, timer: PosixTimer, first: int, *, absolute: bool) -> None:
    """Start a timer that is to ring at some time, or after it, and then by its interval."""
    value = _ITIMERSPEC.pack(*divmod(timer.interval_ns, _SECOND), *divmod(first, _SECOND))
    program.call(SYS.TIMER_SETTIME, timer.timer, _TIMER_ABSTIME if absolute else 0, value, 0)
