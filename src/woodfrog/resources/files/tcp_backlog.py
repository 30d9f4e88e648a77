"""TCP connections within the container that wait at a listener, which nobody has accepted yet.

No call gives the end that waits to anyone but accept(2). So such a connection is made anew, by its
other end connecting once more and sending again all that has not been received.
"""

import errno
import os
import select
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from woodfrog.errors import ImageError
from woodfrog.image.record import Part
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.remote.program import Program
from woodfrog.resources.files import inet, socket_options, tcp_connection
from woodfrog.resources.files.inet import End
from woodfrog.resources.files.making import Making

_ROOM = 1 << 20
_PIECE = 1 << 16
# Within the container, a connection stands before connect(2) returns; but who knows the load.
_CONNECTING_S = 5
_TIMEOUT = struct.pack("<2q", _CONNECTING_S, 0)
_SHUT_WR = 1
_UNSPECIFIED = struct.pack("<H14x", socket.AF_UNSPEC)


class Waiting(Part, frozen=True):
    """A connection that waits: its other end, and what that has sent.

    `file` is the other end's id, or 0 if that is closed; then `source` and `port` are where it was.
    `target` is the address that it has connected to, and `finished` tells that it sends no more.
    """

    file: int
    source: bytes
    port: int
    target: bytes
    target_port: int
    data: bytes
    finished: bool
    urgent: int = -1  # which byte of the data is (MSG_OOB)


def moved(waiting: Waiting, moves: Mapping[bytes, bytes]) -> Waiting:
    """Return a connection of a container that has other addresses."""
    return msgspec.structs.replace(
        waiting,
        source=inet.move(waiting.source, moves),
        target=inet.move(waiting.target, moves),
    )


def check(callers: Iterable[int], queues: Iterable[list[Waiting]]) -> None:
    """Check that each socket that calls does so once, and that all that wait are sound."""
    called = [one for queue in queues for one in queue]
    for one in called:
        family = socket.AF_INET if len(one.target) == 4 else socket.AF_INET6
        inet.check(family, End(one.target, one.target_port), End(one.source, one.port))
    if sorted(callers) != sorted(one.file for one in called if one.file):
        raise ImageError("the image has TCP connections that wait for nobody")


def begin(program: Program, fd: int, local: End, family: int) -> None:
    """Give the other end its name, also if another connection of the container has that port."""
    tcp_connection.set_repair(program, fd, on=True)
    address = local.packed(family)
    program.may_fail(program.call(SYS.BIND, fd, address, len(address)))
    tcp_connection.set_repair(program, fd, on=False)


def call(making: Making, fd: int, family: int, waiting: Waiting) -> int:
    """Connect the other end, in the root stub, and send what had been sent; returns that one."""
    program = making.program
    general = socket.SOL_SOCKET
    program.call(SYS.SETSOCKOPT, fd, general, socket.SO_SNDTIMEO, _TIMEOUT, len(_TIMEOUT))
    force = making.may_force_buffers
    room = 2 * len(waiting.data) + _ROOM
    socket_options.set_buffer(program, fd, socket.SO_SNDBUF, room, force=force)
    address = End(waiting.target, waiting.target_port).packed(family)
    program.call(SYS.CONNECT, fd, address, len(address))
    for piece, flags in _pieces(waiting):
        if not making.has_room(len(piece)):
            fd = making.settle(fd)
            program = making.program
        sent = program.call(SYS.SENDTO, fd, piece, len(piece), flags, 0, 0)
        program.expect(sent, len(piece))
    if waiting.finished:
        program.call(SYS.SHUTDOWN, fd, _SHUT_WR)
    program.call(SYS.SETSOCKOPT, fd, general, socket.SO_SNDTIMEO, bytes(16), 16)
    with socket.socket(family, socket.SOCK_STREAM) as fresh:
        usual = fresh.getsockopt(general, socket.SO_SNDBUF) // 2
    socket_options.set_buffer(program, fd, socket.SO_SNDBUF, usual, force=force)
    program.call(SYS.SETSOCKOPT, fd, general, socket_options.SO_BUF_LOCK, bytes(4), 4)
    return fd


