"""Clients that wait at a listening unix socket, and what they have sent, which nobody accepted yet.

No call gives the end that waits to anyone but accept(2), and a client connects but once. So to read
what waits, it is accepted, and then another socket takes the client's place in all processes.
"""

import socket
from typing import TYPE_CHECKING

from msgspec.structs import replace

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.image.record import Part
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.resources.files import unix_filling, unix_names, unix_peers, unix_queue
from woodfrog.resources.files.making import Maker, Making, needed
from woodfrog.resources.files.socket_options import SO_SNDBUFFORCE
from woodfrog.resources.files.unix_names import Name
from woodfrog.resources.files.unix_queue import Message, Rights
from woodfrog.resources.files.world import World

if TYPE_CHECKING:
    from woodfrog.resources.files.unix_socket import UnixSocketFile

_LARGE_BUFFER = 1 << 26
_PIECE = 512


class Arrived(Part, frozen=True):
    """What has come from a client that waits, as in a socket's `queue`; and who has connected it.

    `name` is that of one that is closed since.
    """

    queue: list[bytes]
    rights: list[Rights] = []
    urgent: int = -1
    authors: list[Maker | None] = []
    maker: Maker | None = None
    name: bytes = b""


def check(pending: list[int], arrived: list[Arrived]) -> None:
    """Check what an image says of a listener."""
    if arrived and len(arrived) != len(pending):
        raise ImageError("a listening unix socket has another number of clients than wait there")
    if not arrived and 0 in pending:
        raise ImageError("a listening unix socket is waited for by nobody")
    for one in arrived:
        data = one.queue[0] if one.queue else b""
        if one.urgent != -1 and not 0 <= one.urgent < len(data):
            raise ImageError("a unix socket has urgent data behind its data")
        if one.authors and len(one.authors) != len(one.queue):
            raise ImageError("a unix socket has another number of authors than of messages")
        for maker in (one.maker, *one.authors):
            unix_peers.check(maker)


def connect(
    making: Making,
    listener: "UnixSocketFile",
    client: "UnixSocketFile | None",
    arrived: Arrived | None,
) -> None:
    """Have a client connect, and send what it had sent; None: it is closed since."""
    program = making.program
    fd = -1
    if client is not None:
        fd = making.settle(making.files[client.id])
    elif arrived is not None:
        fd = making.settle(program.call(SYS.SOCKET, socket.AF_UNIX, listener.type, 0))
        if arrived.name:
            passing = Name(arrived.name, stands=arrived.name[:1] == b"\0")
            unix_names.bind(making, fd, passing)
    owner = making.owner(client.id) if client else None
    maker = arrived.maker if arrived else owner
    unix_names.connect_by(making, fd, listener.type, listener.own_name, maker)
    if arrived:
        _send(making, listener, client, arrived, fd)
    if client is None:
        syscalls.close(making.program, fd)


def _send(
    making: Making,
    listener: "UnixSocketFile",
    client: "UnixSocketFile | None",
    arrived: Arrived,
    fd: int,
) -> None:
    end = replace(
        listener,
        queue=arrived.queue,
        rights=arrived.rights,
        urgent=arrived.urgent,
        authors=arrived.authors,
        senders=[],
    )
    unix_filling.fill(making, end, fd, client)


# The same, at a checkpoint.


class Taken:
    """A connection that was accepted by us, and what is in it."""

    def __init__(self, one: socket.socket) -> None:
        self.one = one
        told = one.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, unix_queue.CREDENTIALS.size)
        self.author: tuple[int, int, int] = unix_queue.CREDENTIALS.unpack(told)
        # Who has sent something is noted before somebody accepts, whether or not it will be asked.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.messages: list[Message] = unix_queue.peek(one)
        self.urgent = -1
        if one.type == socket.SOCK_STREAM:
            self.messages, self.urgent = unix_queue.urgent(one, self.messages)
        self.name = unix_peers.name(one)

    def authors_seen(self) -> list[int]:
        """Return how the process that asks sees who has connected, and who has sent each message.

        To those of the container that have ended, only in there are left their ids.
        """
        credentials = unix_queue.CREDENTIALS
        told = self.one.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)
        messages = unix_queue.peek(self.one)
        if self.one.type == socket.SOCK_STREAM:
            messages, _ = unix_queue.urgent(self.one, messages)
        pids = [message.author[0] if message.author else 0 for message in messages]
        return [credentials.unpack(told)[0], *pids]

    def close(self) -> None:
        """Close it, and the files that it carries."""
        unix_queue.close(self.messages)
        self.one.close()

    def arrived(
        self, world: World, rights: list[Rights], seen: list[int], *, is_closed: bool
    ) -> Arrived:
        """Return it as an image has it; `seen` is what `authors_seen` gives inside."""
        maker = unix_peers.collect(self.one, world)
        if maker and not maker.pid:
            maker = replace(maker, pid=seen[0])
        authors = unix_peers.authors(self.messages, world)
        if len(seen) == len(authors) + 1:
            authors = [
                replace(one, pid=pid) if one and not one.pid else one
                for one, pid in zip(authors, seen[1:], strict=True)
            ]
        if not any(map(needed, authors)):
            authors = []
        return Arrived(
            queue=[message.data for message in self.messages],
            rights=rights,
            urgent=self.urgent,
            authors=authors,
            maker=maker,
            name=self.name if is_closed else b"",
        )

    def send_again(self, client: socket.socket, *, is_full: bool, at_end: bool) -> None:
        """Have a socket of ours send all of it, in the name of who had sent it."""
        usual = client.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 2
        client.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, _LARGE_BUFFER)
        for message in self.messages:
            data, descriptors = message.data, message.descriptors
            if self.urgent >= 0:
                self._send_piece(client, data[: self.urgent], message)
                self._send_piece(client, data[self.urgent :][:1], message, how=socket.MSG_OOB)
                self._send_piece(client, data[self.urgent + 1 :], message)
            elif client.type == socket.SOCK_STREAM and not descriptors:
                step = _PIECE if is_full else max(len(data), 1)
                for at in range(0, len(data), step):
                    self._send_piece(client, data[at : at + step], message)
            elif at_end and len(data) > 1:
                self._send_piece(client, data[:-1], message)
                self._send_piece(client, data[-1:], message, descriptors)
            else:
                self._send_piece(client, data, message, descriptors)
        client.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, usual)

    def _send_piece(
        self,
        client: socket.socket,
        data: bytes,
        message: Message,
        descriptors: list[int] | None = None,
        how: int = 0,
    ) -> None:
        if not data and client.type == socket.SOCK_STREAM:
            return
        sent = unix_queue.send_here(client, data, descriptors or [], message.author, how)
        if sent != len(data):
            raise UnsupportedResource("what waits at a unix socket could not be sent again")
