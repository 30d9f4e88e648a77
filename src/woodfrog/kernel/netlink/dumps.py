"""netlink(7): all that the kernel tells of something, as its own messages.

Imports little: `start` reads, too.
"""

from __future__ import annotations

import os
import struct
from _socket import AF_NETLINK, SOCK_CLOEXEC, SOCK_RAW
from _socket import socket as raw_socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_ERROR, _DONE = 2, 3
# What a kernel answers that lacks it: EINVAL of netfilter, EOPNOTSUPP, EAFNOSUPPORT.
_LACKING = (22, 95, 97)
_HEADER = struct.Struct("<IHHII")  # length, type, flags, sequence, port


def open_socket(protocol: int) -> raw_socket:
    """Open a socket in our own network namespace; raises OSError if the kernel lacks it."""
    return raw_socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol)


def dump(netlink: raw_socket, kind: int, header: bytes) -> bytes:
    """Return the answers to a request for all; nothing, if the kernel has no such thing."""
    flags = _NLM_F_REQUEST | _NLM_F_DUMP
    netlink.send(_HEADER.pack(_HEADER.size + len(header), kind, flags, 1, 0) + header)
    found = []
    while True:
        data = netlink.recv(1 << 18)
        found.append(data)
        for answer, payload in messages(data):
            if answer == _DONE:
                return b"".join(found)
            if answer == _ERROR:
                error = -struct.unpack_from("<i", payload)[0]
                if error in (0, *_LACKING):
                    return b"".join(found)
                raise OSError(error, f"netlink: {os.strerror(error)}")


def messages(data: bytes) -> Iterator[tuple[int, memoryview]]:
    """Yield type and payload of each message; the ends of dumps are among them."""
    view = memoryview(data)
    while len(view) >= _HEADER.size:
        length, kind, _, _, _ = _HEADER.unpack_from(view)
        if length < _HEADER.size:
            return
        yield kind, view[_HEADER.size : length]
        view = view[(length + 3) & ~3 :]
