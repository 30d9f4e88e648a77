"""Filling the queues of unix sockets again, each message by who had sent it."""

import socket
from functools import partial
from typing import TYPE_CHECKING

from woodfrog.errors import ImageError
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.remote.program import Program
from woodfrog.resources.files import socket_options, unix_names, unix_queue
from woodfrog.resources.files.making import Maker, Making
from woodfrog.resources.files.unix_names import Name

if TYPE_CHECKING:
    from woodfrog.resources.files.unix_socket import UnixSocketFile

_LARGE_BUFFER = 1 << 26
_PIECE = 512


def fill(
    making: Making,
    record: "UnixSocketFile",
    theirs: int,
    other: "UnixSocketFile | None",
) -> None:
    """Queue what waits at an end of a connection: it was sent by the other, `theirs`."""
    if not record.queue:
        return
    force = making.may_force_buffers
    _set_send_buffer(making.program, theirs, _LARGE_BUFFER, force=force)
    full = other is not None and not other.takes_more
    if record.urgent >= 0:
        _send_urgent(making, record, theirs)
    else:
        # Many small pieces take as much of the sender's buffer as the original ones did or
        # more: it stays full.
        most = _PIECE if record.type == socket.SOCK_STREAM and full else _LARGE_BUFFER
        for number in range(len(record.queue)):
            making.acting(
                _author(record, number),
                partial(_send, making, record, theirs, number, b"", most),
            )
    if other is None and record.senders and (name := record.senders[0]):
        # A datagram tells the name that its sender has by now, or had when it was closed.
        unix_names.bind(making, theirs, Name(name, stands=name[:1] == b"\0"))
    with socket.socket(socket.AF_UNIX, record.type) as fresh:
        usual = fresh.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 2
        _set_send_buffer(making.program, theirs, usual, force=force)


def requeue(making: Making, record: "UnixSocketFile") -> None:
    """Queue datagrams at a socket that has only a name of its own, each by its sender.

    A sender that the image lacks is there for the moment.
    """
    passing: dict[bytes, int] = {}
    for number in range(len(record.queue)):
        name = record.senders[number] if record.senders else b""
        saved = unix_names.unfinished(making).senders.get(name)
        former = making.shared(("former unix socket", name)) if name else None
        if former is not None:
            sender = former
        elif saved is not None:
            sender = making.files[saved]
        else:
            if name not in passing:
                made = making.program.call(SYS.SOCKET, socket.AF_UNIX, record.type, 0)
                # Others may act in between.
                passing[name] = making.settle(made) if record.authors else made
                force = making.may_force_buffers
                _set_send_buffer(making.program, passing[name], _LARGE_BUFFER, force=force)
                if name:
                    passing_name = Name(name, stands=name[:1] == b"\0")
                    unix_names.bind(making, passing[name], passing_name)
            sender = passing[name]
        _requeue(making, record, sender, number)
    for sender in passing.values():
        syscalls.close(making.program, sender)


def _requeue(making: Making, record: "UnixSocketFile", sender: int, number: int) -> None:
    def send() -> None:
        with unix_names.leading(making, record.own_name) as address:
            _send(making, record, sender, number, address)

    making.acting(_author(record, number), send)


def _author(record: "UnixSocketFile", number: int) -> Maker | None:
    """Return who must send a message of the queue, None if anybody may."""
    return record.authors[number] if record.authors else None


def _send_urgent(making: Making, record: "UnixSocketFile", sender: int) -> None:
    """Send a stream with the byte that is out of band in its place."""
    if len(record.queue) != 1 or record.type != socket.SOCK_STREAM:
        raise ImageError("a unix socket has urgent data in an impossible place")
    data, at, program = record.queue[0], record.urgent, making.program
    if at:
        unix_queue.send(program, sender, data[:at])
    unix_queue.send(program, sender, data[at : at + 1], how=socket.MSG_OOB)
    if data[at + 1 :]:
        unix_queue.send(program, sender, data[at + 1 :])


def _send(
    making: Making,
    record: "UnixSocketFile",
    sender: int,
    number: int,
    address: bytes,
    most: int = _LARGE_BUFFER,
) -> None:
    """Send a message of the queue, with the files that are in flight with it.

    One that has none goes in pieces of at most so many bytes.
    """
    program, data = making.program, record.queue[number]
    author = record.authors[number] if record.authors else None
    told = (author.pid or making.spare_pid, author.uid, author.gid) if author else None
    carried: list[int] = []
    for one in record.rights:
        if one.message == number:
            carried = [making.files[file] for file in one.files]
            if one.at_end and len(data) > 1:
                unix_queue.send(program, sender, data[:-1], author=told)
                data = data[-1:]
    for at in range(0, len(data) if not carried else 0, most) or [0]:
        piece = data if carried else data[at : at + most]
        unix_queue.send(program, sender, piece, files=carried, address=address, author=told)


def _set_send_buffer(program: Program, fd: int, size: int, *, force: bool) -> None:
    socket_options.set_buffer(program, fd, socket.SO_SNDBUF, size, force=force)
