"""What waits at a unix socket: data, in its pieces, and files in flight (unix(7), SCM_RIGHTS)."""

import array
import fcntl
import os
import select
import socket
import struct
import termios
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import msgspec
from msgspec.structs import replace

from woodfrog.errors import UnsupportedResource
from woodfrog.image.record import Part
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.netlink.sock_diag import TCP_LISTEN, UnixSocket
from woodfrog.remote.program import Program
from woodfrog.resources.files import socket_options
from woodfrog.resources.files.open_file import OpenFile
from woodfrog.resources.files.socket_options import SO_SNDBUFFORCE
from woodfrog.resources.files.world import World

CREDENTIALS = struct.Struct("<iII")  # struct ucred
_HEADER = struct.Struct("<QiI")  # struct cmsghdr
_SO_PEEK_OFF = 42
_SO_PASSPIDFD = 76
_SIOCATMARK = 0x8905
_LARGE_BUFFER = 1 << 26
_MOST_EMPTY = 64
_MOST_RIGHTS = 253  # SCM_MAX_FD
_READ_AT_ONCE = 1 << 20
# For files in flight, and what else comes with them (SO_PASSCRED and the like).
_ROOM_BESIDE = socket.CMSG_SPACE(_MOST_RIGHTS * 4) + 512


class Message(msgspec.Struct, frozen=True):
    """A piece that keeps its bounds, and descriptors of ours for the files that it carries.

    `sender` is the name of the socket that a datagram came from, if it had one; `author` are the
    process, user and group that sent it, as far as readers are told (SO_PASSCRED).
    """

    data: bytes
    descriptors: list[int]
    sender: bytes = b""
    author: tuple[int, int, int] | None = None


# What the closed end of a connection of packets gives.
_END = Message(b"", [])


class Waiting(msgspec.Struct, frozen=True):
    """All that waits at a socket; in a stream, `urgent` is where the byte by MSG_OOB is, or -1.

    `broken` if its peer was closed without having read all.
    """

    messages: list[Message]
    urgent: int
    broken: bool


class Rights(Part, frozen=True):
    """The files, by their ids, that the message with this number in a queue carries.

    `at_end`: they came with some later part of it, so that its last byte has them.
    """

    message: int
    files: list[int]
    at_end: bool


def peek(one: socket.socket, *, most: int = 0) -> list[Message]:
    """Read what waits at a socket and leave it there.

    If it has an error, `most` is how much waits: reading on would take the error.
    """
    messages: list[Message] = []
    empty = 0
    before = one.getsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF)
    undo = ExitStack()
    try:
        one.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, 0)
        undo.enter_context(_by_number(one))
        while True:
            try:
                message = _look(one, _READ_AT_ONCE)
            except OSError:
                break  # nothing more, or not connected: then nothing can wait
            if one.type == socket.SOCK_STREAM and not message.data:
                break  # the other end is closed
            messages.append(message)
            empty = empty + 1 if message == _END else 0
            if empty > _MOST_EMPTY:
                break  # likewise
            if most and sum(len(message.data) for message in messages) >= most:
                break
    except UnsupportedResource:
        close(messages)
        raise
    finally:
        undo.close()
        one.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, before)
    is_closed = one.type == socket.SOCK_SEQPACKET and empty > _MOST_EMPTY
    while is_closed and messages and messages[-1] == _END:
        # A closed end looks like empty messages without end.
        messages.pop()
    if one.type != socket.SOCK_STREAM:
        return messages
    return _joined(messages)


def collect(
    what: str, found: UnixSocket, one: socket.socket, seen: list[Message], *, is_peer_outside: bool
) -> Waiting:
    """Read what waits at a socket that the kernel's table has so, and leave it there.

    `seen` are the messages of one that was looked into before.
    """
    ready = socket_options.ready_for(one.fileno(), select.POLLOUT)
    broken = bool(ready & select.POLLERR)
    if broken and found.queued and found.type != socket.SOCK_STREAM:
        raise UnsupportedResource(
            f"{what} has an error that nobody has read yet, which cannot be saved"
        )
    messages, mark = list[Message](), -1
    if not (found.state == TCP_LISTEN or is_peer_outside or (broken and not found.queued)):
        if seen and found.type != socket.SOCK_STREAM:
            return Waiting(seen, mark, broken)
        with out_of_line(one):
            messages = peek(one, most=found.queued if broken else 0)
            close(messages)
            if found.type == socket.SOCK_STREAM:
                messages, mark = urgent(one, messages)
    return Waiting(messages, mark, broken)


@contextmanager
def _by_number(one: socket.socket) -> Iterator[None]:
    """Have us be told who has sent something by number, where readers get pidfds of them."""
    pidfds, numbers = (socket.SOL_SOCKET, _SO_PASSPIDFD), (socket.SOL_SOCKET, socket.SO_PASSCRED)
    try:
        told = one.getsockopt(*pidfds)
    except OSError:
        told = 0  # since Linux 6.5
    if not told:
        yield
        return
    before = one.getsockopt(*numbers)
    one.setsockopt(*pidfds, 0)
    one.setsockopt(*numbers, 1)
    try:
        yield
    finally:
        one.setsockopt(*numbers, before)
        one.setsockopt(*pidfds, 1)


def close(messages: list[Message]) -> None:
    """Close the descriptors of what was found."""
    for message in messages:
        for fd in message.descriptors:
            os.close(fd)


