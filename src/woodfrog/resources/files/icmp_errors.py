"""Errors that wait at UDP and ICMP sockets, as the network has told them (ip(7), IP_RECVERR).

No call shows them without taking them away. So they are taken, and brought once more.
"""

import errno
import fcntl
import os
import select
import socket
import struct
import time
from contextlib import suppress

from woodfrog.errors import ImageError
from woodfrog.image.record import Part
from woodfrog.kernel import netdevice
from woodfrog.kernel.netlink.messages import socket_at
from woodfrog.resources.files import inet, socket_options
from woodfrog.resources.files.inet import End
from woodfrog.resources.files.socket_option_table import IPPROTO_UDPLITE, SO_TXTIME

_MSG_ERRQUEUE = 0x2000
_SIOCGSKNS = 0x894C
_IP_RECVERR, _IPV6_RECVERR = (socket.IPPROTO_IP, 11), (socket.IPPROTO_IPV6, 25)
_EXTENDED = struct.Struct("=I4B2I")  # struct sock_extended_err
_OF_NETWORK = (2, 3)  # SO_EE_ORIGIN_ICMP, …_ICMP6
_SO_TIMESTAMPING = 37
_TELLS_OF_SENDING = 1 | 2 | 1 << 8 | 1 << 9  # SOF_TIMESTAMPING_TX_…
_TXTIME_TELLS = 2  # SOF_TXTIME_REPORT_ERRORS
_UNREACHABLE, _UNREACHABLE_6, _TOO_LARGE, _TOO_LARGE_6 = 3, 1, (3, 4), (2, 0)
# Of those that sockets are told of: unreachable, time exceeded, and wrong heads; and too large.
_KINDS = {4: (3, 11, 12), 16: (1, 2, 3, 4)}
_POINTS = 12  # it has a byte's place in the highest byte
# Codes of "unreachable", as the kernel turns them into errors that are told at once.
_CODES = {
    4: {
        errno.ENOPROTOOPT: 2,
        errno.ECONNREFUSED: 3,
        errno.EMSGSIZE: 4,
        errno.ENETUNREACH: 6,
        errno.EHOSTDOWN: 7,
        errno.ENONET: 8,
        errno.EHOSTUNREACH: 10,
    },
    16: {errno.EACCES: 1, errno.ECONNREFUSED: 4},
}
_CHECKSUM_OFFSET, _UDP_CHECKSUM_OFFSET = 2, 6
_LARGEST, _ROOM_BESIDE = 1 << 16, 1 << 12
_MOST_DATA = 1 << 15
# The loopback device hands over at once, but where the kernel has more to do.
_ON_ITS_WAY_S = 1


class NetworkError(Part, frozen=True):
    """What a message of ICMP has told: of what was sent, and to whom; by whom, and why."""

    kind: int
    code: int
    info: int
    offender: bytes
    target: bytes
    port: int
    data: bytes


class Pending(Part, frozen=True):
    """What waits: the error that the next call returns, or 0, and those of MSG_ERRQUEUE."""

    error: int
    queue: list[NetworkError]


def check(pending: Pending) -> None:
    """Check what an image says."""
    for one in pending.queue:
        size = len(End(one.target, 0).unmapped().address)
        if (
            one.kind not in _KINDS.get(size, ())
            or len(End(one.offender, 0).unmapped().address) not in (0, size)
            or not 0 <= one.code < 1 << 8
            or not 0 <= one.info < 1 << 32
            or not 0 <= one.port < 1 << 16
            or len(one.data) > _MOST_DATA
        ):
            raise ImageError("the image has an impossible error at a socket")


def take(one: socket.socket) -> Pending | None:
    """Take what waits at a socket, which is to get it back; None if something stays.

    While that is so, no look at what was received is possible that would not take the error away.
    """
    if not socket_options.ready_for(one.fileno(), 0) & select.POLLERR:
        return Pending(error=0, queue=[])
    if one.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0"):
        return None  # what comes by the loopback device is not for it
    if not netdevice.is_up(one.fileno(), b"lo"):
        return None
    level, name = _IP_RECVERR if one.family == socket.AF_INET else _IPV6_RECVERR
    has_queue = one.getsockopt(level, name)
    # Who hears of what was sent, too, may have that in the same queue: it can't be told again.
    if has_queue and _hears_of_sending(one):
        return None
    queue = []
    error = one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    while has_queue and (found := _next(one)) is not None:
        queue.append(found)
    return Pending(error=error, queue=queue)


def _hears_of_sending(one: socket.socket) -> bool:
    stamps = one.getsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPING)
    _, times = struct.unpack("<2I", one.getsockopt(socket.SOL_SOCKET, SO_TXTIME, 8))
    return bool(stamps & _TELLS_OF_SENDING) or bool(times & _TXTIME_TELLS)


