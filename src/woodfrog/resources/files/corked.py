"""udp(7) sockets that hold data back, for one datagram (UDP_CORK, MSG_MORE).

No call shows such data. So they are sent, caught before they leave, and given back to the socket.
"""

import fcntl
import os
import socket
import struct
import time

import msgspec

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.image.record import Part
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.netlink.caught import caught
from woodfrog.remote.program import Program
from woodfrog.resources.files.inet import End

_UDP_CORK = 1
_SIOCOUTQ, _SIOCGSKNS = 0x5411, 0x894C
_MAPPED = bytes(10) + b"\xff\xff"
_LONGEST = 1 << 16
# So long does a packet at most stay in a device's queue while we look.
_SENDING_S = 0.2


class Corked(Part, frozen=True):
    """What is held back, and for whom; `by_option` unless it ends with the next call (MSG_MORE)."""

    target: bytes
    port: int
    data: bytes
    by_option: bool


class _Datagram(msgspec.Struct, frozen=True):
    target: bytes
    port: int
    data: bytes


def collect(one: socket.socket) -> Corked | None:
    """Read what a UDP socket holds back, and have it hold that back again."""
    if not _holds_back(one):
        return None
    if one.type == socket.SOCK_RAW:
        raise UnsupportedResource(
            "is a raw socket with data that it holds back (MSG_MORE)", hint="try again in a moment"
        )
    by_option = bool(one.getsockopt(one.proto, _UDP_CORK))
    port = one.getsockname()[1]
    namespace = fcntl.ioctl(one.fileno(), _SIOCGSKNS)
    try:
        with caught(namespace, one.proto, port) as packets:
            one.setsockopt(one.proto, _UDP_CORK, 0)
            try:
                found = _datagram(packets.next())
            finally:
                one.setsockopt(one.proto, _UDP_CORK, int(by_option))
    except OSError as error:
        raise UnsupportedResource(
            f"is a UDP socket with data that it holds back (UDP_CORK, MSG_MORE): {error}",
            hint="try again in a moment; to keep them takes nf_tables and nfnetlink_log",
        ) from error
    finally:
        os.close(namespace)
    target = found.target
    if one.family == socket.AF_INET6 and len(target) == 4:
        target = _MAPPED + target
    record = Corked(target=target, port=found.port, data=found.data, by_option=by_option)
    address = End(target, found.port).packed(one.family)
    call = one.fileno(), found.data, len(found.data), _flags(record), address, len(address)
    HERE.call(SYS.SENDTO, *call)
    return record


def _holds_back(one: socket.socket) -> bool:
    """Tell whether data wait; what is being sent just now leaves by itself."""
    end = time.monotonic() + _SENDING_S
    waiting = bytearray(4)
    while fcntl.ioctl(one.fileno(), _SIOCOUTQ, waiting) == 0 and any(waiting):
        if time.monotonic() > end:
            return True
        time.sleep(0.001)
    return False


def _datagram(packet: bytes) -> _Datagram:
    """Take an IP packet apart."""
    if packet[0] >> 4 == 4:
        target, at = packet[16:20], (packet[0] & 15) * 4
    else:
        target, at = packet[24:40], 40
        if packet[6] not in (socket.IPPROTO_UDP, 136):
            raise OSError("it has extension headers")
    (port,) = struct.unpack_from(">H", packet, at + 2)
    return _Datagram(target, port, packet[at + 8 :])


def _flags(record: Corked) -> int:
    more = 0 if record.by_option else socket.MSG_MORE
    return more | socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


def check(record: Corked, family: int) -> None:
    """Check what an image says."""
    size = 4 if family == socket.AF_INET else 16
    if len(record.target) != size or not 0 <= record.port < 1 << 16 or len(record.data) > _LONGEST:
        raise ImageError("the image has impossible data in a UDP socket")


def restore(program: Program, fd: int, family: int, record: Corked) -> None:
    """Have a socket, whose options are set, hold data back."""
    address = End(record.target, record.port).packed(family)
    data = record.data
    call = fd, data, len(data), _flags(record), address, len(address)
    program.may_fail(program.call(SYS.SENDTO, *call))


def missing(descriptor: int, record: Corked) -> str:
    """Say so if a socket of ours doesn't: nothing leads to where they were to go."""
    waiting = bytearray(4)
    fcntl.ioctl(descriptor, _SIOCOUTQ, waiting)
    if any(waiting):
        return ""
    return f"{len(record.data)} bytes that a UDP socket held back can't be sent from here"
