"""Network devices, as far as ioctl(2) on a socket reaches them."""

from __future__ import annotations

import fcntl
import os
import struct

from woodfrog.kernel.abi.x86_64 import SYS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from woodfrog.kernel.caller import Caller

_AF_INET = 2
_SOCK_DGRAM_CLOEXEC = 2 | 0o2000000
_SIOCGIFNAME, _SIOCGIFINDEX = 0x8910, 0x8933
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_SIOCGIFADDR = 0x8915
_IFF_UP = 1


def set_up(on: Caller, name: str) -> None:
    """Switch a network device on."""
    socket = on.call(SYS.SOCKET, _AF_INET, _SOCK_DGRAM_CLOEXEC, 0)
    try:
        request = bytearray(struct.pack("16sh22x", name.encode(), 0))
        on.call(SYS.IOCTL, socket, _SIOCGIFFLAGS, request)
        (flags,) = struct.unpack_from("h", request, 16)
        struct.pack_into("h", request, 16, flags | _IFF_UP)
        on.call(SYS.IOCTL, socket, _SIOCSIFFLAGS, request)
    finally:
        os.close(socket)


def is_up(socket: int, name: bytes) -> bool:
    """Tell whether a device in the network namespace of a socket is there and switched on."""
    request = bytearray(struct.pack("15sxh22x", name, 0))
    try:
        fcntl.ioctl(socket, _SIOCGIFFLAGS, request)
    except OSError:
        return False
    (flags,) = struct.unpack_from("h", request, 16)
    return bool(flags & _IFF_UP)


def name_of(socket: int, number: int) -> bytes:
    """Return the name of a device in the network namespace of a socket; empty if it has none."""
    request = bytearray(struct.pack("16si20x", b"", number))
    try:
        fcntl.ioctl(socket, _SIOCGIFNAME, request)
    except OSError:
        return b""
    return bytes(request[:16]).partition(b"\0")[0]


def number_of(socket: int, name: bytes) -> int:
    """Return the number of a device in the network namespace of a socket; 0 if there is none."""
    request = bytearray(struct.pack("15sxi20x", name, 0))
    try:
        fcntl.ioctl(socket, _SIOCGIFINDEX, request)
    except OSError:
        return 0
    return int.from_bytes(request[16:20], "little")


def address_of(socket: int, name: bytes) -> bytes:
    """Return a device's first IPv4 address in the network namespace of a socket; empty if none."""
    request = bytearray(struct.pack("15sxH22x", name, _AF_INET))
    try:
        fcntl.ioctl(socket, _SIOCGIFADDR, request)
    except OSError:
        return b""
    return bytes(request[20:24])
