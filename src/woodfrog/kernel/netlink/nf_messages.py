"""nf_tables' messages (linux/netfilter/nf_tables.h), and all that tell of a ruleset.

Imports little: `start` reads it, too.
"""

from __future__ import annotations

from _socket import socket as raw_socket

from woodfrog.kernel.netlink import dumps

NETLINK_NETFILTER = 12
SUBSYSTEM = 10 << 8
NEW_TABLE, NEW_CHAIN, NEW_RULE, NEW_SET, NEW_ELEMENTS, NEW_OBJECT = 0, 3, 6, 9, 12, 18
NEW_FLOWTABLE = 22
# From a message that makes something to the one that asks for all of its kind.
GET = 1
HEADER_BYTES = 4


def open_socket() -> raw_socket | None:
    """Open a socket in our own network namespace, if the kernel has packet filters."""
    try:
        return dumps.open_socket(NETLINK_NETFILTER)
    except OSError:
        return None


def read_all(netlink: raw_socket | None) -> bytes:
    """Return all messages of a ruleset but those of sets' elements, by a socket where it is."""
    if netlink is None:
        return b""
    kinds = (NEW_TABLE, NEW_CHAIN, NEW_OBJECT, NEW_FLOWTABLE, NEW_SET, NEW_RULE)
    asked = bytes(HEADER_BYTES)
    return b"".join(dumps.dump(netlink, SUBSYSTEM | kind + GET, asked) for kind in kinds)
