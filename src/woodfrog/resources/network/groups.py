"""Lasting members of multicast groups at the ports of bridges (bridge mdb … permanent)."""

import struct
from collections.abc import Iterator, Mapping

from woodfrog.errors import ImageError
from woodfrog.image.record import Part
from woodfrog.kernel.netlink import dumps, rtnetlink
from woodfrog.kernel.netlink.attributes import ANY, U8, Layout, Visitor, data, nest, walk
from woodfrog.kernel.netlink.messages import attribute, attributes_of, each_attribute, nested
from woodfrog.resources import namespaces

# linux/if_bridge.h
NEW_GROUP, _GET_GROUP = 84, 86
_AF_BRIDGE = 7
_PORT = struct.Struct("<B3xI")  # struct br_port_msg: family, the bridge
_ENTRY = struct.Struct("<IBBH16sH2x")  # struct br_mdb_entry: port, state, flags, VLAN, address
_GROUPS, _LIST, _ONE = 1, 1, 1
_PERMANENT = 1
_SET_ENTRY, _SET_ATTRIBUTES = 1, 2
# As they are told, and as they are set: sources, whether those are all or none, the source of
# which it is a member, who has made it.
_TOLD_AS = {4: 1, 2: 2, 3: 3, 5: 4}
_ADDRESS = data(16, 4)
_LAYOUT: Layout = {
    1: _ADDRESS,
    2: nest({ANY: nest({1: _ADDRESS, ANY: None})}),
    3: U8,
    4: U8,
}
_MOST = 1 << 16


class MulticastGroup(Part, frozen=True):
    """A member of a group: struct br_mdb_entry without its port, which may be the bridge itself."""

    bridge: int
    port: int
    vlan: int
    address: bytes
    protocol: int
    attributes: bytes

    def moved(self, indexes: Mapping[int, int]) -> bytes:
        """Return the message that makes it in another container."""
        port = indexes[self.port]
        entry = _ENTRY.pack(port, _PERMANENT, 0, self.vlan, self.address, self.protocol)
        found = _PORT.pack(_AF_BRIDGE, indexes[self.bridge]) + attribute(_SET_ENTRY, entry)
        return found + (nested(_SET_ATTRIBUTES, self.attributes) if self.attributes else b"")

    @property
    def devices(self) -> set[int]:
        """The indexes of its bridge and port."""
        return {self.bridge, self.port}


def collect(namespace: int, bridges: set[int]) -> list[MulticastGroup]:
    """Return those that last, of some bridges in the network namespace of a descriptor."""
    if not bridges:
        return []
    with namespaces.within(namespace, "net"):
        netlink = dumps.open_socket(rtnetlink.NETLINK_ROUTE)
    try:
        told = dumps.dump(netlink, _GET_GROUP, _PORT.pack(_AF_BRIDGE, 0))
    finally:
        netlink.close()
    found: list[MulticastGroup] = []
    for kind, payload in dumps.messages(told):
        if kind in (NEW_GROUP, _GET_GROUP):
            _, bridge = _PORT.unpack_from(payload)
            if bridge in bridges:
                found += _members(bridge, payload[_PORT.size :])
    return found


def _members(bridge: int, told: memoryview) -> Iterator[MulticastGroup]:
    groups = _inner(told).get(_GROUPS, b"")
    for _, entries in each_attribute(memoryview(groups)):
        for _, one in each_attribute(memoryview(entries)):
            port, state, _, vlan, address, protocol = _ENTRY.unpack_from(one)
            if state != _PERMANENT:
                continue
            more = _inner(memoryview(one)[_ENTRY.size :])
            settable = b"".join(
                attribute(_TOLD_AS[number], value)
                for number, value in more.items()
                if number in _TOLD_AS
            )
            yield MulticastGroup(
                bridge=bridge,
                port=port,
                vlan=vlan,
                address=address,
                protocol=protocol,
                attributes=walk(settable, _LAYOUT, Visitor(lambda index: index, lambda _: None)),
            )


def _inner(told: memoryview) -> dict[int, bytes]:
    return {number & 0x3FFF: value for number, value in attributes_of(told).items()}


def check(groups: list[MulticastGroup], indexes: Mapping[int, int]) -> None:
    """Check what an image has."""

    def unknown(number: int) -> None:
        raise ImageError(f"the image has an impossible multicast group, {number}")

    if len(groups) > _MOST:
        raise ImageError("the image has multicast groups without end")
    for one in groups:
        numbers = (one.vlan, one.protocol)
        if (
            not one.devices <= indexes.keys()
            or len(one.address) != 16
            or not all(0 <= number < 1 << 16 for number in numbers)
        ):
            raise ImageError("the image has an impossible multicast group")
        try:
            walk(one.attributes, _LAYOUT, Visitor(lambda index: index, unknown))
        except ValueError as error:
            raise ImageError(f"the image has an impossible multicast group: {error}") from error
