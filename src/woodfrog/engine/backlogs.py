"""TCP connections within a held container that nobody has accepted yet: what waits in them."""

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack

import msgspec

from woodfrog.engine.connections import needs_nftables
from woodfrog.engine.sockets import Unread
from woodfrog.engine.world import World
from woodfrog.errors import UnsupportedResource
from woodfrog.kernel.netlink import nftables
from woodfrog.kernel.netlink.messages import socket_in
from woodfrog.kernel.netlink.sock_diag import TCP_CLOSE_WAIT, TCP_SYN_RECV, InetSocket
from woodfrog.resources.files import inet, tcp_backlog
from woodfrog.resources.files.base import FileRecord
from woodfrog.resources.files.inet import End
from woodfrog.resources.files.tcp_backlog import HungUp, Waiting

# States of an other end that sends no more: FIN_WAIT1, FIN_WAIT2, CLOSING.
_FINISHED = (4, 5, 11)


def look(world: World, *, own_network: bool) -> None:
    """Note what waits at the container's listeners, if all of it comes from inside.

    Nothing is touched. What holds data can be read only by accepting it: that is left to `read`,
    and possible only where nobody else is in the network namespace.
    """
    sockets = world.sockets
    noted: set[object] = set()
    for listeners in _sharing_ports(sockets.listeners()):
        group: list[Unread] = []
        for listener in listeners:
            found = [one for one in sockets.not_accepted(listener) if _key(one) not in noted]
            found = _in_the_queue_first(found, listener.receive_queue)
            queued = sum(one.state != TCP_SYN_RECV for one in found)
            noted |= {_key(one) for one in found}
            group.append(Unread(listener, found, queued))
        if not all(_is_whole(world, one) for one in group):
            continue
        if any(map(_has_data, group)):
            if not own_network:
                continue
            sockets.unread.append(group)
        for unread in group:
            sockets.backlogs[unread.listener.inode] = [_waiting(world, o) for o in unread.found]
            callers = (_caller(world, one) for one in unread.found)
            sockets.callers |= {one.inode for one in callers if one is not None}
    unread_all = (one for group in sockets.unread for unread in group for one in unread.found)
    if any(_caller(world, one) for one in unread_all):
        with needs_nftables():
            nftables.look(world.init)


def _sharing_ports(listeners: list[InetSocket]) -> list[list[InetSocket]]:
    """Put together those of which nothing but accepting tells what is in whose queue.

    They share a port, by SO_REUSEPORT, or since one of them listens at all addresses: that comes
    last, as it has what is left.
    """
    everywhere = {(one.family, one.local[1]) for one in listeners if not any(_address(one))}
    groups: dict[object, list[InetSocket]] = {}
    for one in sorted(listeners, key=lambda one: not any(_address(one))):
        port = one.family, one.local[1]
        key = port if port in everywhere else (*port, _address(one))
        groups.setdefault(key, []).append(one)
    return [*groups.values()]


def _address(listener: InetSocket) -> bytes:
    return End(*listener.local).unmapped().address


def _is_whole(world: World, unread: Unread) -> bool:
    """Tell whether all that is in a listener's queue is known, comes from inside, and has come."""
    return unread.queued == unread.listener.receive_queue and all(
        _is_inside(world, one) and _has_come(world, one) for one in unread.found
    )


def _has_come(world: World, one: InetSocket) -> bool:
    """Tell whether nothing is left to come from an end that is closed, and that nobody can read."""
    peer = world.sockets.peer_of(one)
    is_left = peer is not None and peer.is_orphan and peer.send_queue > 1  # its end counts, too
    return one.state == TCP_CLOSE_WAIT or not is_left


def _has_data(unread: Unread) -> bool:
    queued = unread.found[: unread.queued]
    return any(one.receive_queue > (one.state == TCP_CLOSE_WAIT) for one in queued)


def read(world: World, records: list[FileRecord]) -> None:
    """Read the data that wait, and put them into the listeners' records.

    The connections are accepted, and made anew at once, by both ends.
    """
    sockets = world.sockets
    sockets.forget_tcp()
    for group in sockets.unread:
        for unread in group:
            now = sockets.tcp(unread.listener.inode)
            if now is None or now.receive_queue != unread.listener.receive_queue:
                raise UnsupportedResource(
                    f"connections to port {unread.listener.local[1]} came while the container was"
                    " looked at",
                    hint="try again",
                )
        for number, waiting in _made_anew(world, group):
            at = next(at for at, one in enumerate(records) if one.id == number)
            records[at] = msgspec.structs.replace(records[at], waiting=waiting)


