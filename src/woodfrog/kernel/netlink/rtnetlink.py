"""rtnetlink(7): what a network namespace is set up with, as the kernel's own messages.

Imports little: `start` reads it, too.
"""

from __future__ import annotations

import os
import struct
from _socket import AF_BRIDGE, AF_INET, AF_INET6, AF_NETLINK, SOCK_CLOEXEC, SOCK_RAW
from _socket import socket as raw_socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

NEW_LINK, DELETE_LINK, SET_LINK = 16, 17, 19
NEW_ADDRESS, DELETE_ADDRESS = 20, 21
NEW_ROUTE, DELETE_ROUTE = 24, 25
NEW_NEIGHBOUR = 28
NEW_RULE, DELETE_RULE = 32, 33
NEW_QDISC = 36
NEW_NEXT_HOP = 104
NEW_LINK_PROPERTY = 108
NTF_PROXY = 0x08

_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_ERROR, _DONE = 2, 3
_HEADER = struct.Struct("<IHHII")  # length, type, flags, sequence, port
_FROM_NEW_TO_GET = 2
_IFLA_EXT_MASK, _RTEXT_FILTER_SKIP_STATS = 29, 8
_LINKS = struct.pack("<16xHHI", 8, _IFLA_EXT_MASK, _RTEXT_FILTER_SKIP_STATS)
# What is asked for, with the family's header of each kind.
_DUMPS = (
    (NEW_LINK, _LINKS),
    (NEW_ADDRESS, bytes(8)),
    (NEW_NEXT_HOP, bytes(8)),
    *((NEW_ROUTE, bytes((family,)).ljust(12, b"\0")) for family in (AF_INET, AF_INET6)),
    *((NEW_RULE, bytes((family,)).ljust(12, b"\0")) for family in (AF_INET, AF_INET6)),
    (NEW_NEIGHBOUR, bytes(12)),
    (NEW_NEIGHBOUR, struct.pack("<10xBx", NTF_PROXY)),
    (NEW_NEIGHBOUR, bytes((AF_BRIDGE,)).ljust(12, b"\0")),
    (NEW_QDISC, bytes(20)),
)


def open_socket() -> raw_socket:
    """Open a socket in our own network namespace."""
    return raw_socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0)


def read_all(netlink: raw_socket) -> bytes:
    """Return all messages that say how a network namespace is set up, by a socket in it."""
    return b"".join(_dump(netlink, kind, header) for kind, header in _DUMPS)


def _dump(netlink: raw_socket, kind: int, header: bytes) -> bytes:
    length = _HEADER.size + len(header)
    flags = _NLM_F_REQUEST | _NLM_F_DUMP
    netlink.send(_HEADER.pack(length, kind + _FROM_NEW_TO_GET, flags, 1, 0) + header)
    found = []
    while True:
        data = netlink.recv(1 << 18)
        found.append(data)
        for answer, payload in messages(data):
            if answer == _DONE:
                return b"".join(found)
            if answer == _ERROR:
                error = -struct.unpack_from("<i", payload)[0]
                # A kernel that lacks the family (EOPNOTSUPP, EAFNOSUPPORT) has nothing of it.
                if error in (0, 95, 97):
                    return b"".join(found)
                raise OSError(error, f"rtnetlink: {os.strerror(error)}")


def messages(data: bytes) -> Iterator[tuple[int, memoryview]]:
    """Yield type and payload of each message; the ends of dumps are among them."""
    view = memoryview(data)
    while len(view) >= _HEADER.size:
        length, kind, _, _, _ = _HEADER.unpack_from(view)
        if length < _HEADER.size:
            return
        yield kind, view[_HEADER.size : length]
        view = view[(length + 3) & ~3 :]
