"""What few set up in a network namespace, and can't be saved: each is asked for, and refused."""

import struct
from _socket import AF_INET6, inet_pton
from _socket import socket as raw_socket
from collections.abc import Callable, Iterator

from woodfrog.errors import UnsupportedResource
from woodfrog.kernel.netlink import dumps, generic, rtnetlink
from woodfrog.kernel.netlink.messages import NLM_F_ACK, answers, attributes_of, message
from woodfrog.resources import namespaces

_XFRM, _NETFILTER = 6, 12
# linux/if_addrlabel.h; those of RFC 6724 and others that each namespace begins with (net/ipv6).
_NEW_LABEL, _LABEL = 72, struct.Struct("<BxBxI4x")
_LABEL_ADDRESS, _LABEL_NUMBER = 1, 2
_LABELS = {
    (inet_pton(AF_INET6, prefix), length, 0, number)
    for prefix, length, number in (
        ("::", 0, 1),
        ("fc00::", 7, 5),
        ("fec0::", 10, 11),
        ("2002::", 16, 2),
        ("3ffe::", 16, 12),
        ("2001::", 32, 6),
        ("2001:10::", 28, 7),
        ("::ffff:0:0", 96, 4),
        ("::", 96, 3),
        ("::1", 128, 0),
    )
}
_AF_BRIDGE = 7
_NEW_TUNNEL, _TUNNEL_BYTES = 120, 8  # linux/if_link.h: struct tunnel_msg
_GET_DEFAULT, _BLOCK = 0x28, 1  # linux/xfrm.h: struct xfrm_userpolicy_default
_FROM_NEW_TO_GET = 2
# linux/netfilter/nfnetlink.h: subsystems whose message 0 is of an object, and 1 asks for all.
_ACCOUNTS, _TIMEOUTS = 7 << 8, 8 << 8
_SEG6_HMACS, _SEG6_SOURCE, _SEG6_ADDRESS = 2, 4, 1
_IOAM_NAMESPACES, _IOAM_SCHEMAS = 3, 6


def refuse(namespace: int) -> None:
    """Refuse what was set up so in the network namespace that a descriptor names."""
    for protocol, questions in _QUESTIONS.items():
        try:
            with namespaces.within(namespace, "net"):
                netlink = dumps.open_socket(protocol)
        except OSError:
            continue  # not in this kernel
        try:
            for is_set, what, remedy in questions:
                if is_set(netlink):
                    raise UnsupportedResource(
                        f"has {what}, which cannot be saved yet",
                        hint=f"{remedy}, if it can do without",
                    )
        finally:
            netlink.close()
    if _joined_by_hand(namespace):
        raise UnsupportedResource(
            "has network devices that take in packets for groups by hand (ip maddr), which cannot"
            " be saved yet",
            hint="ip maddr del, if it can do without",
        )


def _labels(netlink: raw_socket) -> bool:
    asked = _LABEL.pack(AF_INET6, 0, 0)
    found = set()
    for kind, payload in dumps.messages(dumps.dump(netlink, _NEW_LABEL + _FROM_NEW_TO_GET, asked)):
        if kind == _NEW_LABEL:
            _, length, index = _LABEL.unpack_from(payload)
            told = attributes_of(payload[_LABEL.size :])
            number = int.from_bytes(told[_LABEL_NUMBER], "little")
            found.add((told[_LABEL_ADDRESS], length, index, number))
    return bool(found) and found != _LABELS


def _networks_of_vxlan(netlink: raw_socket) -> bool:
    asked = bytes((_AF_BRIDGE,)).ljust(_TUNNEL_BYTES, b"\0")
    told = dumps.dump(netlink, _NEW_TUNNEL + _FROM_NEW_TO_GET, asked)
    return any(
        kind == _NEW_TUNNEL and len(payload) > _TUNNEL_BYTES
        for kind, payload in dumps.messages(told)
    )


def _blocks(netlink: raw_socket) -> bool:
    netlink.send(message(_GET_DEFAULT, NLM_F_ACK, bytes(3)))
    return any(_BLOCK in payload[:3] for payload in _answered(netlink))


def _objects(subsystem: int) -> Callable[[raw_socket], bool]:
    def ask(netlink: raw_socket) -> bool:
        told = dumps.dump(netlink, subsystem | 1, bytes(4))
        return any(kind == subsystem for kind, _ in dumps.messages(told))

    return ask


def _dumped(name: str, *commands: int) -> Callable[[raw_socket], bool]:
    def ask(netlink: raw_socket) -> bool:
        family = generic.family(netlink, name)
        return family is not None and any(
            kind == family
            for command in commands
            for kind, _ in dumps.messages(dumps.dump(netlink, family, generic.header(command)))
        )

    return ask


def _source_of_segments(netlink: raw_socket) -> bool:
    family = generic.family(netlink, "SEG6")
    if family is None:
        return False
    netlink.send(message(family, NLM_F_ACK, generic.header(_SEG6_SOURCE)))
    return any(
        any(attributes_of(payload[generic.HEADER_BYTES :]).get(_SEG6_ADDRESS, b""))
        for payload in _answered(netlink)
    )


def _answered(netlink: raw_socket) -> Iterator[memoryview]:
    try:
        for _, payload in answers(netlink, "netlink"):
            yield payload
    except OSError:
        return  # not in this kernel


def _joined_by_hand(namespace: int) -> bool:
    try:
        with (
            namespaces.within(namespace, "net"),
            open("/proc/thread-self/net/dev_mcast", encoding="ascii") as file,
        ):
            return any(line.split()[3] != "0" for line in file)
    except FileNotFoundError:
        return False


_Question = tuple[Callable[[raw_socket], bool], str, str]
_QUESTIONS: dict[int, tuple[_Question, ...]] = {
    rtnetlink.NETLINK_ROUTE: (
        (_labels, "labels of addresses other than the usual (ip addrlabel)", "set them back"),
        (_networks_of_vxlan, "a VXLAN that filters networks (bridge vni)", "bridge vni del"),
    ),
    _XFRM: (
        (_blocks, "a policy of IPsec that blocks (ip xfrm policy setdefault)", "set it to accept"),
    ),
    _NETFILTER: (
        (_objects(_ACCOUNTS), "counters of nfacct", "nfacct flush"),
        (_objects(_TIMEOUTS), "time-outs of nfct", "nfct flush timeout"),
    ),
    generic.NETLINK_GENERIC: (
        (_dumped("SEG6", _SEG6_HMACS), "keys of segment routing (ip sr hmac)", "delete them"),
        (_source_of_segments, "a source of segment routing (ip sr tunsrc)", "set it to ::"),
        (
            _dumped("IOAM6", _IOAM_NAMESPACES, _IOAM_SCHEMAS),
            "namespaces or schemas of IOAM (ip ioam)",
            "delete them",
        ),
    ),
}
