"""Connections that the kernel tracks for packet filters (conntrack), by ctnetlink.

The messages that tell of them are nearly those that make them. NAT is told by the addresses of the
way back alone, and has to be asked for (linux/netfilter/nfnetlink_conntrack.h).
"""

import os
import socket
import struct
from collections.abc import Iterator

from woodfrog.errors import ImageError
from woodfrog.image.record import Part, Record
from woodfrog.kernel.netlink import dumps, nf_messages
from woodfrog.kernel.netlink.attributes import U8, U16, U32, Layout, Visitor, data, nest, walk
from woodfrog.kernel.netlink.messages import (
    NLM_F_ACK,
    NLM_F_CREATE,
    answers,
    attribute,
    attributes_of,
    message,
    nested,
)
from woodfrog.resources import namespaces

_MOST = 1 << 20
_CONNECTIONS, _EXPECTATIONS = 1 << 8, 2 << 8
_NEW, _GET = 0, 1
_ORIGINAL, _REPLY, _STATUS, _STATE, _NAT_SOURCE, _NAT_TARGET, _MASTER = 1, 2, 3, 4, 6, 13, 14
_IP, _PROTOCOL = 1, 2
_SEEN_REPLY, _ASSURED, _CONFIRMED, _SOURCE_NAT, _TARGET_NAT = 2, 4, 8, 1 << 4, 1 << 5
_STATE_TCP, _FLAGS = 1, (4, 5)
# In a tuple, what becomes of each attribute on the way back.
_TURNED_IP = {1: 2, 2: 1, 3: 4, 4: 3}
_TURNED_PORTS = {2: 3, 3: 2}
_ICMP_TYPE, _ICMPV6_TYPE = 5, 8
_TURNED_TYPES = {8: 0, 0: 8, 13: 14, 14: 13, 15: 16, 16: 15, 17: 18, 18: 17, 128: 129, 129: 128}
# EEXIST; EOPNOTSUPP, EBUSY: one that is there can't get another NAT or state.
_ALREADY_THERE = (17, 95, 16)

_TUPLE: Layout = {
    _IP: nest({1: U32, 2: U32, 3: data(16, 16), 4: data(16, 16)}),
    _PROTOCOL: nest({1: U8, 2: U16, 3: U16, 4: U16, 5: U8, 6: U8, 7: U16, 8: U8, 9: U8}),
    3: U16,
}
_ADJUSTED = nest({1: U32, 2: U32, 3: U32})
_CONNECTION: Layout = {
    _ORIGINAL: nest(_TUPLE),
    _REPLY: nest(_TUPLE),
    _STATUS: U32,
    _STATE: nest(
        {
            _STATE_TCP: nest({1: U8, 2: U8, 3: U8, 4: data(2, 2), 5: data(2, 2)}),
            2: nest({1: U8, 2: U8, 3: data(8, 8)}),
            3: nest({1: U8, 2: U32, 3: U32}),
        }
    ),
    5: nest({1: data(16), 2: data(4096)}),  # the helper
    7: U32,  # the time left
    8: U32,  # the mark
    _MASTER: nest(_TUPLE),
    15: _ADJUSTED,
    16: _ADJUSTED,
    18: U16,  # the zone
    22: data(16, 16),  # labels
    24: _ADJUSTED,  # synproxy
    # Counters, uses, ids, marks and contexts of security, times.
    **dict.fromkeys((9, 10, 11, 12, 17, 19, 20)),
}
_EXPECTATION: Layout = {
    **dict.fromkeys((1, 2, 3), nest(_TUPLE)),  # the master, what is expected, a mask
    4: U32,
    5: None,
    6: data(16),
    7: U16,
    8: U32,
    9: U32,
    10: nest({1: U32, 2: nest(_TUPLE)}),
    11: data(64),
}
_LAYOUTS = {_CONNECTIONS: _CONNECTION, _EXPECTATIONS: _EXPECTATION}


class Entry(Part, frozen=True):
    """A connection (or what is expected to be one), as its attributes."""

    expected: bool
    family: int
    attributes: bytes


class Tracked(Record, frozen=True, tag="conntrack"):
    """What the kernel tracks in a network namespace."""

    entries: list[Entry]


def collect(namespace: int) -> Tracked | None:
    """Return what is tracked in a network namespace, None if that is nothing."""
    with namespaces.within(namespace, "net"):
        netlink = nf_messages.open_socket()
    if netlink is None:
        return None
    try:
        entries = [
            Entry(expected=kind == _EXPECTATIONS, family=payload[0], attributes=attributes)
            for kind in _LAYOUTS
            for payload, attributes in _read(dumps.dump(netlink, kind | _GET, bytes(4)), kind)
        ]
    finally:
        netlink.close()
    return Tracked(entries=entries) if entries else None


def _read(told: bytes, kind: int) -> Iterator[tuple[memoryview, bytes]]:
    visitor = Visitor(lambda index: index, lambda _: None)
    for answer, payload in dumps.messages(told):
        if answer == kind | _NEW:
            yield payload, walk(payload[nf_messages.HEADER_BYTES :], _LAYOUTS[kind], visitor)


