"""System calls that wait for a time, and how to go on with the time that was left.

The kernel keeps the end of an interrupted wait in the task's restart block, which nobody can read
or write. So the time left is computed from when the task last ran.
"""

import struct
from collections.abc import Callable

import msgspec

from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.ptrace import Registers
from woodfrog.kernel.waiting import Waiting
from woodfrog.remote.registers import ERESTART_RESTARTBLOCK, ERESTARTNOHAND, made_again

_NS = 1_000_000_000
_TIMESPEC = struct.Struct("<2q")
_TIMER_ABSTIME = 1
_FUTEX_WAIT, _FUTEX_COMMANDS = 0, 0x7F
_RED_ZONE = 128

# Where each call takes its timeout: (register, whether as the address of a timespec).
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
    SYS.IO_URING_ENTER: ("r8", True),
}
# There it is in a struct io_uring_getevents_arg, with these flags set and not set.
_GETEVENTS, _EXT_ARG, _ABS_TIMER, _EXT_ARG_REG = 1 << 0, 1 << 3, 1 << 5, 1 << 6
_EXT_ARG_BYTES, _EXT_ARG_TIME = 24, 16
_EXT_ARG_PLACE = -32  # from where the time stands

# Where a sleep takes the address for the time that was left.
_REMAINING = {SYS.NANOSLEEP: "rsi", SYS.CLOCK_NANOSLEEP: "r10"}

Reader = Callable[[int, int], bytes]


class TimedCall(msgspec.Struct, frozen=True):
    """A wait: the call's number, and the nanoseconds that were left; 0 if it has no timeout that
    runs down, so that it is made again as it was."""

    number: int
    left_ns: int


def timed_call(registers: Registers, waiting: Waiting | None, read: Reader) -> TimedCall | None:
    """Tell what a held task waits for and how long it would have; None if it is not known.

    `registers` are those at the stop; `read` reads the task's memory.
    """
    if waiting is None:
        return None
    number = registers.orig_rax
    if number == SYS.RESTART_SYSCALL:
        number = restarted_call(waiting, registers)
    timeout = _timeout_ns(number, registers, read)
    if timeout is None:
        return TimedCall(number, 0)
    told = _REMAINING.get(number)
    if told and (address := getattr(registers, told)):
        # A sleep tells its caller how much was left, and the kernel has just written it there.
        left = _nanoseconds(read(address, _TIMESPEC.size))
    else:
        left = timeout - waiting.slept_ns
    return TimedCall(number, max(1, left))


def restarted_call(waiting: Waiting | None, registers: Registers) -> int:
    """Tell which call restart_syscall(2) goes on with, by where the task slept in the kernel."""
    channel = waiting.channel if waiting else ""
    if "nanosleep" in channel:
        # clock_nanosleep(clock, flags, request, remain) has small numbers where nanosleep() has an
        # address.
        return SYS.CLOCK_NANOSLEEP if registers.rdi < 4096 else SYS.NANOSLEEP
    if "futex" in channel:
        return SYS.FUTEX
    return SYS.POLL


def _timeout_ns(number: int, registers: Registers, read: Reader) -> int | None:
    if number == SYS.CLOCK_NANOSLEEP and registers.rsi & _TIMER_ABSTIME:
        return None
    if number == SYS.FUTEX and registers.rsi & _FUTEX_COMMANDS != _FUTEX_WAIT:
        return None  # the others' timeouts are absolute
    if number not in _ARGUMENT:
        return None
    name, by_address = _ARGUMENT[number]
    value: int = getattr(registers, name)
    if number == SYS.IO_URING_ENTER:
        value = _time_of_enter(registers, read)
    if not by_address:
        value &= 0xFFFFFFFF
        return None if value >> 31 else value * 1_000_000
    if not value:
        return None
    return _nanoseconds(read(value, _TIMESPEC.size))


def _time_of_enter(registers: Registers, read: Reader) -> int:
    """Return the address of the timeout that io_uring_enter(2) has, or 0."""
    flags = registers.r10 & (_GETEVENTS | _EXT_ARG | _ABS_TIMER | _EXT_ARG_REG)
    if flags != _GETEVENTS | _EXT_ARG or registers.r9 != _EXT_ARG_BYTES:
        return 0
    return int.from_bytes(read(registers.r8, _EXT_ARG_BYTES)[_EXT_ARG_TIME:], "little")


def _nanoseconds(timespec: bytes) -> int:
    seconds, nanoseconds = _TIMESPEC.unpack(timespec)
    return int(seconds * _NS + nanoseconds)


def with_time_left(registers: Registers, call: TimedCall, address: int) -> Registers:
    """Return registers with which the interrupted call is made again, with the time left.

    What `written` returns for `address` must be written.
    """
    again = made_again(registers)
    again.orig_rax = call.number
    if not call.left_ns:
        return again
    name, by_address = _ARGUMENT[call.number]
    if call.number == SYS.IO_URING_ENTER:
        address += _EXT_ARG_PLACE
    # Milliseconds are rounded up, as the kernel does: never wake too early.
    setattr(again, name, address if by_address else -(-call.left_ns // 1_000_000))
    return again


def place_for_time(registers: Registers) -> int:
    """Return where a struct timespec may stand until the call reads it: below the red zone."""
    return (registers.rsp - _RED_ZONE - _TIMESPEC.size) & -16


def packed_time(call: TimedCall) -> bytes:
    """Return the time left as a struct timespec."""
    return _TIMESPEC.pack(*divmod(call.left_ns, _NS))


def written(
    registers: Registers, call: TimedCall, address: int, read: Reader
) -> list[tuple[int, bytes]]:
    """Return what the call made again reads, and where: the time left, at `address`, and more."""
    pieces = [(address, packed_time(call))]
    if call.number == SYS.IO_URING_ENTER and call.left_ns:
        argument = read(registers.r8, _EXT_ARG_TIME) + struct.pack("<Q", address)
        pieces.append((address + _EXT_ARG_PLACE, argument))
    return pieces


def is_restartable(registers: Registers) -> bool:
    """Tell whether the kernel would go on with the call by its restart block.

    Or would, if the call had one: io_pgetevents(2) is made again with all of its time.
    """
    if registers.orig_rax == SYS.IO_PGETEVENTS:
        return -registers.result == ERESTARTNOHAND
    return -registers.result == ERESTART_RESTARTBLOCK
