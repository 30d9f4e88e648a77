"""Waits that are cut short go on with the time that was left."""

import struct
import time

import pytest
from msgspec.structs import astuple

from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.ptrace import Registers
from woodfrog.kernel.waiting import Waiting
from woodfrog.remote.registers import ERESTARTNOHAND
from woodfrog.remote.timed_calls import (
    TimedCall,
    is_restartable,
    packed_time,
    place_for_time,
    restarted_call,
    timed_call,
    with_time_left,
    written,
)

MS, S = 1_000_000, 1_000_000_000
WORD = (1 << 64) - 1
REQUEST, REMAIN, ARGUMENT = 0x5000, 0x6000, 0x6800
BLOCK, EINTR = -516, -4


def memory(address: int, length: int) -> bytes:
    """Play a task that asked for ten seconds, of which the kernel told it that six were left."""
    return {
        REQUEST: struct.pack("<2q", 10, 0),
        REMAIN: struct.pack("<2q", 6, 5),
        ARGUMENT: struct.pack("<QIIQ", 0x1234, 8, 0, REQUEST),
    }[address][:length]


def stopped(number: int, result: int = BLOCK, **arguments: int) -> Registers:
    """Return registers of a task that stopped in a call."""
    found = Registers(orig_rax=number, rax=result & WORD, rip=0x401002, rsp=0x7FFD_0123)
    for name, value in arguments.items():
        setattr(found, name, value & WORD)
    return found


def slept(number: int, nanoseconds: int | None, channel: str = "") -> Waiting:
    """Tell of a wait that began so long ago, or nobody knows when."""
    since = 0 if nanoseconds is None else time.monotonic_ns() - nanoseconds
    return Waiting(number, channel, since)


def left(registers: Registers, waiting: Waiting | None) -> TimedCall:
    """Return what is told, where something is."""
    found = timed_call(registers, waiting, memory)
    assert found is not None
    return found


# Each call with a timeout of ten seconds.
TEN_SECONDS = [
    (SYS.NANOSLEEP, {"rdi": REQUEST}, "rdi", True),
    (SYS.CLOCK_NANOSLEEP, {"rdi": 1, "rdx": REQUEST}, "rdx", True),
    (SYS.POLL, {"rdx": 10_000}, "rdx", False),
    (SYS.FUTEX, {"rsi": 128, "r10": REQUEST}, "r10", True),
    (SYS.EPOLL_WAIT, {"r10": 10_000}, "r10", False),
    (SYS.EPOLL_PWAIT, {"r10": 10_000}, "r10", False),
    (SYS.EPOLL_PWAIT2, {"r10": REQUEST}, "r10", True),
    (SYS.SEMTIMEDOP, {"r10": REQUEST}, "r10", True),
    (SYS.RT_SIGTIMEDWAIT, {"rdx": REQUEST}, "rdx", True),
    (SYS.IO_GETEVENTS, {"r8": REQUEST}, "r8", True),
    (SYS.IO_PGETEVENTS, {"r8": REQUEST}, "r8", True),
]


@pytest.mark.parametrize(("number", "arguments", "register", "by_address"), TEN_SECONDS)
def test_what_a_task_slept_is_taken_off(
    number: int, arguments: dict[str, int], register: str, by_address: bool
) -> None:
    registers = stopped(number, **arguments)
    call = left(registers, slept(number, 3 * S))
    assert call.number == number
    # What passes between the two looks at the clock is taken off, too.
    assert 6 * S < call.left_ns <= 7 * S


@pytest.mark.parametrize(("number", "arguments", "register", "by_address"), TEN_SECONDS)
def test_a_call_is_made_again_with_the_time_left(
    number: int, arguments: dict[str, int], register: str, by_address: bool
) -> None:
    registers = stopped(number, **arguments)
    again = with_time_left(registers, TimedCall(number, 2_500_000_001), 0x7000)
    # By the kernel, unless a signal is handled first: then it returns EINTR.
    assert (again.result, again.rip, again.orig_rax) == (-ERESTARTNOHAND, 0x401002, number)
    assert getattr(again, register) == (0x7000 if by_address else 2501)
    for name in {"rdi", "rsi", "rdx", "r10", "r8", "r9"} - {register}:
        assert getattr(again, name) == getattr(registers, name)


