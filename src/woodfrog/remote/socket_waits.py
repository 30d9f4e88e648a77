"""Calls that wait at a socket for as long as its SO_RCVTIMEO or SO_SNDTIMEO says.

Such a call must be made again after a hold, and then waits the whole time again, unless the socket
has the time that was left while the call begins. Should we die in that moment, the socket keeps it.
"""

import socket
import struct
import time
from collections.abc import Iterable

import msgspec
from msgspec.structs import replace

from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.ptrace import Registers
from woodfrog.kernel.waiting import Waiting
from woodfrog.remote.descriptors import fetch

_TIMEVAL = struct.Struct("<2q")
_PATIENCE_S = 0.2
_CALLS = {
    **dict.fromkeys(
        (SYS.READ, SYS.READV, SYS.RECVFROM, SYS.RECVMSG, SYS.RECVMMSG, SYS.ACCEPT, SYS.ACCEPT4),
        socket.SO_RCVTIMEO,
    ),
    **dict.fromkeys(
        (SYS.WRITE, SYS.WRITEV, SYS.SENDTO, SYS.SENDMSG, SYS.SENDMMSG, SYS.CONNECT),
        socket.SO_SNDTIMEO,
    ),
}


class SocketWait(msgspec.Struct, frozen=True):
    """A task's wait at a descriptor of its process, with the microseconds that were left."""

    process: int
    task: int
    call: int
    descriptor: int
    left_us: int


class Resumed(msgspec.Struct, frozen=True):
    """A wait that went on after an earlier hold, at this time (nanoseconds of CLOCK_MONOTONIC)."""

    wait: SocketWait
    at: int


def socket_wait(
    process: int,
    task: int,
    registers: Registers,
    waiting: Waiting | None,
    resumed: Resumed | None,
) -> SocketWait | None:
    """Tell what a held task's call, interrupted by us, would still have waited for."""
    option = _CALLS.get(registers.orig_rax)
    if option is None or waiting is None or not waiting.since:
        return None
    descriptor = registers.rdi & 0xFFFFFFFF
    try:
        with socket.socket(fileno=fetch(process, descriptor)) as one:
            whole = _timeout_us(one, option)
    except OSError:
        return None
    left = max(1, whole - waiting.slept_ns // 1000)
    wait = SocketWait(process, task, registers.orig_rax, descriptor, left)
    # Unless it has run since, but for making the call again, it still is the same wait.
    if (
        resumed is not None
        and replace(resumed.wait, left_us=left) == wait
        and waiting.since - resumed.at < _PATIENCE_S * 1e9
    ):
        passed_us = (time.monotonic_ns() - resumed.at) // 1000
        wait = replace(wait, left_us=max(1, resumed.wait.left_us - passed_us))
    return wait if whole else None


def _timeout_us(one: socket.socket, option: int) -> int:
    seconds, microseconds = _TIMEVAL.unpack(one.getsockopt(socket.SOL_SOCKET, option, 16))
    return int(seconds * 1_000_000 + microseconds)


class Shortened:
    """Sockets that have the time left as their timeout, until `restore`."""

    def __init__(self, waits: Iterable[SocketWait]) -> None:
        self._waits: list[tuple[SocketWait, socket.socket, bytes]] = []
        for wait in waits:
            try:
                one = socket.socket(fileno=fetch(wait.process, wait.descriptor))
            except OSError:
                continue
            option = _CALLS[wait.call]
            whole = one.getsockopt(socket.SOL_SOCKET, option, 16)
            left = _TIMEVAL.pack(*divmod(wait.left_us, 1_000_000))
            one.setsockopt(socket.SOL_SOCKET, option, left)
            self._waits.append((wait, one, whole))

    def restore(self) -> None:
        """Set the whole timeouts again, as soon as the tasks, let go, wait in their calls."""
        deadline = time.monotonic() + _PATIENCE_S
        for wait, _, _ in self._waits:
            while not _is_in(wait) and time.monotonic() < deadline:
                time.sleep(50e-6)
        # In the opposite order: of two that share a socket, the first has seen the original.
        for wait, one, whole in reversed(self._waits):
            one.setsockopt(socket.SOL_SOCKET, _CALLS[wait.call], whole)
            one.close()


def _is_in(wait: SocketWait) -> bool:
    try:
        with open(f"/proc/{wait.process}/task/{wait.task}/syscall", "rb") as file:
            return file.read().split(None, 1)[0] == b"%d" % wait.call
    except (OSError, IndexError):
        return True  # it has ended
