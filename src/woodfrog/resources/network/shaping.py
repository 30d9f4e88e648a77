"""Traffic control (tc(8), net/sched of the kernel): queues, their classes, and filters.

All are the kernel's own messages; what one is made in comes before it.
"""

import os
import struct
from _socket import socket
from collections.abc import Iterable, Iterator, Mapping

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.image.record import Part
from woodfrog.kernel.netlink import dumps, rtnetlink
from woodfrog.kernel.netlink.attributes import (
    ANY,
    U16,
    U32,
    Field,
    Layout,
    UnknownKindError,
    Visitor,
    data,
    nest,
    walk,
)
from woodfrog.kernel.netlink.messages import attribute, attributes_of
from woodfrog.resources import namespaces

_HEAD = struct.Struct("<B3xiIII")  # struct tcmsg: family, device, handle, parent, what is told
_KIND, _OPTIONS, _RATE, _STAB, _CHAIN = 1, 2, 5, 8, 11
_BLOCKS = 13, 14  # filters that several queues share
_ROOT, _INGRESS, _SIDES = 0xFFFFFFFF, 0xFFFFFFF1, (0xFFFFFFF2, 0xFFFFFFF3)
_MAJOR = 0xFFFF0000
_HTB_INIT, _HTB_VERSION, _HTB_DIRECT_PACKETS = 2, slice(0, 4), slice(16, 20)
_BPF_OPERATIONS = 5
_U32_DIVISOR, _U32_FIRST_ROOT, _U32_TABLE = 4, 0x800, 20
_NAME = data(16, 1)
_MOST_OPERATIONS = 8 * 4096

_QUEUES: Mapping[str, Field | None] = {
    "bfifo": U32,
    "clsact": None,
    "fq_codel": nest({ANY: U32}),
    "htb": nest({_HTB_INIT: data(20, 20), 5: U32, ANY: None}),
    "ingress": None,
    "mq": None,
    "pfifo": U32,
    "pfifo_head_drop": U32,
    "prio": data(20, 20),
    "tbf": nest({1: data(36, 36), 4: data(8, 8), 5: data(8, 8), ANY: None}),
}
_CLASSES: Mapping[str, Field | None] = {
    "htb": nest({1: data(44, 44), 6: data(8, 8), 7: data(8, 8), ANY: None}),
}
# Those of the only kind of action: index, what it does, device (struct tc_mirred).
_MIRRED: Layout = {2: Field(28, 28, index_at=24), ANY: None}
_ACTION: Layout = {1: _NAME, 2: Field(kinds={b"mirred": _MIRRED}), 6: data(16), ANY: None}
_ACTIONS = nest({ANY: nest(_ACTION)})
_FILTERS: Mapping[str, Field | None] = {
    "bpf": nest({1: _ACTIONS, 3: U32, 4: U16, 5: data(_MOST_OPERATIONS), ANY: None}),
    "u32": nest(
        {
            1: U32,  # class
            2: U32,  # hash table
            3: U32,  # another one to go on with
            _U32_DIVISOR: U32,
            5: data(16 + 16 * 128, 16),
            7: _ACTIONS,
            8: data(16),  # device
            10: data(12, 12),  # mark
            ANY: None,
        }
    ),
}
_KINDS = {
    rtnetlink.NEW_QDISC: ("queue", _QUEUES),
    rtnetlink.NEW_CLASS: ("class of a queue", _CLASSES),
    rtnetlink.NEW_FILTER: ("filter", _FILTERS),
}


class Shaper(Part, frozen=True):
    """A queue, class or filter: what makes it, struct tcmsg, and attributes."""

    message: int
    header: bytes
    attributes: bytes

    @property
    def index(self) -> int:
        """The device's."""
        return int(_HEAD.unpack(self.header)[1])

    @property
    def handle(self) -> int:
        """What it is known by."""
        return int(_HEAD.unpack(self.header)[2])

    @property
    def parent(self) -> int:
        """What it is made in."""
        return int(_HEAD.unpack(self.header)[3])

    @property
    def kind(self) -> str:
        """Its kind, as tc(8) has it."""
        return _kind(attributes_of(memoryview(self.attributes)))

    def moved(self, indexes: Mapping[int, int]) -> bytes:
        """Return the payload of the message for another container."""
        family, index, *rest = _HEAD.unpack(self.header)
        visitor = Visitor(indexes.__getitem__, _impossible)
        return _HEAD.pack(family, indexes[index], *rest) + walk(
            self.attributes, _layout(self.message, self.kind), visitor
        )

    def devices(self) -> set[int]:
        """Return the indexes of the devices that it has to do with."""
        found = {self.index}

        def note(index: int) -> int:
            found.add(index)
            return index

        walk(self.attributes, _layout(self.message, self.kind), Visitor(note, lambda _: None))
        return found


