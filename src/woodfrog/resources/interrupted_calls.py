"""System calls that a thread was in, and how they go on with the time that was left.

The kernel keeps the end of an interrupted wait in the task's restart block, which nobody can read
or write. So the time left is computed from when the thread last ran, and in a new process a restart
block is made by having the kernel interrupt the same call with that time (`arm`).
"""

import struct
import time
from collections.abc import Callable

from woodfrog.image.record import Part
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.ptrace import Registers
from woodfrog.remote.registers import ERESTART_RESTARTBLOCK, issue_again
from woodfrog.remote.waiting import Waiting, scheduler_clock

_NS = 1_000_000_000
_TIMESPEC = struct.Struct("<2q")
_TIMER_ABSTIME = 1
_FUTEX_WAIT, _FUTEX_WAIT_BITSET, _FUTEX_COMMANDS = 0, 9, 0x7F



class InterruptedCall(Part, frozen=True):
    """A timed wait: the call's number, and the nanoseconds that were left."""

    number: int
    left_ns: int


Reader = Callable[[int, int], bytes]


def collect(
    registers: Registers, waiting: Waiting | None, reissued: bool, read: Reader, now: int
) -> InterruptedCall | None:
    """Tell what a held thread waits for, and how long it would have; None if it has no timeout.

    `read` reads the process's memory, `now` is the scheduler's clock at the hold.
    """
    if waiting is None:
        return None
    if reissued:
        number = registers.rax & 0xFFFFFFFF
    elif -registers.result == ERESTART_RESTARTBLOCK:
        number = registers.orig_rax
    else:
        return None
    if number == SYS.RESTART_SYSCALL:
        number = _by_channel(waiting.channel, registers)
    timeout = _timeout_ns(number, registers, read)
    if timeout is None:
        return None
    slept = max(0, now - waiting.since) if waiting.since else 0
    return InterruptedCall(number=number, left_ns=max(1, timeout - slept))


def _by_channel(channel: str, registers: Registers) -> int:
    if "nanosleep" in channel:
        # clock_nanosleep(clock, flags, request, remain) has small numbers where nanosleep() has an
        # address.
        return SYS.CLOCK_NANOSLEEP if registers.rdi < 4096 else SYS.NANOSLEEP
    if "futex" in channel:
        return SYS.FUTEX
    return SYS.POLL


def _timeout_ns(number: int, registers: Registers, read: Reader) -> int | None:
    """Return the timeout that the thread gave, if it is relative."""

    def timespec(address: int) -> int | None:
        if not address:
            return None
        seconds, nanoseconds = _TIMESPEC.unpack(read(address, _TIMESPEC.size))
        return int(seconds * _NS + nanoseconds)

    def milliseconds(register: int) -> int | None:
        value = register & 0xFFFFFFFF
        return None if value >> 31 else value * 1_000_000

    match number:
        case SYS.NANOSLEEP:
            return timespec(registers.rdi)
        case SYS.CLOCK_NANOSLEEP:
            return None if registers.rsi & _TIMER_ABSTIME else timespec(registers.rdx)
        case SYS.POLL:
            return milliseconds(registers.rdx)
        case SYS.FUTEX:
            if registers.rsi & _FUTEX_COMMANDS == _FUTEX_WAIT:
                return timespec(registers.r10)
        case SYS.EPOLL_WAIT | SYS.EPOLL_PWAIT:
            return milliseconds(registers.r10)
        case SYS.EPOLL_PWAIT2 | SYS.SEMTIMEDOP:
            return timespec(registers.r10)
        case SYS.RT_SIGTIMEDWAIT:
            return timespec(registers.rdx)
        case SYS.IO_GETEVENTS | SYS.IO_PGETEVENTS:
            return timespec(registers.r8)
    return None


# Where each call takes its timeout: (register, whether as an address of a timespec).
_ARGUMENT = {
    SYS.NANOSLEEP: ("rdi", True),
    SYS.CLOCK_NANOSLEEP: ("rdx", True),
    SYS.POLL: ("rdx", False),
    SYS.FUTEX: ("r10", True),
    SYS.EPOLL_WAIT: ("r10", False),
    SYS.EPOLL_PWAIT: ("r10", False),
    SYS.EPOLL_PWAIT2: ("r10", True),
    SYS.SEMTIMEDOP: ("r10", True),
    SYS.RT_SIGTIMEDWAIT: ("rdx", True),
    SYS.IO_GETEVENTS: ("r8", True),
    SYS.IO_PGETEVENTS: ("r8", True),
}


def known(call: InterruptedCall) -> bool:
    """Tell whether a call from an image is one that we can resume."""
    return call.number in _ARGUMENT


def with_time_left(registers: Registers, call: InterruptedCall, address: int) -> Registers:
    """Return registers that make the call with the time left, to be put at `address`.

    `registers` are those of the hold, or of the reissued call.
    """
    again = registers.copy()
    if registers.orig_rax == SYS.RESTART_SYSCALL or -registers.result == ERESTART_RESTARTBLOCK:
        again = issue_again(registers)
    again.rax = call.number
    name, by_address = _ARGUMENT[call.number]
    # Milliseconds are rounded up, as the kernel does: never wake too early.
    setattr(again, name, address if by_address else -(-call.left_ns // 1_000_000))
    return again


def packed_time(call: InterruptedCall) -> bytes:
    """Return the time left as a struct timespec."""
    return _TIMESPEC.pack(*divmod(call.left_ns, _NS))


def clock_now() -> int:
    """Return the scheduler's clock, after a short sleep so that it is up to date."""
    time.sleep(0)
    return scheduler_clock()