def _look(one: socket.socket, length: int) -> Message:
    flags = socket.MSG_PEEK | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    data, ancillary, told, address = one.recvmsg(length, _ROOM_BESIDE, flags)
    descriptors: list[int] = []
    author = None
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors += struct.unpack(f"<{len(content) // 4}i", content[: len(content) & -4])
        elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            pid, uid, gid = CREDENTIALS.unpack(content)
            author = (pid, uid, gid) if pid else None
    if told & socket.MSG_CTRUNC:
        for fd in descriptors:
            os.close(fd)
        raise UnsupportedResource("has more files in flight than we can have open")
    sender = b""
    if address and one.type == socket.SOCK_DGRAM:
        sender = address if isinstance(address, bytes) else os.fsencode(address)
    return Message(data, descriptors, sender, author)


def _joined(messages: list[Message]) -> list[Message]:
    """Make one piece of neighbours in a stream that carry no files, and are of one author."""
    joined: list[Message] = []
    for message in messages:
        last = joined[-1] if joined else None
        alike = last and not (message.descriptors or last.descriptors)
        if last and alike and message.author == last.author:
            joined[-1] = replace(last, data=last.data + message.data)
        else:
            joined.append(message)
    return joined


@contextmanager
def out_of_line(one: socket.socket) -> Iterator[None]:
    """Have urgent data told apart (MSG_OOB), also if the program gets them in line."""
    option = socket.SOL_SOCKET, socket.SO_OOBINLINE
    inline = one.type == socket.SOCK_STREAM and one.getsockopt(*option)
    if inline:
        one.setsockopt(*option, 0)
    try:
        yield
    finally:
        if inline:
            one.setsockopt(*option, 1)


def urgent(one: socket.socket, queue: list[Message]) -> tuple[list[Message], int]:
    """Return a stream's queue with the byte that was sent by MSG_OOB, and where that is, or -1.

    A look stops before it, and then shows it with what follows; if it is the first, it is passed
    over.
    """
    try:
        byte = one.recv(1, socket.MSG_OOB | socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        return queue, -1
    if any(message.descriptors for message in queue):
        raise UnsupportedResource(
            "has urgent data (MSG_OOB) and files in flight, which cannot be saved yet"
        )
    data = queue[0].data if queue else b""
    if _number(one.fileno(), _SIOCATMARK):
        return [Message(byte + data, [])], 0
    before = len(one.recv(len(data), socket.MSG_PEEK | socket.MSG_DONTWAIT))
    return queue, before


def are_whole(pieces: list[bytes], sender: int) -> bool:
    """Tell whether each piece of a stream, the queue of `sender`'s peer, was sent as one.

    Pieces end where files are in flight, but nothing tells where they begin. Queues take as much
    of the sender's buffer as they are divided: so the same is sent once more, to compare.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, _LARGE_BUFFER)
        for piece in pieces:
            ours.sendall(piece)
        return _taken(ours.fileno()) == _taken(sender)


def _taken(fd: int) -> int:
    return _number(fd, termios.TIOCOUTQ)


def waiting(one: socket.socket) -> int:
    """Return how many bytes wait at a stream; 0 for others."""
    return _number(one.fileno(), termios.FIONREAD) if one.type == socket.SOCK_STREAM else 0


def _number(fd: int, request: int) -> int:
    found = array.array("i", [0])
    fcntl.ioctl(fd, request, found)
    return found[0]


def send(
    program: Program,
    fd: int,
    data: bytes,
    *,
    files: list[int] | None = None,
    address: bytes = b"",
    how: int = 0,
    author: tuple[int, int, int] | None = None,
) -> None:
    """Send a message, perhaps with descriptors of the task, to an address, or by MSG_OOB.

    `author` are the sender's process, user and group, if they are to go with it.
    """
    if not files and author is None:
        flags = socket.MSG_DONTWAIT | how
        sent = program.call(SYS.SENDTO, fd, data, len(data), flags, address or 0, len(address))
        program.expect(sent, len(data))
        return
    beside = b""
    if author is not None:
        beside += _HEADER.pack(28, socket.SOL_SOCKET, socket.SCM_CREDENTIALS)
        beside += CREDENTIALS.pack(*author) + bytes(4)
    if files:
        beside += _HEADER.pack(16 + 4 * len(files), socket.SOL_SOCKET, socket.SCM_RIGHTS)
        beside += struct.pack(f"<{len(files)}i", *files)
    vector = struct.pack("<2Q", program.address_of(data), len(data))
    header = struct.pack(
        "<QIxxxxQQQQi",
        program.address_of(address) if address else 0,
        len(address),
        program.address_of(vector),
        1,
        program.address_of(beside),
        len(beside),
        0,
    )
    sent = program.call(SYS.SENDMSG, fd, header, socket.MSG_DONTWAIT)
    program.expect(sent, len(data))


def send_here(
    one: socket.socket,
    data: bytes,
    files: list[int],
    author: tuple[int, int, int] | None,
    how: int = 0,
) -> int:
    """Send a message by a socket of ours, with files of ours, in the name of somebody.

    If that process has ended, in the name of ours: nobody can be told by the id of one that has.
    """
    beside: list[tuple[int, int, bytes]] = []
    if files:
        content = struct.pack(f"<{len(files)}i", *files)
        beside.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, content))
    flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL | how
    for pid in (author[0], os.getpid()) if author else (0,):
        told = [] if author is None else [CREDENTIALS.pack(pid, *author[1:])]
        credentials = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, content) for content in told]
        with suppress(ProcessLookupError):
            return one.sendmsg([data], [*beside, *credentials], flags)
    raise AssertionError


def rights(file: OpenFile, queue: list[bytes], found: UnixSocket, world: World) -> list[Rights]:
    """Return which files are in flight with which messages of a queue."""
    at_end = False
    if file.in_flight and found.type == socket.SOCK_STREAM:
        sender = world.open_socket(found.peer)
        at_end = sender is not None and not are_whole(queue, sender.descriptor)
    return [
        Rights(message=number, files=[one.number for one in carried], at_end=at_end)
        for number, carried in file.in_flight.items()
    ]
