"""Who is told that a message has come into a POSIX message queue (mq_notify(3))."""

import re
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

import msgspec

from woodfrog.image.record import Part
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.remote.program import Program

if TYPE_CHECKING:
    from woodfrog.remote.held import HeldProcess

SIGEV_SIGNAL, SIGEV_NONE, SIGEV_THREAD = range(3)
SI_MESGQ = -3
COOKIE_BYTES = 32  # NOTIFY_COOKIE_LEN; the last one is the kernel's
_MOST_SIGNALS = 64
_NOTIFIED = rb"NOTIFY:(\d+) +SIGNO:(\d+) +NOTIFY_PID:([1-9]\d*)"
_SIGEVENT = struct.Struct("<Qii48x")  # sigev_value, sigev_signo, sigev_notify


class QueueNotice(Part, frozen=True):
    """A process that waits for one, by its descriptor: `how` is SIGEV_*, `value` comes with it.

    The C library starts a thread for one when a `cookie` comes by a `socket` of its own.
    """

    descriptor: int
    how: int
    signal: int
    value: int
    socket: int = -1
    cookie: bytes = b""

    @property
    def descriptors(self) -> set[int]:
        """Return those that the process must have for it."""
        return {self.descriptor} if self.socket < 0 else {self.descriptor, self.socket}

    @property
    def is_possible(self) -> bool:
        """Tell whether one from an image can be."""
        if self.how == SIGEV_THREAD:
            return self.socket >= 0 and len(self.cookie) == COOKIE_BYTES
        signal = 0 <= self.signal <= _MOST_SIGNALS and 0 <= self.value < 1 << 64
        return signal and self.how in (SIGEV_SIGNAL, SIGEV_NONE)


class Waiting(msgspec.Struct, frozen=True):
    """Who waits, by the id that we see, and what for, as far as the queue tells."""

    pid: int
    how: int
    signal: int


class Notices(Protocol):
    """Learns of who waits what no queue tells."""

    def of(self, held: "HeldProcess") -> list[QueueNotice]:
        """Return what a process waits for, once all queues have been looked at."""

    def caused(
        self, fd: int, name: bytes, waiting: Waiting
    ) -> AbstractContextManager[Callable[[], None]]:
        """Have it told by the queue, which is empty then, by what this gives; it waits anew after.

        Raises UnsupportedResource if it could not be.
        """


def waits(told: bytes) -> Waiting | None:
    """Return who waits, by what a queue reads; None if nobody does."""
    found = re.search(_NOTIFIED, told)
    if found is None:
        return None
    how, signal, pid = map(int, found.groups())
    return Waiting(pid, how, signal)


def register(program: Program, one: QueueNotice) -> None:
    """Have the process that runs the program wait."""
    value, signal = one.value, one.signal
    if one.how == SIGEV_THREAD:
        value, signal = program.address_of(one.cookie), one.socket
    event = _SIGEVENT.pack(value, signal, one.how)
    program.call(SYS.MQ_NOTIFY, one.descriptor, event)