def _next(one: socket.socket) -> NetworkError | None:
    """Take the first error of the queue; None if there is none."""
    try:
        flags = _MSG_ERRQUEUE | socket.MSG_DONTWAIT
        data, beside, _, name = one.recvmsg(_LARGEST, _ROOM_BESIDE, flags)
    except OSError:
        return None
    told = next(value for *place, value in beside if tuple(place) in (_IP_RECVERR, _IPV6_RECVERR))
    _, origin, kind, code, _, info, _ = _EXTENDED.unpack_from(told)
    target = inet.end(name)
    offender = _offender(told[_EXTENDED.size :])
    if origin not in _OF_NETWORK:
        # Our own side has found it too large for the way.
        is_four = len(target.unmapped().address) == 4
        kind, code = _TOO_LARGE if is_four else _TOO_LARGE_6
    return NetworkError(
        kind=kind,
        code=code,
        info=info,
        offender=offender,
        target=target.address,
        port=target.port,
        data=data[:_MOST_DATA],
    )


def _offender(name: bytes) -> bytes:
    family = int.from_bytes(name[:2], "little")
    if family == socket.AF_INET:
        return name[4:8]
    return name[8:24] if family == socket.AF_INET6 else b""


def give_back(one: socket.socket, pending: Pending, local: End, peer: End) -> None:
    """Have a socket whose process is held be told of all that was taken, in that order."""
    packets = _packets(one.proto, pending, local, peer)
    if not packets:
        return
    namespace = fcntl.ioctl(one.fileno(), _SIOCGSKNS)
    try:
        for number, packet in enumerate(packets, 1):
            family = socket.AF_INET if packet[0] >> 4 == 4 else socket.AF_INET6
            way = socket.inet_ntop(family, inet.LOOPBACK[4 if family == socket.AF_INET else 16])
            with socket_at(namespace, family, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, inet.MARK)
                raw.sendto(packet, (way, 0))
            # The last one stays as the error of the next call, if there was one.
            if number < len(packets) or not pending.error:
                _await_error(one)
    finally:
        os.close(namespace)


def _await_error(one: socket.socket) -> None:
    """Take the error of a message that is on its way: it comes by itself, and soon."""
    end = time.monotonic() + _ON_ITS_WAY_S
    while not one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) and time.monotonic() < end:
        time.sleep(0.0001)


def restore(descriptor: int, pending: Pending, local: End, peer: End) -> None:
    """Have a socket that was made, a descriptor of ours, be told of what is recorded."""
    with socket.socket(fileno=os.dup(descriptor)) as one, suppress(OSError):
        give_back(one, pending, local, peer)


def _packets(protocol: int, pending: Pending, local: End, peer: End) -> list[bytes]:
    """Return the packets that tell a socket of all."""
    found = []
    for one in pending.queue or _of_connection(pending.error, peer):
        target, offender = End(one.target, one.port).unmapped(), End(one.offender, 0).unmapped()
        size = len(target.address)
        source = local.unmapped() if any(local.address) else End(inet.LOOPBACK[size], local.port)
        if len(source.address) != size:
            continue
        info = one.info << 24 if size == 4 and one.kind == _POINTS else one.info
        head = struct.pack(">2BHI", one.kind, one.code, 0, info & 0xFFFFFFFF)
        packet = inet.packet(
            socket.IPPROTO_ICMP if size == 4 else socket.IPPROTO_ICMPV6,
            offender.address or inet.LOOPBACK[size],
            source.address,
            head + _quoted(protocol, one.data, source, target),
            _CHECKSUM_OFFSET,
        )
        found.append(packet)
    return found


def _of_connection(error: int, peer: End) -> list[NetworkError]:
    """Return what tells a connected socket, that doesn't ask for more, of an error."""
    address = peer.unmapped().address
    code = _CODES.get(len(address), {}).get(error)
    if code is None:
        return []
    kind = _UNREACHABLE if len(address) == 4 else _UNREACHABLE_6
    return [
        NetworkError(
            kind=kind,
            code=code,
            info=0,
            offender=b"",
            target=peer.address,
            port=peer.port,
            data=b"",
        )
    ]


def _quoted(protocol: int, data: bytes, source: End, target: End) -> bytes:
    """Return the packet that was sent, as the message quotes it."""
    if protocol not in (socket.IPPROTO_UDP, IPPROTO_UDPLITE):
        # Its head is told, too, with its checksum.
        return inet.packet(protocol, source.address, target.address, data, None)
    data = struct.pack(">4H", source.port, target.port, 8 + len(data), 0) + data
    return inet.packet(protocol, source.address, target.address, data, _UDP_CHECKSUM_OFFSET)
