"""What waits at UDP and ICMP sockets: looked at, and made to arrive once more."""

import socket
import struct
from collections.abc import Iterable, Mapping

import msgspec

from woodfrog.errors import ImageError
from woodfrog.image.record import Part
from woodfrog.kernel import netdevice
from woodfrog.resources.files import inet
from woodfrog.resources.files.inet import End
from woodfrog.resources.files.making import Making
from woodfrog.resources.files.socket_option_table import IPPROTO_UDPLITE

_SO_PEEK_OFF = 42
_UDP_GRO = 104
_IP_TOS, _IP_TTL, _IP_PKTINFO, _IP_ORIGDSTADDR = 1, 2, 8, 20
_IPV6_2292PKTINFO, _IPV6_2292HOPLIMIT, _IPV6_FLOWINFO = 2, 8, 11
_IPV6_PKTINFO, _IPV6_HOPLIMIT, _IPV6_TCLASS, _IPV6_ORIGDSTADDR = 50, 52, 67, 74
_ECHO_REPLY, _ECHO_REPLY_6 = 0, 129
_CHECKSUM_OFFSET, _ICMP_CHECKSUM_OFFSET = 6, 2
_HEAD = 8  # of UDP
_IPV4_HEAD = 20  # which a packet's length counts, unlike that of IPv6
_LARGEST, _ROOM_BESIDE = 1 << 16, 1 << 12
_SOME_TTL = 64
_LONGEST_NAME = 15


class Datagram(Part, frozen=True):
    """A packet that waits to be received, and who sent it.

    The rest is told only where the program has asked for it (IP_PKTINFO and its kin): to which
    address it came, and by which device; the time to live, or hop limit, of its head; and its type
    of service, or traffic class (8 bits) and flow label (20).
    """

    source: bytes
    port: int
    data: bytes
    destination: bytes = b""
    device: bytes = b""
    ttl: int = _SOME_TTL
    traffic: int = 0


def check(queue: Iterable[Datagram], protocol: int) -> None:
    """Check what an image says of a queue."""
    is_icmp = protocol in (socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6)
    for one in queue:
        is_four = len(End(one.source, 0).unmapped().address) == 4
        bits = 8 if is_four else 28
        heads = (0 if is_icmp else _HEAD) + (_IPV4_HEAD if is_four else 0)
        if (
            len(one.source) not in inet.LOOPBACK
            or len(one.destination) not in (0, *inet.LOOPBACK)
            or len(one.device) > _LONGEST_NAME
            or not 0 <= one.port < 1 << 16
            or not 0 <= one.ttl < 1 << 8
            or not 0 <= one.traffic < 1 << bits
            or len(one.data) + heads >= _LARGEST
        ):
            raise ImageError("the image has an impossible datagram")


def moved(queue: Iterable[Datagram], moves: Mapping[bytes, bytes]) -> list[Datagram]:
    """Return a queue as it would be in a container that has other addresses."""
    return [
        msgspec.structs.replace(one, destination=inet.move(one.destination, moves))
        if one.destination
        else one
        for one in queue
    ]


def peek(one: socket.socket) -> list[Datagram]:
    """Read what waits at a socket, which has no error, and leave it there."""
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
        data, told, _, name = one.recvmsg(_LARGEST, _ROOM_BESIDE, flags)
    except OSError:
        return []
    beside = {(level, kind): value for level, kind, value in told}
    source = inet.end(name)
    scope = name[3] if len(source.address) == 16 else 0
    # Several packets of a sender can wait as one, which tells the length of each (UDP_GRO).
    gathered = beside.get((socket.IPPROTO_UDP, _UDP_GRO), b"")
    length = int.from_bytes(gathered[:4], "little") or max(len(data), 1)
    destination, number = _arrival(beside)
    first = Datagram(
        source=source.address,
        port=source.port,
        data=b"",
        destination=destination,
        device=netdevice.name_of(one.fileno(), number or scope),
        ttl=_ttl(beside),
        traffic=_traffic(beside),
    )
    return [
        msgspec.structs.replace(first, data=data[start : start + length])
        for start in range(0, max(len(data), 1), length)
    ]


