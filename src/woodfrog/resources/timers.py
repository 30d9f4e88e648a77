"""Interval timers (setitimer(2)) and POSIX timers (timer_create(2)) of a process."""

import re
import struct
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.image.record import Part
from woodfrog.kernel import features, syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.capability import CAP_WAKE_ALARM
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


def ask_posix_timers(
    program: Program, path: str, threads: Mapping[int, int]
) -> Callable[[], list[PosixTimer]]:
    """Add the calls that tell the POSIX timers of the process whose directory in /proc is `path`.

    `threads` leads from the ids of its threads as we see them to those that it sees.
    """
    try:
        with open(f"{path}/timers", encoding="ascii") as file:
            text = file.read()
    except FileNotFoundError:
        raise UnsupportedResource(
            "this kernel does not tell POSIX timers (CONFIG_CHECKPOINT_RESTORE is off)"
        ) from None
    entries = re.findall(_ENTRY, text)
    answers = [bytearray(_ITIMERSPEC.size) for _ in entries]
    for entry, answer in zip(entries, answers, strict=True):
        program.call(SYS.TIMER_GETTIME, int(entry[0]), answer)

    def answered() -> list[PosixTimer]:
        found = []
        for entry, answer in zip(entries, answers, strict=True):
            timer, signal, value, how, target, target_id, clock = entry
            notify = {"signal": _SIGEV_SIGNAL, "none": _SIGEV_NONE}.get(how, 2)
            thread = 0
            if target == "tid":
                thread = threads.get(int(target_id), 0)
                # Signals to a thread that has ended reach nobody.
                notify = notify | _SIGEV_THREAD_ID if thread else _SIGEV_NONE
            interval_s, interval_ns, left_s, left_ns = _ITIMERSPEC.unpack(answer)
            found.append(
                PosixTimer(
                    timer=int(timer),
                    clock=int(clock),
                    signal=int(signal),
                    value=int(value, 16),
                    notify=notify,
                    thread=thread,
                    interval_ns=interval_s * 1_000_000_000 + interval_ns,
                    left_ns=left_s * 1_000_000_000 + left_ns,
                    maker=_maker(int(clock), thread, list(threads.values())),
                )
            )
        found.sort(key=lambda one: one.timer)
        return found

    return answered


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


def without_rung(pending: list[bytes], intervals: list[IntervalTimer]) -> list[bytes]:
    """Leave out the queued signal of an interval timer that rings again as soon as it is armed."""
    rung = any(timer.which == 0 and not timer.left_us for timer in intervals)
    sigalrm, si_kernel = 14, 0x80
    return [
        info
        for info in pending
        if not rung or struct.unpack_from("<i4xi", info) != (sigalrm, si_kernel)
    ]


def refuse_wider(who: str, timers: list[PosixTimer], bounding: int, threads: int) -> None:
    """Refuse ids that are out of reach, and timers that the new container could not make."""
    if any(not 0 <= one.maker <= threads for one in timers):
        raise ImageError(f"{who} has a POSIX timer that none of its threads can make")
    if any(not 0 <= one.timer <= _HIGHEST_ID for one in timers):
        raise ImageError(f"{who} has a POSIX timer whose id is out of reach")
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
            value = _ITIMERSPEC.pack(
                *divmod(timer.interval_ns, 1_000_000_000), *divmod(timer.left_ns, 1_000_000_000)
            )
            program.call(SYS.TIMER_SETTIME, timer.timer, 0, value, 0)
