"""udp(7), udplite(7), raw(7) and icmp(7) sockets: those of the internet without connections."""

import os
import select
import socket
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import ClassVar, Self

import msgspec

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.resources.files import (
    anycast,
    corked,
    icmp_errors,
    inet,
    multicast,
    port_sharing,
    socket_filter,
    socket_options,
    udp_queue,
)
from woodfrog.resources.files.anycast import Anycast
from woodfrog.resources.files.base import Row, set_flags
from woodfrog.resources.files.corked import Corked
from woodfrog.resources.files.icmp_errors import Pending
from woodfrog.resources.files.inet import End
from woodfrog.resources.files.making import Making
from woodfrog.resources.files.multicast import Membership
from woodfrog.resources.files.open_file import OpenFile
from woodfrog.resources.files.owned import Socket, owner_of
from woodfrog.resources.files.socket_filter import SocketFilter
from woodfrog.resources.files.socket_option_table import (
    BOUND_TO_DEVICE,
    CAP_NET_RAW,
    IPPROTO_UDPLITE,
)
from woodfrog.resources.files.socket_options import Option
from woodfrog.resources.files.udp_queue import Datagram
from woodfrog.resources.files.world import World

_KINDS = frozenset(
    (
        (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
        (socket.SOCK_DGRAM, IPPROTO_UDPLITE),
        (socket.SOCK_DGRAM, socket.IPPROTO_ICMP),
        (socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6),
    )
)
_HOLDING_BACK = (socket.IPPROTO_UDP, IPPROTO_UDPLITE)
_REUSE_ADDRESS, _REUSE_PORT = (socket.SOL_SOCKET, socket.SO_REUSEADDR), (socket.SOL_SOCKET, 15)


class InetDatagramSocket(Socket, frozen=True, tag="inet-datagram-socket"):
    """A UDP, ICMP or raw socket. `peer` is empty unless it is connected."""

    row: ClassVar[Row] = Row(
        called="UDP, UDP-Lite, ICMP and raw sockets",
        kept=(
            "addresses, all options, multicast and anycast groups, filters",
            "what waits at UDP sockets and what they hold back (UDP_CORK)",
            "an ICMP socket's first answer",
            "errors that wait, with all that is told of them (IP_RECVERR)",
        ),
        refused=(
            "what a raw socket holds back",
            "notifications (MSG_ZEROCOPY) that are unread or to come",
            "tunnels of the kernel's (UDP_ENCAP), IPV6_ROUTER_ALERT, eBPF",
        ),
    )
    may_be_replaced: ClassVar[bool] = True
    family: int
    type: int
    protocol: int
    local: bytes
    port: int
    peer: bytes
    peer_port: int
    queue: list[Datagram]
    options: list[Option]
    filter: SocketFilter | None
    memberships: list[Membership]
    shutdown: int = 0  # 1: for reading, 2: for writing
    corked: Corked | None = None
    anycast: list[Anycast] = []
    pending: Pending | None = None

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        kind = inet.protocol_of(file)
        return kind in _KINDS or (kind is not None and kind[0] == socket.SOCK_RAW)

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        with socket.socket(fileno=os.dup(file.descriptor)) as one:
            socket_options.refuse_unknown(one)
            socket_options.refuse_notifications(one)
            is_icmp = one.type == socket.SOCK_DGRAM and one.proto not in _HOLDING_BACK
            local = inet.end(one.getsockname())
            try:
                peer = inet.end(one.getpeername())
            except OSError:
                peer = inet.peer_without_port(one, file, world.init) or End(b"", 0)
            queue, pending = _waiting(one, local, peer)
            return cls(
                id=number,
                flags=file.flags,
                **owner_of(file),
                family=int(one.family),
                type=int(one.type),
                protocol=one.proto,
                local=local.address,
                port=local.port,
                peer=peer.address,
                peer_port=peer.port,
                queue=queue,
                options=socket_options.collect(one, connected=bool(peer.address)),
                filter=socket_filter.collect(one),
                memberships=multicast.collect(one, world.init),
                anycast=anycast.collect(one, world.init),
                shutdown=_shutdown(one, file, world),
                corked=None if is_icmp else corked.collect(one),
                pending=pending,
            )

    def refuse_wider(self, bounding: int) -> None:
        super().refuse_wider(bounding)
        inet.check(self.family, End(self.local, self.port))
        if self.peer:
            inet.check(self.family, End(self.peer, self.peer_port))
        if self.type != socket.SOCK_RAW and (self.type, self.protocol) not in _KINDS:
            raise ImageError("the image has an internet socket of an unknown type")
        if self.corked:
            corked.check(self.corked, self.family)
        if self.shutdown not in range(4):
            raise ImageError("the image has an impossible shutdown of a socket")
        udp_queue.check(self.queue, self.protocol)
        if self.pending:
            icmp_errors.check(self.pending)
        socket_options.refuse_wider(self.options, self.family, self.type, self.protocol, bounding)
        anycast.refuse_wider(self.anycast, bounding)
        if self.type == socket.SOCK_RAW and not bounding & CAP_NET_RAW:
            raise UnsupportedResource(
                "the image has a raw socket, which needs CAP_NET_RAW in the new container",
                hint="add it to process.capabilities.bounding in the bundle's config.json",
            )

    def turn(self) -> int:
        # A packet goes to the socket that names the most of where it came, from and by what, and a
        # socket of IPv4 comes first (net/ipv4/udp.c, compute_score): so that one stands last.
        named = any(self.local), bool(self.peer), bool(self._device)
        return 2 * sum(named) + (self.family == socket.AF_INET)

    def bonds(self) -> Iterable[object]:
        # What arrives once more at one of those that share a port could come to another one.
        return [("udp", self.protocol, self.port)] if self.port else []

    def own_addresses(self) -> set[bytes]:
        named = socket_options.own_addresses(self.options)
        return named if self.peer else named | inet.own_address(self.local)

    def moved(self, moves: Mapping[bytes, bytes]) -> Self:
        local = self.local if self.peer else inet.move(self.local, moves)
        options = socket_options.moved(self.options, moves)
        queue = udp_queue.moved(self.queue, moves)
        return msgspec.structs.replace(self, local=local, options=options, queue=queue)

    def restore(self, making: Making) -> int:
        program = making.program
        kind = self.family, self.type, self.protocol
        fd: int = program.call(SYS.SOCKET, *kind)
        socket_options.restore_early(making, fd, self.options, *kind)
        local = End(self.local, self.port)
        shares = self._shares_port(making)
        if shares and not self._has(_REUSE_ADDRESS):
            port_sharing.set_reuse(program, fd, True)
            making.at_end(self._reuse_no_more)
        if any(self.local) or (self.port and self.type != socket.SOCK_RAW):
            fd = self._bind(making, fd, local)
            program = making.program
        if self.peer and not socket_options.missing_device(making, self.options):
            address = End(self.peer, self.peer_port).packed(self.family)
            # There may be no way to it in another place.
            program.may_fail(program.call(SYS.CONNECT, fd, address, len(address)))
        late = socket_options.late(self.options, *kind)
        socket_options.restore_all(making, fd, late, *kind)
        multicast.restore(program, fd, self.memberships)
        anycast.restore(making, fd, self.anycast)
        if self.corked:
            corked.restore(program, fd, self.family, self.corked)
        if making.new_network:
            self._fill(making, fd, shares)
        if making.new_network and self.pending:
            fd = making.settle(fd)
            peer = End(self.peer, self.peer_port)
            icmp_errors.restore(making.ours(fd), self.pending, local, peer)
            program = making.program
        if making.new_network and shares:
            port_sharing.hear_nothing(program, fd)
            making.at_end(self._hear)
        else:
            socket_filter.restore(program, fd, self.filter)
        if self.shutdown:
            # It does so, and says that the socket is not connected if it isn't.
            program.may_fail(program.call(SYS.SHUTDOWN, fd, self.shutdown - 1))
        set_flags(program, fd, self.flags)
        return fd

    @property
    def _device(self) -> bytes:
        """The name of the device that the socket is bound to; empty if to none."""
        found = (one.value for one in self.options if one.place == BOUND_TO_DEVICE)
        return next(found, b"").rstrip(b"\0")

    def _has(self, place: tuple[int, int]) -> bool:
        return any(option.place == place for option in self.options)

    def _shares_port(self, making: Making) -> bool:
        """Tell whether others of the image have this port, maybe at other addresses."""
        ports = making.shared("ports")
        if ports is None:
            sockets = (one for one in making.records if isinstance(one, InetDatagramSocket))
            ports = Counter((one.protocol, one.port) for one in sockets if one.port)
            making.share("ports", ports)
        return self.type == socket.SOCK_DGRAM and bool(ports[self.protocol, self.port] > 1)

    def _fill(self, making: Making, fd: int, shares: bool) -> None:
        """Have what waited at the socket arrive once more: at it, and nowhere else."""
        drawn = False
        if shares and self._has(_REUSE_PORT):
            only_6 = self._has((socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))
            place = self.protocol, self.family, only_6, self.local, self.port, self._device
            member = port_sharing.join(making, place)
            drawn = bool(self.queue) and not self.peer
            if drawn:
                port_sharing.choose(making.program, fd, member)
        local = End(self.local, self.port)
        for datagram in self.queue:
            udp_queue.arrive(making, datagram, self.protocol, local, self._device)
        if drawn:
            port_sharing.draw(making.program, fd)

    def _reuse_no_more(self, making: Making) -> None:
        port_sharing.set_reuse(making.program, making.files[self.id], False)

    def _hear(self, making: Making) -> None:
        port_sharing.hear(making.program, making.files[self.id], self.filter)

    def _bind(self, making: Making, fd: int, local: End) -> int:
        if not self.peer:
            return inet.bind(making, fd, local, self.family, self.options)[0]
        program = making.program
        # Most have got their address from connecting; in a new place that is another one.
        names = [local, End(bytes(len(local.address)), local.port)]
        if self.type == socket.SOCK_RAW:
            names.reverse()  # one without a port is bound as often as it likes: the last one counts
        for name in names:
            address = name.packed(self.family)
            program.may_fail(program.call(SYS.BIND, fd, address, len(address)))
        return fd

    def missing(self, descriptor: int) -> str:
        kind = self.family, self.type, self.protocol
        lacks = socket_options.missing(descriptor, self.options, *kind)
        if self.corked and not lacks:
            lacks = corked.missing(descriptor, self.corked)
        if self.anycast and not lacks:
            lacks = anycast.missing(descriptor, self.anycast)
        # Of one that is connected to no port, nothing tells that.
        if self.peer and self.peer_port and not lacks:
            with socket.socket(fileno=os.dup(descriptor)) as one:
                try:
                    one.getpeername()
                except OSError:
                    name = socket.inet_ntop(self.family, self.peer)
                    return f"a socket is not connected: no way leads to {name}"
        if lacks or self.peer:
            return lacks
        return inet.missing_address(descriptor, End(self.local, self.port), self.family)


def _waiting(one: socket.socket, local: End, peer: End) -> tuple[list[Datagram], Pending | None]:
    """Read what waits at a socket, and leave it there: datagrams, and errors."""
    if one.type != socket.SOCK_DGRAM:
        return [], None
    pending = icmp_errors.take(one)
    if pending is None:
        return [], None
    try:
        queue = udp_queue.peek(one)
    finally:
        icmp_errors.give_back(one, pending, local, peer)
    return queue, pending if pending.error or pending.queue else None


def _shutdown(one: socket.socket, file: OpenFile, world: World) -> int:
    """Return which directions are shut down; of a raw socket, that for writing is not known."""
    poll = select.poll()
    poll.register(one.fileno(), select.POLLRDHUP)
    events = sum(events for _, events in poll.poll(0))
    found = 1 if events & select.POLLRDHUP else 0
    found |= 2 if events & select.POLLHUP else 0
    if one.proto in (socket.IPPROTO_UDP, IPPROTO_UDPLITE):
        found |= world.sockets.datagram_shutdown(file.stat.st_ino, one.proto)
    return found