def _key(one: InetSocket) -> object:
    return one.local, one.remote


def _in_the_queue_first(found: list[InetSocket], length: int) -> list[InetSocket]:
    """Return what may be one listener's: as many as are in its queue, and those on the way to it.

    Listeners that share a port have what is there in any order.
    """
    queued = [one for one in found if one.state != TCP_SYN_RECV]
    return queued[:length] + [one for one in found if one.state == TCP_SYN_RECV]


def _is_inside(world: World, one: InetSocket) -> bool:
    """Tell whether the other end is the container's, or closed and was the container's."""
    peer = world.sockets.peer_of(one)
    if peer is not None and peer.inode:
        return peer.inode in world.sockets.inside
    return inet.is_loopback(one.remote[0]) or one.remote[0] == one.local[0]


def _waiting(world: World, one: InetSocket) -> Waiting:
    """Describe a connection in which no data have been received."""
    peer = world.sockets.peer_of(one)
    caller = world.open_socket(peer.inode) if peer is not None else None
    if peer is not None and caller:
        source, target = peer.local, peer.remote
    else:
        source, target = End(*one.remote).unmapped(), End(*one.local).unmapped()
    closed = peer is None or peer.state in _FINISHED or one.state == TCP_CLOSE_WAIT
    return Waiting(
        file=caller.number if caller else 0,
        source=source[0],
        port=source[1],
        target=target[0],
        target_port=target[1],
        data=b"",
        finished=closed,
    )


def _made_anew(world: World, group: list[Unread]) -> list[tuple[int, list[Waiting]]]:
    """Accept what is in the queues of listeners, and have them called again.

    Returns what waits at each, in its order, by the listener's file.
    """
    found = [one for unread in group for one in unread.found]
    known = [one for unread in group for one in world.sockets.backlogs[unread.listener.inode]]
    at = {_ends(one): number for number, one in enumerate(found)}
    callers = [_caller(world, one) for one in found]
    held = [nftables.Connection(one.local, one.remote) for one in callers if one is not None]
    taken: dict[int, Waiting] = {}
    received_to: dict[int, int] = {}
    hung_up: dict[int, HungUp] = {}
    answer: list[tuple[int, list[int]]] = []
    # Nobody may tell a caller that the end has gone that we have accepted.
    with ExitStack() as undo:
        if held:
            with needs_nftables():
                undo.enter_context(nftables.blocked(world.init, held))
        for unread in group:
            opened = world.open_socket(unread.listener.inode)
            assert opened is not None
            numbers = []
            with socket.socket(fileno=os.dup(opened.descriptor)) as one:
                for _ in range(unread.queued):
                    ends, data, urgent, end = tcp_backlog.take(one)
                    number = at[ends]
                    received_to[number] = end
                    numbers.append(number)
                    taken[number] = msgspec.structs.replace(known[number], data=data, urgent=urgent)
            answer.append((opened.number, numbers))
        for number, one_taken in taken.items():
            caller = callers[number]
            file = world.open_socket(caller.inode) if caller is not None else None
            if caller is not None and file is not None:
                local = End(*caller.local)
                hung_up[number] = HungUp(file.descriptor, local, received_to[number])
                data = one_taken.data + hung_up[number].unsent
                taken[number] = msgspec.structs.replace(one_taken, data=data)
    for number, called in taken.items():
        if number in hung_up:
            hung_up[number].call(called)
            continue
        family = socket.AF_INET if len(called.target) == 4 else socket.AF_INET6
        with socket_in(world.init, family, socket.SOCK_STREAM, 0) as ours:
            tcp_backlog.call_again_for_closed(ours, called)
    return [
        (file, [*(taken[n] for n in numbers), *_on_the_way(unread, known, at)])
        for unread, (file, numbers) in zip(group, answer, strict=True)
    ]


def _on_the_way(
    unread: Unread, known: list[Waiting], at: Mapping[tuple[End, End], int]
) -> Iterator[Waiting]:
    """Go through what is not in a listener's queue yet."""
    return (known[at[_ends(one)]] for one in unread.found[unread.queued :])


def _ends(one: InetSocket) -> tuple[End, End]:
    return End(*one.local).unmapped(), End(*one.remote).unmapped()


def _caller(world: World, waiting: InetSocket) -> InetSocket | None:
    """Return the other end, if it is not closed."""
    peer = world.sockets.peer_of(waiting)
    return peer if peer is not None and peer.inode else None