def _arrival(beside: Mapping[tuple[int, int], bytes]) -> tuple[bytes, int]:
    """Return to which address a packet came, and the number of the device, as far as is told."""
    destination, number = b"", 0
    for (level, kind), value in beside.items():
        match level, kind:
            case (socket.IPPROTO_IP, _) if kind == _IP_PKTINFO:
                destination, number = value[8:12], int.from_bytes(value[:4], "little")
            case (socket.IPPROTO_IPV6, _) if kind in (_IPV6_PKTINFO, _IPV6_2292PKTINFO):
                destination, number = value[:16], int.from_bytes(value[16:20], "little")
            case (socket.IPPROTO_IP, _) if kind == _IP_ORIGDSTADDR and not destination:
                destination = value[4:8]
            case (socket.IPPROTO_IPV6, _) if kind == _IPV6_ORIGDSTADDR and not destination:
                destination = value[8:24]
    return destination, number


def _ttl(beside: Mapping[tuple[int, int], bytes]) -> int:
    places = (
        (socket.IPPROTO_IP, _IP_TTL),
        (socket.IPPROTO_IPV6, _IPV6_HOPLIMIT),
        (socket.IPPROTO_IPV6, _IPV6_2292HOPLIMIT),
    )
    return next((beside[place][0] for place in places if place in beside), _SOME_TTL)


def _traffic(beside: Mapping[tuple[int, int], bytes]) -> int:
    if (socket.IPPROTO_IP, _IP_TOS) in beside:
        return beside[socket.IPPROTO_IP, _IP_TOS][0]
    flow = beside.get((socket.IPPROTO_IPV6, _IPV6_FLOWINFO), b"")
    return (
        int.from_bytes(flow, "big")
        | beside.get((socket.IPPROTO_IPV6, _IPV6_TCLASS), b"\0")[0] << 20
    )


def arrive(making: Making, one: Datagram, protocol: int, local: End, device: bytes) -> None:
    """Have a recorded packet arrive once more, at a socket with this name, maybe of one device."""
    source = End(one.source, one.port).unmapped()
    size = len(source.address)
    family = socket.AF_INET if size == 4 else socket.AF_INET6
    named = local.address if any(local.address) else one.destination
    target = End(named, 0).unmapped().address
    # What comes to a device's own address came by that device, whatever address its head names.
    device = one.device or device
    way = making.address_at(device, family)
    if not way:
        device = b""
        way = target if inet.is_here(making, target) else inet.LOOPBACK[size]
    target = target or way
    # One of another family came by a way that the socket no longer has.
    if len(target) != size or len(way) != size:
        return
    segment, checksum_at = _segment(one, protocol, source.port, local.port)
    if segment:
        head = one.ttl, one.traffic
        packet = inet.packet(protocol, source.address, target, segment, checksum_at, *head)
        sent = inet.arrive(making, packet, way, device=device, target=target)
        if sent is not None:
            making.program.may_fail(sent)


def _segment(one: Datagram, protocol: int, source: int, target: int) -> tuple[bytes, int]:
    """Return what the IP packet held, and where its checksum is; empty if it can't be repeated."""
    data = one.data
    if protocol in (socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6):
        # The kernel hands over answers to a ping with their head; all else it would answer.
        if data[:1] not in (bytes((_ECHO_REPLY,)), bytes((_ECHO_REPLY_6,))) or len(data) < 8:
            return b"", 0
        return data[:2] + bytes(2) + data[4:], _ICMP_CHECKSUM_OFFSET
    # To UDP-Lite no length, but 0 bytes that the checksum covers are all of them.
    length = 0 if protocol == IPPROTO_UDPLITE else _HEAD + len(data)
    return struct.pack(">4H", source, target, length, 0) + data, _CHECKSUM_OFFSET
