"""packet(7): sockets that hear and send what devices do."""

import fcntl
import os
import socket
import stat
import struct
from typing import ClassVar, Self

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.image.record import Part
from woodfrog.kernel import netdevice
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.netlink.messages import socket_at
from woodfrog.kernel.netlink.packet_diag import PacketInfo
from woodfrog.remote.program import Program
from woodfrog.resources.files import packet_ring, socket_filter, socket_options
from woodfrog.resources.files.base import Row, set_flags
from woodfrog.resources.files.making import Making
from woodfrog.resources.files.open_file import OpenFile
from woodfrog.resources.files.owned import Socket, owner_of
from woodfrog.resources.files.packet_ring import SOL_PACKET, Ring
from woodfrog.resources.files.socket_filter import SocketFilter
from woodfrog.resources.files.socket_option_table import CAP_NET_RAW
from woodfrog.resources.files.socket_options import Option
from woodfrog.resources.files.world import World

_PACKET_ADD_MEMBERSHIP, _PACKET_COPY_THRESH, _PACKET_VERSION, _PACKET_FANOUT = 1, 7, 10, 18
_VERSIONS = (packet_ring.TPACKET_V1, packet_ring.TPACKET_V2, packet_ring.TPACKET_V3)
_FANOUT_PROGRAMS = (6, 7)  # PACKET_FANOUT_CBPF, PACKET_FANOUT_EBPF
_SOCK_PACKET = 10
_TYPES = (socket.SOCK_RAW, socket.SOCK_DGRAM, _SOCK_PACKET)
_SIOCGSKNS = 0x894C
_MOST_TIMES = 1 << 10
_ADDRESS = struct.Struct("<H2si12x")  # struct sockaddr_ll
_OLD_ADDRESS = struct.Struct("<H14s")  # struct sockaddr_pkt, up to the protocol


class PacketMembership(Part, frozen=True):
    """What the socket has a device do (PACKET_MR_…), `times` times."""

    device: bytes
    times: int
    kind: int
    address: bytes