def _pieces(waiting: Waiting) -> Iterator[tuple[bytes, int]]:
    """Yield what is sent at once, and how."""
    at = waiting.urgent
    parts = [(waiting.data, 0)]
    if at >= 0:
        urgent = waiting.data[at : at + 1], socket.MSG_OOB
        parts = [(waiting.data[:at], 0), urgent, (waiting.data[at + 1 :], 0)]
    for data, flags in parts:
        for start in range(0, len(data), _PIECE):
            yield data[start : start + _PIECE], flags | socket.MSG_NOSIGNAL


def call_for_closed(making: Making, waiting: Waiting) -> None:
    """Likewise, for one whose other end is closed since."""
    family = socket.AF_INET if len(waiting.target) == 4 else socket.AF_INET6
    program = making.program
    fd: int = program.call(SYS.SOCKET, family, socket.SOCK_STREAM, 0)
    begin(program, fd, End(waiting.source, waiting.port), family)
    fd = call(making, fd, family, waiting)
    syscalls.close(making.program, fd)


# The same, at a checkpoint: to read what waits, it must be accepted; so it is made anew at once.


def take(listener: socket.socket) -> tuple[tuple[End, End], bytes, int, int]:
    """Accept a connection that waits, and end it silently.

    Returns its ends, ours first, what came, which byte of that is urgent, or -1, and where it ends.
    """
    accepted, name = listener.accept()
    with accepted:
        tcp_connection.begin_repair(accepted)
        ends = inet.end(accepted.getsockname()).unmapped(), inet.end(name).unmapped()
        return ends, *tcp_connection.received(accepted)


class HungUp:
    """An other end that is connected no more, for a moment in which nothing comes for it."""

    def __init__(self, descriptor: int, local: End, received_to: int) -> None:
        """Of what it has sent, the peer has got all up to a sequence number."""
        self._one = one = socket.socket(fileno=os.dup(descriptor))
        self._local = local
        self._kept = {
            name: one.getsockopt(socket.SOL_SOCKET, name, 16)
            for name in (socket.SO_REUSEADDR, socket.SO_SNDTIMEO, socket_options.SO_BUF_LOCK)
        }
        self._size = one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        tcp_connection.begin_repair(one)
        self.unsent = tcp_connection.to_be_sent(one, received_to)
        HERE.call(SYS.CONNECT, descriptor, _UNSPECIFIED, len(_UNSPECIFIED))
        one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # that it was ended

    def call(self, waiting: Waiting) -> None:
        """Connect it once more."""
        with self._one as one:
            _connect(one, self._local, waiting)
            one.setsockopt(socket.SOL_SOCKET, socket_options.SO_SNDBUFFORCE, self._size // 2)
            for name, value in self._kept.items():
                one.setsockopt(socket.SOL_SOCKET, name, value)


def call_again_for_closed(one: socket.socket, waiting: Waiting) -> None:
    """Have a socket of ours, in the container's network namespace, take the place of a closed one.

    Where that was may not be free; another port of its address will do.
    """
    tcp_connection.begin_repair(one)
    _connect(one, End(waiting.source, 0), waiting)


def _connect(one: socket.socket, local: End, waiting: Waiting) -> None:
    """Bind a socket under repair, connect it, and send."""
    general = socket.SOL_SOCKET
    address = local.packed(one.family)
    try:
        HERE.call(SYS.BIND, one.fileno(), address, len(address))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # The program itself has bound it, and that lasts.
    tcp_connection.end_repair(one)
    one.setsockopt(general, socket.SO_SNDTIMEO, _TIMEOUT)
    one.setsockopt(general, socket_options.SO_SNDBUFFORCE, 2 * len(waiting.data) + _ROOM)
    address = End(waiting.target, waiting.target_port).packed(one.family)
    try:
        HERE.call(SYS.CONNECT, one.fileno(), address, len(address))
    except OSError as error:
        if error.errno != errno.EINPROGRESS:
            raise
        poll = select.poll()
        poll.register(one.fileno(), select.POLLOUT)
        poll.poll(_CONNECTING_S * 1000)
    for piece, flags in _pieces(waiting):
        at = 0
        while at < len(piece):
            at += one.send(piece[at:], flags)
    if waiting.finished:
        one.shutdown(socket.SHUT_WR)
