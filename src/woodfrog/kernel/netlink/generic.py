"""Generic netlink: families that the kernel gives numbers to as they come."""

from __future__ import annotations

from typing import TYPE_CHECKING

from woodfrog.kernel.netlink.messages import (
    NLM_F_ACK,
    answers,
    attribute,
    attributes_of,
    message,
)

if TYPE_CHECKING:
    import socket
    from _socket import socket as raw_socket

NETLINK_GENERIC = 16
HEADER_BYTES = 4
_CONTROL, _GET_FAMILY = 16, 3  # GENL_ID_CTRL, CTRL_CMD_GETFAMILY
_FAMILY_ID, _FAMILY_NAME = 1, 2
_VERSION = 1


def header(command: int) -> bytes:
    """Return what stands before the attributes of a message."""
    return bytes((command, _VERSION, 0, 0))


def family(netlink: socket.socket | raw_socket, name: str) -> int | None:
    """Return the number that a family has here; None if the kernel lacks it."""
    asked = header(_GET_FAMILY) + attribute(_FAMILY_NAME, name.encode() + b"\0")
    netlink.send(message(_CONTROL, NLM_F_ACK, asked))
    found = None
    try:
        for _, payload in answers(netlink, name):
            told = attributes_of(payload[HEADER_BYTES:]).get(_FAMILY_ID, b"")
            found = int.from_bytes(told, "little")
    except FileNotFoundError:
        return None
    return found
