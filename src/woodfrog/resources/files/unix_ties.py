"""What a unix socket is tied to, as a checkpoint finds it: its peer, and who waits to be accepted.

What the image could not tie again is refused here.
"""

import os
import socket

import msgspec

from woodfrog.errors import UnsupportedResource
from woodfrog.kernel.netlink.sock_diag import UnixSocket
from woodfrog.resources.files import unix_paths, unix_peers
from woodfrog.resources.files.world import World


class Ties(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of a `UnixSocketFile`; and whether its peer is `outside`, and has it as peer, too."""

    accepted: bool
    peer_name: bytes
    peer_closed: bool
    peer_file: int
    pair: int
    left: bool
    outside: bool
    mutual: bool


def pending(what: str, found: UnixSocket, world: World) -> list[int]:
    """Return the clients, by inode, that wait at a listener, and that the image can have."""
    clients = list(found.pending)
    if found.inode not in world.sockets.unix_unread:
        clients = [client for client in clients if _can_wait_again(client, world)]
    if len(clients) < len(found.pending) and not world.unix_close:
        why = world.sockets.unix_unreadable.get(found.inode, "come from outside")
        raise UnsupportedResource(
            f"{what} has connections that nobody has accepted, and that {why}: they cannot be"
            " saved yet",
            hint="--ext-unix-close restores it without them",
        )
    return clients


def _can_wait_again(client: int, world: World) -> bool:
    """Tell whether a client that nobody has accepted can be made again: it has sent nothing yet."""
    found = world.sockets.unix(client) if client in world.sockets.inside else None
    return found is not None and not found.backlog


def is_unaccepted(what: str, inode: int, world: World) -> bool:
    """Tell whether a socket waits to be accepted, and will do so again."""
    listener = world.sockets.waits_at(inode)
    if listener is None:
        return False
    if listener not in world.sockets.inside:
        if not world.unix_close:
            raise UnsupportedResource(
                f"{what} waits for a process outside the container to accept it",
                hint="--ext-unix-close restores it as closed by the other side",
            )
        return False
    return listener in world.sockets.unix_unread or _can_wait_again(inode, world)


def collect(what: str, found: UnixSocket, name: bytes, one: socket.socket, world: World) -> Ties:
    """Look for the peer of a socket that is bound to a name, or to none."""
    datagrams = found.type == socket.SOCK_DGRAM
    outside = bool(found.peer) and world.sockets.is_outside(found.inode)
    if outside and not world.unix_close:
        raise UnsupportedResource(
            f"{what} is connected to a process outside the container",
            hint="--ext-unix-close restores it as "
            + ("not connected" if datagrams else "closed by the other side"),
        )
    peer_name = unix_peers.name(one)
    if datagrams and found.peer and not outside:
        _refuse_lost_peer(what, peer_name, world.sockets.unix(found.peer), world)
    peer_closed = datagrams and bool(peer_name) and not found.peer
    peer_file = world.open_socket(found.peer) if datagrams and peer_name else None
    mutual = bool(found.peer) and not outside and _is_peer_of(found.inode, found.peer, world)
    pair = min(found.inode, found.peer) if mutual and found.peer != found.inode else 0
    left = False
    if datagrams and not outside:
        if name and peer_name:
            pair = 0  # they find each other by these
        elif found.peer and not (mutual or peer_name):
            pair = min(found.inode, found.peer)  # which has left it
    if datagrams and not (name or mutual) and (other_end := world.sockets.follower(found.inode)):
        pair, left = min(found.inode, other_end), True
        if peer_closed:
            raise UnsupportedResource(
                f"{what} has left its pair for {os.fsdecode(peer_name)}, which is closed;"
                " that cannot be saved yet"
            )
    return Ties(
        outside=outside,
        accepted=world.sockets.shares_name(found),
        peer_name=peer_name,
        peer_closed=peer_closed,
        peer_file=peer_file.number if peer_file else 0,
        mutual=mutual,
        pair=pair,
        left=left,
    )


def _is_peer_of(inode: int, peer: int, world: World) -> bool:
    found = world.sockets.unix(peer)
    return found is not None and found.peer == inode


def _refuse_lost_peer(what: str, peer_name: bytes, peer: UnixSocket, world: World) -> None:
    """Refuse a datagram socket whose peer could not be found by its name."""
    if peer_name and not _stands(peer, world) and world.sockets.has_namesake(peer, _stands, world):
        raise UnsupportedResource(
            f"{what} is connected to {os.fsdecode(peer_name)}, which is another socket's name now;"
            " that cannot be saved yet"
        )


def _stands(one: UnixSocket, world: World) -> bool:
    """Tell whether a socket is found by its name."""
    opened = world.open_socket(one.inode)
    if opened is None:
        return True
    return bool(unix_paths.bound_path(one.name.rstrip(b"\0"), opened.descriptor, world).mode)


def refuse_strangers(what: str, found: UnixSocket, name: bytes, ties: Ties, world: World) -> None:
    """Refuse datagrams that wait, where nobody can be made to have sent them."""
    if ties.peer_closed and world.sockets.is_taken(found.type, ties.peer_name):
        raise UnsupportedResource(
            f"{what} has datagrams of {os.fsdecode(ties.peer_name)}, which is closed, and whose"
            " name another has by now; that cannot be saved yet"
        )
    from_peer = name or ties.mutual or ties.left
    if found.type == socket.SOCK_DGRAM and ties.peer_name and not from_peer:
        raise UnsupportedResource(
            f"{what} has datagrams of another than its peer, which cannot be saved yet"
        )