def collect(namespace: int, queues: Iterable[bytes], indexes: set[int]) -> list[Shaper]:
    """Return what shapes traffic at some devices; `queues` are the kernel's messages of all."""
    made = [
        one
        for one in (_shaper(rtnetlink.NEW_QDISC, payload) for payload in queues)
        if one.index in indexes and one.handle
    ]
    if not made:
        return []
    with namespaces.within(namespace, "net"):
        netlink = dumps.open_socket(rtnetlink.NETLINK_ROUTE)
    try:
        filters = []
        for index in sorted({one.index for one in made}):
            queues_here = [one for one in made if one.index == index]
            classes = [
                one
                for one in _dumped(netlink, rtnetlink.NEW_CLASS, index, 0)
                if one.kind in _CLASSES
            ]
            made += classes
            parents = [one.handle for one in (*queues_here, *classes)]
            if any(one.kind == "clsact" for one in queues_here):
                parents += _SIDES
            for parent in parents:
                filters += _in_order(list(_dumped(netlink, rtnetlink.NEW_FILTER, index, parent)))
    finally:
        netlink.close()
    return [*_parents_first(made), *filters]


def _dumped(netlink: socket, message: int, index: int, parent: int) -> Iterator[Shaper]:
    asked = _HEAD.pack(0, index, 0, parent, 0)
    told = dumps.dump(netlink, message + rtnetlink.FROM_NEW_TO_GET, asked)
    for kind, payload in dumps.messages(told):
        if kind == message:
            yield _shaper(message, bytes(payload))


def _shaper(message: int, payload: bytes) -> Shaper:
    family, index, handle, parent, told = _HEAD.unpack_from(payload)
    attributes = attributes_of(memoryview(payload)[_HEAD.size :])
    kind = _kind(attributes)
    what, layouts = _KINDS[message]
    if message == rtnetlink.NEW_QDISC and not handle:
        return Shaper(message=message, header=payload[: _HEAD.size], attributes=b"")
    if message == rtnetlink.NEW_CLASS and kind not in layouts:
        # What its queue has by itself.
        attributes = {_KIND: attributes[_KIND]}
    elif kind not in layouts or attributes.keys() & {_RATE, _STAB, *_BLOCKS}:
        raise UnsupportedResource(
            f"has a {what} of the kind {kind} (tc), or with estimators, size tables or shared"
            " blocks, which cannot be saved yet",
            hint="tc qdisc del dev … root (or ingress, clsact), if it can do without",
        )
    options = attributes.get(_OPTIONS, b"")
    if kind == "htb" and message == rtnetlink.NEW_QDISC:
        options = _htb(options)
    if kind == "bpf" and handle and _BPF_OPERATIONS not in attributes_of(memoryview(options)):
        raise UnsupportedResource(
            "has a filter (tc) that is an eBPF program, which cannot be saved"
        )
    kept = attribute(_KIND, attributes[_KIND]) + attribute(_OPTIONS, options)
    if _CHAIN in attributes:
        kept += attribute(_CHAIN, attributes[_CHAIN])
    if message != rtnetlink.NEW_FILTER:
        told = 0
    visitor = Visitor(lambda index: index, lambda number: None)
    try:
        cleaned = walk(kept, _layout(message, kind), visitor)
    except UnknownKindError as error:
        raise UnsupportedResource(
            f"has a filter (tc) with the action {error}, which cannot be saved yet"
        ) from None
    header = _HEAD.pack(family, index, handle, parent, told)
    return Shaper(message=message, header=header, attributes=cleaned)