@pytest.mark.parametrize(("number", "arguments", "register", "by_address"), TEN_SECONDS)
def test_an_unknown_beginning_takes_nothing_off(
    number: int, arguments: dict[str, int], register: str, by_address: bool
) -> None:
    assert left(stopped(number, **arguments), slept(number, None)).left_ns == 10 * S


def test_a_wait_that_is_over_still_has_a_moment() -> None:
    # No time at all would mean another thing: see the next test.
    registers = stopped(SYS.POLL, rdx=10)
    assert astuple(left(registers, slept(SYS.POLL, S))) == (SYS.POLL, 1)
    assert with_time_left(registers, TimedCall(SYS.POLL, 1), 0).rdx == 1


def test_a_call_without_a_timeout_that_runs_down_is_made_again_as_it_was() -> None:
    registers = stopped(SYS.EPOLL_WAIT, EINTR, r10=-1)
    call = left(registers, slept(SYS.EPOLL_WAIT, S))
    assert astuple(call) == (SYS.EPOLL_WAIT, 0)
    again = with_time_left(registers, call, 0x7000)
    assert (again.orig_rax, again.r10, again.result) == (SYS.EPOLL_WAIT, WORD, -ERESTARTNOHAND)


@pytest.mark.parametrize(
    ("number", "arguments"),
    [
        (SYS.POLL, {"rdx": 0xFFFFFFFF}),
        (SYS.FUTEX, {"rsi": 0, "r10": 0}),
        (SYS.FUTEX, {"rsi": 128 | 9, "r10": REQUEST}),  # FUTEX_WAIT_BITSET: absolute
        (SYS.FUTEX, {"rsi": 6, "r10": REQUEST}),  # FUTEX_LOCK_PI: absolute
        (SYS.CLOCK_NANOSLEEP, {"rsi": 1, "rdx": REQUEST}),  # TIMER_ABSTIME
        (SYS.RT_SIGTIMEDWAIT, {"rdx": 0}),
        (SYS.SEMOP, {}),
        (SYS.IO_URING_ENTER, {}),
        (SYS.IO_URING_ENTER, {"r10": 1 | 8 | 32, "r8": ARGUMENT, "r9": 24}),  # absolute
        (SYS.READ, {"rdx": 10}),
    ],
)
def test_timeouts_that_do_not_run_down_are_known(number: int, arguments: dict[str, int]) -> None:
    assert astuple(left(stopped(number, EINTR, **arguments), slept(number, S))) == (number, 0)


@pytest.mark.parametrize(
    ("number", "arguments"),
    [
        (SYS.NANOSLEEP, {"rdi": REQUEST, "rsi": REMAIN}),
        (SYS.CLOCK_NANOSLEEP, {"rdi": 1, "rdx": REQUEST, "r10": REMAIN}),
    ],
)
def test_a_sleep_is_believed_what_it_says_was_left(number: int, arguments: dict[str, int]) -> None:
    call = left(stopped(number, **arguments), slept(number, S))
    assert astuple(call) == (number, 6 * S + 5)


def test_the_timeout_of_io_uring_enter_is_in_its_argument() -> None:
    registers = stopped(SYS.IO_URING_ENTER, EINTR, r10=1 | 8, r8=ARGUMENT, r9=24)
    call = left(registers, slept(SYS.IO_URING_ENTER, 3 * S))
    assert 6 * S < call.left_ns <= 7 * S
    pieces = dict(written(registers, call, 0x7000, memory))
    assert pieces[0x7000] == packed_time(call)
    again = with_time_left(registers, call, 0x7000)
    assert pieces[again.r8] == struct.pack("<QIIQ", 0x1234, 8, 0, 0x7000)
    assert not any(again.r8 < at < again.r8 + 24 for at in pieces)


def test_nothing_is_known_of_a_task_nobody_looked_at() -> None:
    assert timed_call(stopped(SYS.POLL, rdx=10), None, memory) is None


