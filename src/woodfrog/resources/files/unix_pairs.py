"""Connected unix sockets, made again: both ends at once, each with what waits at it."""

import socket
from functools import partial
from typing import TYPE_CHECKING

from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.resources.files import unix_filling, unix_names, unix_peers
from woodfrog.resources.files.making import Making
from woodfrog.resources.files.unix_names import Name

if TYPE_CHECKING:
    from woodfrog.resources.files.unix_socket import UnixSocketFile

_NOWHERE = bytes(16)  # a struct sockaddr of AF_UNSPEC


def restore_end(making: Making, record: "UnixSocketFile") -> int:
    """Make this end of a connection, or take it if the other end was made before."""
    key = ("unix", record.pair)
    waiting = making.shared(key) if record.pair else None
    if waiting is not None:
        making.share(key, None)
        return _join(making, record, *waiting)
    ours, theirs = _connected(making, record)
    if record.pair:
        # All else follows when the other end is known.
        making.share(key, (theirs, ours, record))
        return ours
    if record.rights or record.authors:
        making.share(("unix peer", record.id), making.spare(theirs))
        unix_names.unfinished(making).fills.append(partial(_finish_late, record=record))
    else:
        _finish(making, record, ours, theirs)
        syscalls.close(making.program, theirs)
    return ours


def _connected(making: Making, record: "UnixSocketFile") -> tuple[int, int]:
    """Make both ends, with their names, as far as these are the container's own."""
    name = record.own_name
    other_end = record.other_end(making)
    if other_end and other_end.name == record.peer_name:
        peer = other_end.own_name
    else:
        peer = record.place_of(making, record.peer_name)
    if not record.pair:
        peer = _passing_name(making, record, record.peer_name, is_server=not record.accepted)
        if record.is_named_by_others:
            name = _passing_name(making, record, record.name, is_server=True)
    if record.type == socket.SOCK_DGRAM or not (name.name or peer.name):
        return unix_peers.pair(making, record.type, record.peer)
    other = other_end.peer if other_end else None
    if name.name and (record.accepted or not peer.name):
        client, server = unix_names.connect(
            making, record.type, client=peer, server=name, listens=other, connects=record.peer
        )
        return server, client
    # If neither is known to be the accepted end, it makes no difference.
    return unix_names.connect(
        making, record.type, client=name, server=peer, listens=record.peer, connects=other
    )


def _passing_name(
    making: Making, record: "UnixSocketFile", name: bytes, *, is_server: bool
) -> Name:
    """Return a name for what is closed at once: nobody may be displaced for it."""
    known = record.place_of(making, name)
    if is_server and making.shared(unix_names.listener(making, record.type, known)) is not None:
        return known
    return Name(b"" if name[:1] == b"\0" else name, stands=False)


def _finish_late(making: Making, record: "UnixSocketFile") -> None:
    """Finish an end whose other end is not saved, when all files stand, and can be sent."""
    theirs = making.shared(("unix peer", record.id))
    _finish(making, record, making.files[record.id], theirs)


def _finish(making: Making, record: "UnixSocketFile", ours: int, theirs: int) -> None:
    unix_filling.fill(making, record, theirs, None)
    if record.broken:
        _send_into_the_void(making, ours)
    record.finish(making, ours)
    _bind_datagrams(making, record, ours)


def _join(
    making: Making, record: "UnixSocketFile", ours: int, theirs: int, other: "UnixSocketFile"
) -> int:
    """Complete a pair whose other end is `other`."""
    if record.rights or other.rights or record.authors or other.authors:

        def finish(making: Making) -> None:
            files = making.files
            _finish_both(making, (files[record.id], record), (files[other.id], other))

        unix_names.unfinished(making).fills.append(finish)
    else:
        _finish_both(making, (ours, record), (theirs, other))
    return ours


def _finish_both(
    making: Making, one: tuple[int, "UnixSocketFile"], other: tuple[int, "UnixSocketFile"]
) -> None:
    # Who leaves loses what has come, but not what it has sent.
    for end, peer in sorted(((one, other), (other, one)), key=lambda both: both[0][1].left):
        (fd, record), (peer_fd, peer_record) = end, peer
        if record.left:
            _leave(making, record, fd, peer_fd, peer_record)
        unix_filling.fill(making, record, peer_fd, peer_record)
    for fd, record in (one, other):
        record.finish(making, fd)
        _bind_datagrams(making, record, fd)


def _leave(
    making: Making, record: "UnixSocketFile", fd: int, peer_fd: int, peer: "UnixSocketFile"
) -> None:
    """Be connected to nothing, and when all stand to another than the pair's other end."""
    if peer.broken:
        # Its error tells that what it had sent was thrown away.
        _send_into_the_void(making, peer_fd)
    making.program.call(SYS.CONNECT, fd, _NOWHERE, len(_NOWHERE))
    if record.peer_name and not record.reset:
        to = record.place_of(making, record.peer_name, record.peer_file)
        unix_names.unfinished(making).datagrams.append((record.id, record.name, to))


def _send_into_the_void(making: Making, fd: int) -> None:
    """Send what its peer is closed without having read."""
    making.program.call(SYS.SENDTO, fd, b"-", 1, socket.MSG_DONTWAIT, 0, 0)


def _bind_datagrams(making: Making, record: "UnixSocketFile", fd: int) -> None:
    """Give its name to one of a pair that was not made by connecting."""
    if record.type == socket.SOCK_DGRAM and record.name:
        unix_names.bind(making, fd, record.own_name)
