"""rtnetlink(7): a network device moved into another network namespace, with its addresses."""

import socket
import struct

import msgspec

from woodfrog.kernel.netlink.messages import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    answers,
    attribute,
    attributes_of,
    message,
    socket_at,
)

_ROUTE = socket.AF_NETLINK, socket.SOCK_RAW, 0
_RTM_NEWLINK, _RTM_GETLINK, _RTM_NEWADDR, _RTM_GETADDR = 16, 18, 20, 22
_NLM_F_REPLACE = 0x100
_IFLA_IFNAME, _IFLA_NET_NS_FD = 3, 28
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS = 1, 2, 4, 8
_IFA_F_PERMANENT = 0x80
_IFF_UP = 1
_SCOPE_GLOBAL = 0
_LINK = struct.Struct("<BxHiII")  # ifinfomsg: family, type, index, flags, which of them change
_ADDRESS = struct.Struct("<4Bi")  # ifaddrmsg: family, prefix length, flags, scope, index


class _Address(msgspec.Struct, frozen=True):
    family: int
    prefix: int
    attributes: dict[int, bytes]


def move(name: str, source: int, target: int, new_name: str) -> None:
    """Move a device from one network namespace into another, both given as descriptors.

    There it has another name, the lasting global addresses that it had, and is switched on.
    """
    with socket_at(source, *_ROUTE) as netlink:
        index = _index(netlink, name)
        addresses = _addresses(netlink, index)
        link = _LINK.pack(0, 0, index, 0, 0)
        link += attribute(_IFLA_NET_NS_FD, struct.pack("<I", target))
        link += attribute(_IFLA_IFNAME, new_name.encode() + b"\0")
        _change(netlink, message(_RTM_NEWLINK, NLM_F_ACK, link), f"moving {name}")
    with socket_at(target, *_ROUTE) as netlink:
        index = _index(netlink, new_name)
        for one in addresses:
            body = _ADDRESS.pack(one.family, one.prefix, 0, _SCOPE_GLOBAL, index)
            body += b"".join(attribute(kind, value) for kind, value in one.attributes.items())
            flags = NLM_F_ACK | NLM_F_CREATE | _NLM_F_REPLACE
            _change(netlink, message(_RTM_NEWADDR, flags, body), f"setting {new_name}'s addresses")
        on = _LINK.pack(0, 0, index, _IFF_UP, _IFF_UP)
        _change(netlink, message(_RTM_NEWLINK, NLM_F_ACK, on), f"switching {new_name} on")


def _change(netlink: socket.socket, request: bytes, what: str) -> None:
    netlink.sendall(request)
    for _ in answers(netlink, what):
        pass


def _index(netlink: socket.socket, name: str) -> int:
    body = _LINK.pack(0, 0, 0, 0, 0) + attribute(_IFLA_IFNAME, name.encode() + b"\0")
    netlink.sendall(message(_RTM_GETLINK, NLM_F_ACK, body))
    index = 0
    for _, payload in answers(netlink, f"looking for the network device {name}"):
        index = _LINK.unpack_from(payload)[2]
    return index


def _addresses(netlink: socket.socket, index: int) -> list[_Address]:
    netlink.sendall(message(_RTM_GETADDR, NLM_F_DUMP, _ADDRESS.pack(0, 0, 0, 0, 0)))
    found = []
    for _, payload in answers(netlink, "reading addresses"):
        family, prefix, _, scope, device = _ADDRESS.unpack_from(payload)
        if device != index or scope != _SCOPE_GLOBAL:
            continue
        attributes = attributes_of(payload[_ADDRESS.size :])
        flags = int.from_bytes(attributes.get(_IFA_FLAGS, b""), "little")
        if flags & _IFA_F_PERMANENT:
            kept = (_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS)
            chosen = {kind: value for kind, value in attributes.items() if kind in kept}
            found.append(_Address(family, prefix, chosen))
    return found
