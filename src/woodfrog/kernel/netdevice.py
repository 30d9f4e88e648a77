"""Network devices, as far as ioctl(2) on a socket reaches them."""

from __future__ import annotations

import os
import struct

from woodfrog.kernel.abi.x86_64 import SYS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from woodfrog.kernel.caller import Caller

_AF_INET = 2
_SOCK_DGRAM_CLOEXEC = 2 | 0o2000000
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
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