@pytest.mark.parametrize(
    ("channel", "arguments", "number"),
    [
        ("hrtimer_nanosleep", {"rdi": REQUEST}, SYS.NANOSLEEP),
        ("hrtimer_nanosleep", {"rdi": 1, "rdx": REQUEST}, SYS.CLOCK_NANOSLEEP),
        ("do_cpu_nanosleep", {"rdi": 2, "rdx": REQUEST}, SYS.CLOCK_NANOSLEEP),
        ("futex_wait_queue", {}, SYS.FUTEX),
        ("futex_do_wait", {}, SYS.FUTEX),
        ("do_sys_poll", {}, SYS.POLL),
        ("poll_schedule_timeout.constprop.0", {}, SYS.POLL),
        ("0", {}, SYS.POLL),
    ],
)
def test_a_restarted_call_is_known_by_where_it_sleeps(
    channel: str, arguments: dict[str, int], number: int
) -> None:
    registers = stopped(SYS.RESTART_SYSCALL, **arguments)
    assert restarted_call(slept(SYS.RESTART_SYSCALL, S, channel), registers) == number


def test_a_restarted_sleep_is_made_again_as_what_it_was() -> None:
    registers = stopped(SYS.RESTART_SYSCALL, rdi=REQUEST)
    call = left(registers, slept(SYS.RESTART_SYSCALL, 4 * S, "hrtimer_nanosleep"))
    assert call.number == SYS.NANOSLEEP
    assert 5 * S < call.left_ns <= 6 * S
    assert with_time_left(registers, call, 0x7000).orig_rax == SYS.NANOSLEEP


def test_a_wait_for_events_of_aio_with_a_mask_has_all_its_time_again_unless_we_see_to_it() -> None:
    assert is_restartable(stopped(SYS.IO_PGETEVENTS, -ERESTARTNOHAND))
    assert not is_restartable(stopped(SYS.PPOLL, -ERESTARTNOHAND))
    assert is_restartable(stopped(SYS.POLL, -516))


def test_the_place_for_a_time_is_below_the_red_zone() -> None:
    place = place_for_time(stopped(SYS.POLL))
    assert place % 16 == 0
    assert 0x7FFD_0123 - 128 - 16 - 16 < place <= 0x7FFD_0123 - 128 - 16


@pytest.mark.parametrize("nanoseconds", [0, 1, S - 1, S, 12_345_678_901, 10**18])
def test_a_time_is_packed_as_seconds_and_nanoseconds(nanoseconds: int) -> None:
    seconds, rest = struct.unpack("<2q", packed_time(TimedCall(SYS.POLL, nanoseconds)))
    assert seconds * S + rest == nanoseconds
    assert 0 <= rest < S


@pytest.mark.parametrize("result", [0, -4, -512, -513, -514, 516])
def test_only_a_restart_block_is_gone_on_with(result: int) -> None:
    assert not is_restartable(stopped(SYS.POLL, result))
    assert is_restartable(stopped(SYS.POLL, BLOCK))


@pytest.mark.parametrize(
    ("now", "is_the_same"),
    [
        (Waiting(SYS.POLL, "poll_schedule", 900, 5), True),  # frozen where it slept
        (Waiting(SYS.POLL, "do_freezer_trap", 900, 6), True),  # frozen on its way back
        (Waiting(SYS.POLL, "poll_schedule", 900, 6), False),  # it had woken, and slept anew
        (Waiting(SYS.POLL, "do_freezer_trap", 900, 7), False),
        (Waiting(SYS.POLL, "poll_schedule", 900, 4), False),
        (Waiting(SYS.EPOLL_WAIT, "poll_schedule", 900, 5), False),
    ],
)
def test_a_paused_wait_is_known_again(now: Waiting, is_the_same: bool) -> None:
    before = Waiting(SYS.POLL, "poll_schedule", 100, 5)
    found = now.as_it_was(before)
    assert (found.since, found.switches) == (100 if is_the_same else 900, now.switches)
    assert now.as_it_was(None) is now
