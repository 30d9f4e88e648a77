"""udp(7), raw(7) and icmp(7) sockets: those of the internet that make no connections."""

import fcntl
import os
import select
import socket
import struct
import time
from collections.abc import Mapping
from typing import ClassVar, Self

import msgspec

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.image.record import Part
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.remote.program import Program
from woodfrog.resources.files import inet, multicast, socket_filter, socket_options
from woodfrog.resources.files.base import FileRecord, Making, OpenFile, Row, World, set_flags
from woodfrog.resources.files.inet import End
from woodfrog.resources.files.multicast import Membership
from woodfrog.resources.files.socket_filter import SocketFilter
from woodfrog.resources.files.socket_options import CAP_NET_RAW, Option

_KINDS = frozenset(
    (
        (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
        (socket.SOCK_DGRAM, socket.IPPROTO_ICMP),
        (socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6),
    )
)
_SO_PEEK_OFF = 42
_UDP_ENCAP = 100
_SIOCOUTQ = 0x5411
_CHECKSUM_OFFSET = 6
_LARGEST = 1 << 16
# So long does a packet at most stay in a device's queue while we look.
_SENDING_S = 0.2


class Datagram(Part, frozen=True):
    """A packet that waits to be received, and who sent it."""

    source: bytes
    port: int
    data: bytes


class InetDatagramSocket(FileRecord, frozen=True, tag="inet-datagram-socket"):
    """A UDP, ICMP or raw socket. `peer` is empty unless it is connected."""

    row: ClassVar[Row] = Row(
        called="UDP, UDP-Lite, ICMP and raw sockets",
        kept=("addresses, what waits (but raw sockets), options, multicast groups, filters",),
        refused=("corked data, encapsulation (UDP_ENCAP), eBPF",),
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

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        kind = inet.protocol_of(file)
        return kind in _KINDS or (kind is not None and kind[0] == socket.SOCK_RAW)

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        with socket.socket(fileno=os.dup(file.descriptor)) as one:
            is_udp = one.proto == socket.IPPROTO_UDP and one.type == socket.SOCK_DGRAM
            if is_udp and one.getsockopt(socket.IPPROTO_UDP, _UDP_ENCAP):
                raise UnsupportedResource("is a UDP socket that decapsulates packets (UDP_ENCAP)")
            _refuse_unsent(one)
            local = inet.end(one.getsockname())
            try:
                peer = inet.end(one.getpeername())
            except OSError:
                peer = End(b"", 0)
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
                queue=_peek(one) if is_udp else [],
                options=socket_options.collect(one),
                filter=socket_filter.collect(one),
                memberships=multicast.collect(one, world.init),
            )

    def refuse_wider(self, bounding: int) -> None:
        inet.check(self.family, End(self.local, self.port))
        if self.peer:
            inet.check(self.family, End(self.peer, self.peer_port))
        if self.type != socket.SOCK_RAW and (self.type, self.protocol) not in _KINDS:
            raise ImageError("the image has an internet socket of an unknown type")
        socket_options.refuse_wider(self.options, self.family, self.type, self.protocol, bounding)
        if self.type == socket.SOCK_RAW and not bounding & CAP_NET_RAW:
            raise UnsupportedResource(
                "the image has a raw socket, which needs CAP_NET_RAW in the new container",
                hint="add it to process.capabilities.bounding in the bundle's config.json",
            )

    def own_addresses(self) -> set[bytes]:
        return set() if self.peer else inet.own_address(self.local)

    def moved(self, moves: Mapping[bytes, bytes]) -> Self:
        if not self.own_addresses():
            return self
        return msgspec.structs.replace(self, local=inet.move(self.local, moves))

    def restore(self, making: Making) -> int:
        program = making.program
        kind = self.family, self.type, self.protocol
        fd = program.call(SYS.SOCKET, *kind)
        socket_options.restore(
            program, fd, socket_options.early(self.options, *kind), force=making.may_force_buffers
        )
        local = End(self.local, self.port)
        if any(self.local) or (self.port and self.type != socket.SOCK_RAW):
            self._bind(program, fd, local)
        if self.peer:
            address = End(self.peer, self.peer_port).packed(self.family)
            program.call(SYS.CONNECT, fd, address, len(address))
        socket_options.restore(
            program, fd, socket_options.late(self.options, *kind), force=making.may_force_buffers
        )
        multicast.restore(program, fd, self.memberships)
        if making.new_network:
            for datagram in self.queue:
                _arrive(making, datagram, local)
        socket_filter.restore(program, fd, self.filter)
        set_flags(program, fd, self.flags)
        return fd

    def _bind(self, program: Program, fd: int, local: End) -> None:
        if not self.peer:
            inet.bind(program, fd, local, self.family, self.options)
            return
        # Most have got their address from connecting; in a new place that is another one.
        for name in (local, End(bytes(len(local.address)), local.port)):
            address = name.packed(self.family)
            program.may_fail(program.call(SYS.BIND, fd, address, len(address)))

    def missing(self, descriptor: int) -> str:
        if self.peer:
            return ""
        return inet.missing_address(descriptor, End(self.local, self.port), self.family)


def _refuse_unsent(one: socket.socket) -> None:
    """Refuse a socket that holds data back; what is being sent just now leaves by itself."""
    end = time.monotonic() + _SENDING_S
    waiting = bytearray(4)
    while fcntl.ioctl(one.fileno(), _SIOCOUTQ, waiting) == 0 and any(waiting):
        if time.monotonic() > end:
            raise UnsupportedResource(
                "is a UDP socket with data that it holds back (UDP_CORK, MSG_MORE)",
                hint="try again in a moment",
            )
        time.sleep(0.001)


def _peek(one: socket.socket) -> list[Datagram]:
    """Read what waits at a socket and leave it there."""
    poll = select.poll()
    poll.register(one.fileno(), 0)
    if any(events & select.POLLERR for _, events in poll.poll(0)):
        return []  # the first look would take the error away
    found = []
    offset = one.getsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF)
    one.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, 0)
    try:
        while True:
            data, name = one.recvfrom(_LARGEST, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            source = inet.end(name)
            found.append(Datagram(source=source.address, port=source.port, data=data))
    except OSError:
        pass  # that was all
    finally:
        one.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, offset)
    return found


def _arrive(making: Making, datagram: Datagram, local: End) -> None:
    source, target = End(datagram.source, datagram.port).unmapped(), local.unmapped().address
    if not any(local.address):
        # Where it was sent to isn't known; any address of ours will do.
        target = bytes((127, 0, 0, 1)) if len(source.address) == 4 else bytes(15) + b"\1"
    if len(source.address) != len(target):
        return
    family = socket.AF_INET if len(target) == 4 else socket.AF_INET6
    length = 8 + len(datagram.data)
    segment = struct.pack(">4H", source.port, local.port, length, 0) + datagram.data
    packet = inet.packet(socket.IPPROTO_UDP, source.address, target, segment, _CHECKSUM_OFFSET)
    sent = inet.arrive(making, family, packet, target)
    if sent is not None:
        making.program.may_fail(sent)
