"""udp(7), udplite(7), raw(7) and icmp(7) sockets: those of the internet without connections."""

import os
import select
import socket
import struct
from collections.abc import Mapping
from typing import ClassVar, Self

import msgspec

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.image.record import Part
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.resources.files import corked, inet, multicast, socket_filter, socket_options
from woodfrog.resources.files.base import FileRecord, Making, OpenFile, Row, World, set_flags
from woodfrog.resources.files.corked import Corked
from woodfrog.resources.files.inet import End
from woodfrog.resources.files.multicast import Membership
from woodfrog.resources.files.socket_filter import SocketFilter
from woodfrog.resources.files.socket_option_table import CAP_NET_RAW, IPPROTO_UDPLITE
from woodfrog.resources.files.socket_options import Option

_KINDS = frozenset(
    (
        (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
        (socket.SOCK_DGRAM, IPPROTO_UDPLITE),
        (socket.SOCK_DGRAM, socket.IPPROTO_ICMP),
        (socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6),
    )
)
_HOLDING_BACK = (socket.IPPROTO_UDP, IPPROTO_UDPLITE)
_SO_PEEK_OFF = 42
_UDP_GRO = 104
_ECHO_REPLY, _ECHO_REPLY_6 = 0, 129
_CHECKSUM_OFFSET, _ICMP_CHECKSUM_OFFSET = 6, 2
_LARGEST, _ROOM_BESIDE = 1 << 16, 1 << 12


class Datagram(Part, frozen=True):
    """A packet that waits to be received, and who sent it."""

    source: bytes
    port: int
    data: bytes


class InetDatagramSocket(FileRecord, frozen=True, tag="inet-datagram-socket"):
    """A UDP, ICMP or raw socket. `peer` is empty unless it is connected."""

    row: ClassVar[Row] = Row(
        called="UDP, UDP-Lite, ICMP and raw sockets",
        kept=(
            "addresses, all options, multicast groups, filters",
            "what waits at UDP sockets and what they hold back (UDP_CORK)",
            "an ICMP socket's first answer",
        ),
        refused=(
            "what a raw socket holds back",
            "notifications (MSG_ZEROCOPY) that are unread or to come",
            "tunnels of the kernel's (UDP_ENCAP), IPV6_ROUTER_ALERT, eBPF",
        ),
    )
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
            return cls(
                id=number,
                flags=file.flags,
                family=int(one.family),
                type=int(one.type),
                protocol=one.proto,
                local=local.address,
                port=local.port,
                peer=peer.address,
                peer_port=peer.port,
                queue=_peek(one) if one.type == socket.SOCK_DGRAM else [],
                options=socket_options.collect(one, connected=bool(peer.address)),
                filter=socket_filter.collect(one),
                memberships=multicast.collect(one, world.init),
                shutdown=_shutdown(one, file, world),
                corked=None if is_icmp else corked.collect(one),
            )

    def refuse_wider(self, bounding: int) -> None:
        inet.check(self.family, End(self.local, self.port))
        if self.peer:
            inet.check(self.family, End(self.peer, self.peer_port))
        if self.type != socket.SOCK_RAW and (self.type, self.protocol) not in _KINDS:
            raise ImageError("the image has an internet socket of an unknown type")
        if self.corked:
            corked.check(self.corked, self.family)
        if self.shutdown not in range(4):
            raise ImageError("the image has an impossible shutdown of a socket")
        socket_options.refuse_wider(self.options, self.family, self.type, self.protocol, bounding)
        if self.type == socket.SOCK_RAW and not bounding & CAP_NET_RAW:
            raise UnsupportedResource(
                "the image has a raw socket, which needs CAP_NET_RAW in the new container",
                hint="add it to process.capabilities.bounding in the bundle's config.json",
            )

    def own_addresses(self) -> set[bytes]:
        named = socket_options.own_addresses(self.options)
        return named if self.peer else named | inet.own_address(self.local)

    def moved(self, moves: Mapping[bytes, bytes]) -> Self:
        if not self.own_addresses():
            return self
        local = self.local if self.peer else inet.move(self.local, moves)
        options = socket_options.moved(self.options, moves)
        return msgspec.structs.replace(self, local=local, options=options)

    def restore(self, making: Making) -> int:
        program = making.program
        kind = self.family, self.type, self.protocol
        fd: int = program.call(SYS.SOCKET, *kind)
        socket_options.restore_early(making, fd, self.options, *kind)
        local = End(self.local, self.port)
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
        if self.corked:
            corked.restore(program, fd, self.family, self.corked)
        if making.new_network:
            for datagram in self.queue:
                self._arrive(making, datagram)
        socket_filter.restore(program, fd, self.filter)
        if self.shutdown:
            # It does so, and says that the socket is not connected if it isn't.
            program.may_fail(program.call(SYS.SHUTDOWN, fd, self.shutdown - 1))
        set_flags(program, fd, self.flags)
        return fd

    def _bind(self, making: Making, fd: int, local: End) -> int:
        if not self.peer:
            return inet.bind(making, fd, local, self.family, self.options)[0]
        program = making.program
        # Most have got their address from connecting; in a new place that is another one.
        for name in (local, End(bytes(len(local.address)), local.port)):
            address = name.packed(self.family)
            program.may_fail(program.call(SYS.BIND, fd, address, len(address)))
        return fd

    def missing(self, descriptor: int) -> str:
        kind = self.family, self.type, self.protocol
        lacks = socket_options.missing(descriptor, self.options, *kind)
        if self.corked and not lacks:
            lacks = corked.missing(descriptor, self.corked)
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

    def _arrive(self, making: Making, datagram: Datagram) -> None:
        """Have a recorded packet arrive once more."""
        source, target = End(datagram.source, datagram.port).unmapped(), End(self.local, 0)
        address = target.unmapped().address
        if not any(self.local):
            # Where it was sent to isn't known; any address of ours will do.
            address = bytes((127, 0, 0, 1)) if len(source.address) == 4 else bytes(15) + b"\1"
        if len(source.address) != len(address):
            return
        family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
        packet = self._packet(datagram, source, address)
        sent = inet.arrive(making, family, packet, address) if packet else None
        if sent is not None:
            making.program.may_fail(sent)

    def _packet(self, datagram: Datagram, source: End, target: bytes) -> bytes:
        """Return the IP packet that brought a datagram; empty if it may not be repeated."""
        data, checksum_at = datagram.data, _CHECKSUM_OFFSET
        if self.protocol in (socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6):
            # The kernel hands over answers to a ping with their head; all else it would answer.
            if data[:1] not in (bytes((_ECHO_REPLY,)), bytes((_ECHO_REPLY_6,))) or len(data) < 8:
                return b""
            segment, checksum_at = data[:2] + bytes(2) + data[4:], _ICMP_CHECKSUM_OFFSET
        else:
            # To UDP-Lite no length, but 0 bytes that the checksum covers are all of them.
            length = 0 if self.protocol == IPPROTO_UDPLITE else 8 + len(data)
            segment = struct.pack(">4H", source.port, self.port, length, 0) + data
        return inet.packet(self.protocol, source.address, target, segment, checksum_at)


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


def _is_gro(message: tuple[int, int, bytes]) -> bool:
    return message[:2] == (socket.IPPROTO_UDP, _UDP_GRO)


def _peek(one: socket.socket) -> list[Datagram]:
    """Read what waits at a socket and leave it there."""
    poll = select.poll()
    poll.register(one.fileno(), 0)
    if any(events & select.POLLERR for _, events in poll.poll(0)):
        return []  # the first look would take the error away
    try:
        offset = one.getsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF)
    except OSError:
        return _look(one)  # an ICMP socket shows only its first one
    found: list[Datagram] = []
    one.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, 0)
    try:
        while more := _look(one):
            found += more
    finally:
        one.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, offset)
    return found


def _look(one: socket.socket) -> list[Datagram]:
    """Return what waits, from SO_PEEK_OFF on; nothing if there is no more."""
    try:
        flags = socket.MSG_PEEK | socket.MSG_DONTWAIT
        data, beside, _, name = one.recvmsg(_LARGEST, _ROOM_BESIDE, flags)
    except OSError:
        return []
    source = inet.end(name)
    # Several packets of a sender can wait as one, which tells the length of each (UDP_GRO).
    lengths = (int.from_bytes(word[:4], "little") for *_, word in filter(_is_gro, beside))
    length = next(lengths, 0) or max(len(data), 1)
    return [
        Datagram(source=source.address, port=source.port, data=data[start : start + length])
        for start in range(0, max(len(data), 1), length)
    ]