def _htb(options: bytes) -> bytes:
    """Return the options of an htb as they are set: without the packets that it has let pass."""
    found = b""
    for number, value in attributes_of(memoryview(options)).items():
        changed = bytearray(value)
        if number == _HTB_INIT:
            changed[_HTB_DIRECT_PACKETS] = bytes(4)
            # Told whole, it is set as its upper half (htb_init).
            changed[_HTB_VERSION] = struct.pack("<I", struct.unpack_from("<I", value)[0] >> 16)
        found += attribute(number, bytes(changed))
    return found


def _in_order(filters: list[Shaper]) -> list[Shaper]:
    """Order the filters of one parent so that they get the numbers again that they have.

    The first table of each priority of u32 gets the next number from 0x800 on (gen_new_htid), with
    the first filter of that priority.
    """
    others = [one for one in filters if one.kind != "u32" and one.handle]
    ours = [one for one in filters if one.kind == "u32" and one.handle]
    roots: dict[int, list[bytes]] = {}
    for one in ours:
        if _is_table(one) and one.handle >> _U32_TABLE >= _U32_FIRST_ROOT:
            roots.setdefault(one.handle >> _U32_TABLE, []).append(one.header[16:])
    priorities = [header for number in sorted(roots) for header in roots[number]]
    if sorted(roots) != list(range(_U32_FIRST_ROOT, _U32_FIRST_ROOT + len(priorities))) or (
        len(set(priorities)) < len(priorities)
    ):
        raise UnsupportedResource(
            "has filters (tc, u32) with hash tables whose numbers the kernel chose after others had"
            " gone, or beside others, which cannot be saved yet"
        )
    kept = [one for one in ours if not _is_table(one) or one.handle >> _U32_TABLE < _U32_FIRST_ROOT]
    kept.sort(key=lambda one: (priorities.index(one.header[16:]), not _is_table(one)))
    return others + kept


def _is_table(one: Shaper) -> bool:
    return not one.handle & ((1 << _U32_TABLE) - 1)


def _parents_first(shapers: list[Shaper]) -> list[Shaper]:
    """Order queues and classes so that each comes after what it is made in."""
    found: list[Shaper] = []
    there: set[tuple[int, int]] = set()
    classful = {(one.index, one.handle) for one in shapers if one.kind in _CLASSES}
    while shapers:
        ready = [one for one in shapers if _has_place(one, there, classful)]
        if not ready:
            raise UnsupportedResource("has queues (tc) that belong to none, which cannot be saved")
        found += ready
        there |= {(one.index, one.handle) for one in ready}
        shapers = [one for one in shapers if one not in ready]
    return found


def _has_place(one: Shaper, there: set[tuple[int, int]], classful: set[tuple[int, int]]) -> bool:
    queue = (one.index, (one.handle if one.message == rtnetlink.NEW_CLASS else one.parent) & _MAJOR)
    if one.parent in (_ROOT, _INGRESS):
        return one.message == rtnetlink.NEW_QDISC or queue in there
    if queue in classful:
        return (one.index, one.parent) in there
    return queue in there


def check(shapers: Iterable[Shaper], same: Mapping[int, int]) -> None:
    """Check what an image has of it; `same` are the indexes of its devices."""
    for one in shapers:
        if one.message not in _KINDS or len(one.header) != _HEAD.size:
            raise ImageError("the image has impossible traffic control")
        try:
            if one.kind not in _KINDS[one.message][1]:
                raise ImageError(f"the image has traffic control of an impossible kind, {one.kind}")
            one.moved(same)
        except (ValueError, KeyError) as error:
            raise ImageError(f"the image has impossible traffic control: {error}") from error


def _kind(attributes: Mapping[int, bytes]) -> str:
    return attributes.get(_KIND, b"").rstrip(b"\0").decode(errors="replace")


def _layout(message: int, kind: str) -> Layout:
    return {_KIND: _NAME, _OPTIONS: _KINDS[message][1].get(kind), _CHAIN: U32, ANY: None}


def _impossible(number: int) -> None:
    raise ValueError(f"an attribute {number}")


def explained(one: Shaper, name: bytes) -> str:
    """Say what something is, for an error."""
    what = _KINDS[one.message][0]
    return f"making a {what} ({one.kind}) of the network device {os.fsdecode(name)}"