class PacketSocket(Socket, frozen=True, tag="packet-socket"):
    """A packet socket. `protocol` is an EtherType, or 0 if it hears nothing.

    `device` is the one that it is bound to, empty if to all; `gone` if that is no more. `fanout` is
    what PACKET_FANOUT takes, or -1.
    """

    has_memory: ClassVar[bool] = True
    row: ClassVar[Row] = Row(
        called="packet sockets",
        kept=(
            "device, protocol, options, memberships, fanout groups, filters",
            "rings of all versions, with their mappings and what is in them",
        ),
        refused=(
            "a fanout group with a program",
            "a PACKET_TX_RING that has been gone around, with PACKET_LOSS",
        ),
    )
    type: int
    protocol: int
    device: bytes
    gone: bool
    copy_threshold: int
    memberships: list[PacketMembership]
    fanout: int
    version: int
    taking: Ring | None
    giving: Ring | None
    options: list[Option]
    filter: SocketFilter | None

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        if not stat.S_ISSOCK(file.stat.st_mode):
            return False
        with socket.socket(fileno=os.dup(file.descriptor)) as one:
            return bool(one.family == socket.AF_PACKET) and one.type in _TYPES

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        found: PacketInfo = world.sockets.packet(file.stat.st_ino)
        with socket.socket(fileno=os.dup(file.descriptor)) as one:
            fanout = _fanout(one) if found.in_fanout else -1
            is_old = one.type == _SOCK_PACKET
            version = 0 if is_old else one.getsockopt(SOL_PACKET, _PACKET_VERSION)
            taking, giving = packet_ring.collect(one, version, found.receiving, found.sending)
            device = netdevice.name_of(one.fileno(), found.device) if found.device > 0 else b""
            return cls(
                id=number,
                flags=file.flags,
                **owner_of(file),
                type=int(one.type),
                protocol=found.protocol,
                device=device,
                gone=bool(found.device) and not device,
                copy_threshold=found.copy_threshold,
                memberships=[
                    PacketMembership(
                        device=netdevice.name_of(one.fileno(), member.device),
                        times=member.times,
                        kind=member.kind,
                        address=member.address,
                    )
                    for member in found.memberships
                ],
                fanout=fanout,
                version=version,
                taking=taking,
                giving=giving,
                options=socket_options.collect(one),
                filter=socket_filter.collect(one),
            )

    def refuse_wider(self, bounding: int) -> None:
        super().refuse_wider(bounding)
        if self.type not in _TYPES or not 0 <= self.protocol < 1 << 16:
            raise ImageError("the image has a packet socket of an unknown type")
        if self.version not in _VERSIONS or not -1 <= self.fanout < 1 << 32:
            raise ImageError("the image has an impossible packet socket")
        if any(
            not 0 < one.times <= _MOST_TIMES or not 0 <= one.kind < 1 << 16 or len(one.address) > 8
            for one in self.memberships
        ):
            raise ImageError("the image has an impossible membership of a packet socket")
        for ring in (self.taking, self.giving):
            if ring:
                packet_ring.check(ring)
        socket_options.refuse_wider(self.options, socket.AF_PACKET, self.type, 0, bounding)
        if not bounding & CAP_NET_RAW:
            raise UnsupportedResource(
                "the image has a packet socket, which needs CAP_NET_RAW in the new container",
                hint="add it to process.capabilities.bounding in the bundle's config.json",
            )

    def restore(self, making: Making) -> int:
        kind = socket.AF_PACKET, self.type, 0
        if self.type == _SOCK_PACKET:
            return self._restore_old(making)
        fd: int = making.program.call(SYS.SOCKET, *kind)
        early = socket_options.early(self.options, *kind)
        socket_options.restore(making.program, fd, early, force=making.may_force_buffers)
        if self.copy_threshold:
            _set(making.program, fd, _PACKET_COPY_THRESH, self.copy_threshold.to_bytes(4, "little"))
        if self.taking or self.giving:
            packet_ring.make(making.program, fd, self.version, self.taking, self.giving)
            fd = making.settle(fd)
            with socket.socket(fileno=os.dup(making.ours(fd))) as one, _beside(one) as sender:
                packet_ring.bring_back(one, sender, self.version, self.taking, self.giving)
        program = making.program
        late = socket_options.late(self.options, *kind)
        socket_options.restore_all(making, fd, late, *kind)
        socket_filter.restore(program, fd, self.filter)
        for member in self.memberships:
            number = making.device_number(member.device)
            request = struct.pack(
                "<iHH8s", number, member.kind, len(member.address), member.address
            )
            for _ in range(member.times if number else 0):
                _set(program, fd, _PACKET_ADD_MEMBERSHIP, request)
        index = making.device_number(self.device) if self.device else 0
        is_heard = bool(index or not (self.device or self.gone))
        if is_heard and (self.protocol or index):
            address = _ADDRESS.pack(socket.AF_PACKET, self.protocol.to_bytes(2, "big"), index)
            program.call(SYS.BIND, fd, address, len(address))
            if self.fanout >= 0:
                _set(program, fd, _PACKET_FANOUT, self.fanout.to_bytes(4, "little"))
        set_flags(program, fd, self.flags)
        return fd

    def _restore_old(self, making: Making) -> int:
        """Make one of the first kind, which has its protocol when it is made, and few options."""
        program = making.program
        lacks = self.gone or bool(self.device and not making.device_number(self.device))
        protocol = 0 if lacks else socket.htons(self.protocol)
        kind = socket.AF_PACKET, self.type, 0
        fd = program.call(SYS.SOCKET, socket.AF_PACKET, self.type, protocol)
        if self.device and not lacks:
            address = _OLD_ADDRESS.pack(socket.AF_PACKET, self.device)
            program.call(SYS.BIND, fd, address, len(address))
        socket_options.restore_all(making, fd, self.options, *kind)
        socket_filter.restore(program, fd, self.filter)
        set_flags(program, fd, self.flags)
        return fd

    def missing(self, descriptor: int) -> str:
        with socket.socket(fileno=os.dup(descriptor)) as one:
            devices = [self.device, *(member.device for member in self.memberships)]
            for device in filter(None, devices):
                if not netdevice.number_of(one.fileno(), device):
                    name = os.fsdecode(device)
                    return f"a packet socket hears nothing of {name}: the container has none such"
        return ""


def _set(program: Program, fd: int, name: int, value: bytes) -> None:
    program.call(SYS.SETSOCKOPT, fd, SOL_PACKET, name, value, len(value))


def _beside(one: socket.socket) -> socket.socket:
    """Open a packet socket in the same network namespace."""
    namespace = fcntl.ioctl(one.fileno(), _SIOCGSKNS)
    try:
        return socket_at(namespace, socket.AF_PACKET, socket.SOCK_RAW, 0)
    finally:
        os.close(namespace)


def _fanout(one: socket.socket) -> int:
    """Return the group, its type and flags, as PACKET_FANOUT takes them."""
    value = one.getsockopt(SOL_PACKET, _PACKET_FANOUT) & 0xFFFFFFFF
    if value >> 16 & 0xFF in _FANOUT_PROGRAMS:
        raise UnsupportedResource("is a packet socket in a fanout group that a program divides")
    return value