def check(tracked: Tracked) -> None:
    """Check that an image has nothing in its connections but what layouts know."""

    def unknown(number: int) -> None:
        raise ImageError(f"the image has an impossible attribute of conntrack, {number}")

    if len(tracked.entries) > _MOST:
        raise ImageError("the image has endless tracked connections")
    for one in tracked.entries:
        if one.family not in (socket.AF_INET, socket.AF_INET6):
            raise ImageError("the image has a tracked connection of an impossible family")
        layout = _LAYOUTS[_EXPECTATIONS if one.expected else _CONNECTIONS]
        try:
            walk(one.attributes, layout, Visitor(lambda index: index, unknown))
            if not one.expected:
                _made(one)
        except (ValueError, KeyError, struct.error) as error:
            raise ImageError(f"the image has an impossible tracked connection: {error}") from error


def restore(netlink: socket.socket, tracked: Tracked) -> list[str]:
    """Have connections be tracked, by a socket that has the container's own rights.

    Returns what could not be made, for people to know; what the kernel tracks by itself by now is
    no such thing.
    """
    failed: dict[int, int] = {}
    # One that was expected needs its master, and what is expected needs one, too.
    for kind in (
        [one for one in tracked.entries if not one.expected and not _has_master(one)],
        [one for one in tracked.entries if not one.expected and _has_master(one)],
        [one for one in tracked.entries if one.expected],
    ):
        for one in kind:
            if (error := _make(netlink, one)) not in (0, *_ALREADY_THERE):
                failed[error] = failed.get(error, 0) + 1
    return [
        f"{count} connections are not tracked any more (conntrack): {os.strerror(error)}"
        for error, count in failed.items()
    ]


def _has_master(entry: Entry) -> bool:
    return _MASTER in attributes_of(memoryview(entry.attributes))


def _make(netlink: socket.socket, entry: Entry) -> int:
    """Make an entry; returns the number of an error, or 0."""
    kind = _EXPECTATIONS if entry.expected else _CONNECTIONS
    made = entry.attributes if entry.expected else _made(entry)
    request = bytes((entry.family, 0, 0, 0)) + made
    netlink.sendall(message(kind | _NEW, NLM_F_ACK | NLM_F_CREATE, request))
    try:
        list(answers(netlink, "conntrack"))
    except OSError as error:
        return error.errno or 0
    return 0


def _made(entry: Entry) -> bytes:
    """Return the attributes that make a connection."""
    found = attributes_of(memoryview(entry.attributes))
    plain = {number & 0x3FFF: value for number, value in found.items()}
    status = int.from_bytes(plain.pop(_STATUS, bytes(4)), "big")
    made = []
    reply = plain[_REPLY]
    if status & (_SOURCE_NAT | _TARGET_NAT):
        # The kernel makes the way back of this, and of where it leads really.
        plain[_REPLY] = _turned(plain[_ORIGINAL])
        for flag, number, end in ((_SOURCE_NAT, _NAT_SOURCE, 1), (_TARGET_NAT, _NAT_TARGET, 0)):
            if status & flag:
                made.append(_nat(number, reply, end))
    if _STATE in plain:
        plain[_STATE] = _with_masks(plain[_STATE])
    lasting = status & (_SEEN_REPLY | _ASSURED) | _CONFIRMED
    made.append(attribute(_STATUS, struct.pack(">I", lasting)))
    for number, value in plain.items():
        inner = _CONNECTION[number]
        is_nest = inner is not None and inner.inner is not None
        made.append(attribute(number | (0x8000 if is_nest else 0), value))
    return b"".join(made)


def _inner(value: bytes) -> dict[int, bytes]:
    return {n & 0x3FFF: found for n, found in attributes_of(memoryview(value)).items()}


def _turned(way: bytes) -> bytes:
    """Return the tuple of the way back."""
    parts = _inner(way)
    ip = {_TURNED_IP[number]: value for number, value in _inner(parts[_IP]).items()}
    protocol = {_TURNED_PORTS.get(n, n): value for n, value in _inner(parts[_PROTOCOL]).items()}
    for number in (_ICMP_TYPE, _ICMPV6_TYPE):
        if number in protocol:
            kind = protocol[number][0]
            protocol[number] = bytes((_TURNED_TYPES.get(kind, kind),))
    turned = [
        nested(kind, *(attribute(number, found[number]) for number in sorted(found)))
        for kind, found in ((_IP, ip), (_PROTOCOL, protocol))
    ]
    rest = (attribute(n, found) for n, found in parts.items() if n not in (_IP, _PROTOCOL))
    return b"".join((*turned, *rest))


def _nat(number: int, reply: bytes, end: int) -> bytes:
    """Return where one end is turned to: on the way back, that is its source (0) or target (1)."""
    parts = _inner(reply)
    ip, protocol = _inner(parts[_IP]), _inner(parts[_PROTOCOL])
    made = []
    for least, most, source in ((1, 2, 1), (4, 5, 3)):
        if source + end in ip:
            address = ip[source + end]
            made += [attribute(least, address), attribute(most, address)]
    # Of ICMP, the number is in the place of both ports.
    port = protocol.get(2 + end) or protocol.get(4) or protocol.get(7)
    if port is not None:
        made.append(nested(3, attribute(1, port), attribute(2, port)))
    return nested(number, *made)


def _with_masks(state: bytes) -> bytes:
    """Return the state of a protocol with flags that are set: they are told without a mask."""
    made = []
    for number, value in _inner(state).items():
        inner = _inner(value)
        if number == _STATE_TCP:
            for flags in _FLAGS:
                if flags in inner:
                    inner[flags] = inner[flags][:1] + b"\xff"
        made.append(nested(number, *(attribute(n, v) for n, v in inner.items())))
    return b"".join(made)
