"""rtnetlink(7): what a network namespace is set up with, as the kernel's own messages.

Imports little: `start` reads it, too.
"""

from __future__ import annotations

import struct
from _socket import AF_BRIDGE, AF_INET, AF_INET6
from _socket import socket as raw_socket

from woodfrog.kernel.netlink import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass

NETLINK_ROUTE = 0
NEW_LINK = 16
NEW_ADDRESS = 20
NEW_ROUTE, DELETE_ROUTE = 24, 25
NEW_NEIGHBOUR = 28
NEW_RULE = 32
NEW_QDISC, NEW_CLASS, NEW_FILTER = 36, 40, 44
NEW_NEXT_HOP = 104
NEW_LINK_PROPERTY = 108
NTF_PROXY = 0x08

FROM_NEW_TO_GET = 2
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


def read_all(netlink: raw_socket) -> bytes:
    """Return all messages that say how a network namespace is set up, by a socket in it."""
    return b"".join(dumps.dump(netlink, kind + FROM_NEW_TO_GET, what) for kind, what in _DUMPS)
