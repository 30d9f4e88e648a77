"""The sockets around those that are being collected, by what sock_diag(7) knows."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from socket import SOCK_DGRAM
from socket import socket as raw_socket

import msgspec

from woodfrog.engine.collecting_namespaces import Namespaces
from woodfrog.errors import UnsupportedResource
from woodfrog.kernel.netlink import packet_diag, sock_diag
from woodfrog.kernel.netlink.packet_diag import PacketInfo
from woodfrog.kernel.netlink.sock_diag import (
    NOT_ACCEPTED,
    TCP_LISTEN,
    InetSocket,
    UnixSocket,
)
from woodfrog.resources.files import inet, tcp_connection
from woodfrog.resources.files.tcp_backlog import Waiting
from woodfrog.resources.files.world import World

_OWN = 0


class Unread(msgspec.Struct, frozen=True):
    """What waits at a listener and holds data; the first `queued` of it are in its queue."""

    listener: InetSocket
    found: list[InetSocket]
    queued: int


class Sockets:
    """All sockets of the container's network namespaces, by inode; asked for when first needed."""

    def __init__(self, init: int, namespaces: Namespaces) -> None:
        self._init = init
        self._namespaces = namespaces
        self._unix: dict[int, UnixSocket] = {}
        self._unix_asked = False
        self._waiting: dict[int, int] | None = None
        self._names: Counter[object] | None = None
        self._followed: dict[int, int] | None = None
        self._packet: dict[int, PacketInfo] | None = None
        self._shutdowns: dict[int, dict[int, int]] = {}
        self._tcp: list[InetSocket] | None = None
        self._tcp_by_inode: dict[int, InetSocket] = {}
        # In each network namespace; 0: the container's own.
        self._tcp_by_ends: dict[int, dict[object, InetSocket]] = {}
        self._network_of: dict[int, int] = {}
        self.inside: set[int] = set()
        # What waits at listeners to be accepted, all of it from inside, by their inodes.
        self.backlogs: dict[int, list[Waiting]] = {}
        # Of listeners that share a port, all together.
        self.unread: list[list[Unread]] = []
        # Likewise, at unix sockets that hold data or have clients that are closed: which of these
        # can be read, and why others can't.
        self.unix_unread: set[int] = set()
        self.unix_unreadable: dict[int, str] = {}
        # Sockets inside whose other end waits there.
        self.callers: set[int] = set()

    def unix(self, inode: int) -> UnixSocket | None:
        """Return an AF_UNIX socket.

        One that was accepted from a client outside belongs to the client's network namespace, which
        may be ours.
        """
        if not self._unix_asked:
            self._unix_asked = True
            for pid in (os.getpid(), self._init):
                with sock_diag.diag_socket(pid) as diag:
                    self._unix.update((one.inode, one) for one in sock_diag.unix_sockets(diag))
            for _, descriptor in self._namespaces.descriptors("net"):
                with sock_diag.diag_socket_at(descriptor) as diag:
                    self._unix.update((one.inode, one) for one in sock_diag.unix_sockets(diag))
        return self._unix.get(inode)

    def name_of_file(self, inode: int) -> bytes:
        """Return the name of the socket that is bound to a file, if a process has it."""
        self.unix(0)
        for one in self._unix.values():
            if one.file and one.file[0] == inode & 0xFFFFFFFF and one.inode in self.inside:
                return one.name.rstrip(b"\0")
        return b""

    def waits_at(self, client: int) -> int | None:
        """Return the listening unix socket that has not accepted a client, both by inode."""
        self.unix(client)
        if self._waiting is None:
            self._waiting = {
                one: found.inode for found in self._unix.values() for one in found.pending
            }
        return self._waiting.get(client) if client else None

    def unix_waited_at(self) -> list[UnixSocket]:
        """Return the unix sockets at which clients wait that have sent data or are closed."""
        self.unix(0)
        return [
            found
            for inode in sorted(self.inside)
            if (found := self._unix.get(inode)) and any(map(self._is_in_use, found.pending))
        ]

    def _is_in_use(self, client: int) -> bool:
        found = self._unix.get(client)
        return not client or (found is not None and found.backlog > 0)

    def forget_unix(self) -> None:
        """Ask for the unix sockets anew when next needed."""
        self._unix_asked = False
        self._unix.clear()
        self._waiting = self._names = self._followed = None

    def _diags(self) -> Iterator[raw_socket]:
        """Open a sock_diag socket in each of the container's network namespaces."""
        with sock_diag.diag_socket(self._init) as diag:
            yield diag
        for _, descriptor in self._namespaces.descriptors("net"):
            with sock_diag.diag_socket_at(descriptor) as diag:
                yield diag

    def datagram_shutdown(self, inode: int, protocol: int) -> int:
        """Return which directions of a UDP socket are shut down, as far as the kernel tells."""
        if protocol not in self._shutdowns:
            found: dict[int, int] = {}
            for diag in self._diags():
                found |= sock_diag.datagram_shutdowns(diag, protocol)
            self._shutdowns[protocol] = found
        return self._shutdowns[protocol].get(inode, 0)

    def packet(self, inode: int) -> PacketInfo:
        """Return what is known of a packet socket."""
        if self._packet is None:
            try:
                self._packet = {}
                for diag in self._diags():
                    self._packet |= packet_diag.packet_sockets(diag)
            except FileNotFoundError:
                raise UnsupportedResource(
                    "is a packet socket, of which this kernel doesn't tell (CONFIG_PACKET_DIAG)"
                ) from None
        if inode not in self._packet:
            raise UnsupportedResource("is a packet socket in a network namespace of outside")
        return self._packet[inode]

    def shares_name(self, socket: UnixSocket) -> bool:
        """Tell whether another unix socket has the same name, as accepted ones have."""
        if self._names is None:
            self._names = Counter((one.type, one.name, one.file) for one in self._unix.values())
        return bool(socket.name) and self._names[socket.type, socket.name, socket.file] > 1

    def follower(self, inode: int) -> int:
        """Return what is connected to a datagram socket without a name, both by inode, or 0.

        Only the other end of a pair can be: it stays so when this one leaves it.
        """
        self.unix(inode)
        if self._followed is None:
            self._followed = {
                one.peer: one.inode
                for one in self._unix.values()
                if one.type == SOCK_DGRAM and one.peer and one.inode in self.inside
            }
        return self._followed.get(inode, 0)

    def has_namesake(
        self, socket: UnixSocket, stands: Callable[[UnixSocket, World], bool], world: World
    ) -> bool:
        """Tell whether another unix socket of the container had the same name, and lost it."""
        return any(
            one.inode != socket.inode
            and one.name == socket.name
            and (one.type == socket.type or one.file is not None)
            and one.inode in self.inside
            and not stands(one, world)
            for one in self._unix.values()
        )

    def is_taken(self, kind: int, name: bytes) -> bool:
        """Tell whether a unix socket of the container is bound to an abstract name."""
        return name[:1] == b"\0" and any(
            one.name == name and one.type == kind and one.inode in self.inside
            for one in self._unix.values()
        )

    def tcp(self, inode: int) -> InetSocket | None:
        """Return a TCP socket; None if it is neither bound nor connected."""
        if self._tcp is None:
            with sock_diag.diag_socket(self._init) as diag:
                self._tcp = sock_diag.tcp_sockets(diag)
            found = {_OWN: self._tcp}
            for number, descriptor in self._namespaces.descriptors("net"):
                with sock_diag.diag_socket_at(descriptor) as diag:
                    found[number] = sock_diag.tcp_sockets(diag)
            for number, there in found.items():
                self._tcp_by_inode |= {one.inode: one for one in there if one.inode}
                self._tcp_by_ends[number] = {_ends(one.local, one.remote): one for one in there}
                self._network_of |= {one.inode: number for one in there if one.inode}
        return self._tcp_by_inode.get(inode)

    def mptcp_listener(self, network: int, local: tuple[bytes, int]) -> InetSocket | None:
        """Return the kernel's own TCP socket that listens for one of MPTCP at an address."""
        self.tcp(0)
        return self._tcp_by_ends[network].get(_ends(local, (bytes(len(local[0])), 0)))

    def forget_tcp(self) -> None:
        """Ask for the TCP sockets anew when next needed."""
        self._tcp = None
        self._tcp_by_inode.clear()

    def leads_outside(self, socket: InetSocket) -> bool:
        """Tell whether a TCP connection's peer is another's than the container's.

        The peer of a connection that was closed at the other end may be an orphan, or gone.
        """
        peer = self.peer_of(socket) or self._peer_in_another(socket)
        if peer is None:
            return not inet.is_loopback(socket.remote[0]) and socket.remote[0] != socket.local[0]
        if peer.inode == 0:
            return not peer.is_orphan
        return peer.inode not in self.inside

    def peer_of(self, socket: InetSocket) -> InetSocket | None:
        """Return the other end of a TCP connection, if that is in the same network namespace."""
        there = self._tcp_by_ends[self._network_of.get(socket.inode, _OWN)]
        return there.get(_ends(socket.remote, socket.local))

    def _peer_in_another(self, socket: InetSocket) -> InetSocket | None:
        """Return the other end in another network namespace of the container, if only one is it."""
        if inet.is_loopback(socket.remote[0]):
            return None
        ends = _ends(socket.remote, socket.local)
        found = [there[ends] for there in self._tcp_by_ends.values() if ends in there]
        return found[0] if len(found) == 1 else None

    def listeners(self) -> list[InetSocket]:
        """Return the TCP sockets of the container that listen in its own network namespace."""
        found = (self.tcp(inode) for inode in sorted(self._not_unix()))
        return [
            one
            for one in found
            if one is not None and one.state == TCP_LISTEN and not self._network_of[one.inode]
        ]

    def _not_unix(self) -> set[int]:
        self.unix(0)
        return self.inside - self._unix.keys()

    def not_accepted(self, listener: InetSocket) -> list[InetSocket]:
        """Return the connections that may wait at a listener; others may have the same name."""
        address = inet.End(*listener.local).unmapped().address
        return [
            one
            for one in self._tcp or ()
            if one.inode == 0
            and one.family == listener.family
            and one.state in NOT_ACCEPTED
            and one.local[1] == listener.local[1]
            and (not any(address) or inet.End(*one.local).unmapped().address == address)
        ]

    def connections(self) -> Iterator[tuple[int, list[InetSocket]]]:
        """Yield the TCP connections that processes of the container hold, and have accepted.

        By their network namespaces: each a descriptor of ours, -1 for the container's own.
        """
        found = [self.tcp(inode) for inode in self._not_unix() - self.callers]
        for number, descriptor in ((_OWN, -1), *self._namespaces.descriptors("net")):
            there = [
                one
                for one in found
                if one is not None
                and one.state in tcp_connection.STATES
                and self._network_of[one.inode] == number
            ]
            if there:
                yield descriptor, there

    def is_outside(self, inode: int) -> bool:
        """Tell whether a unix socket is connected to one that no held process has."""
        found = self.unix(inode)
        return found is not None and bool(found.peer) and found.peer not in self.inside


def _ends(local: tuple[bytes, int], remote: tuple[bytes, int]) -> object:
    """Return what tells a connection; its ends may be of two families."""
    return inet.End(*local).unmapped(), inet.End(*remote).unmapped()
