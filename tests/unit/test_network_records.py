"""Networks of images: nothing but what layouts have is set up, and at devices that are there."""

import struct
from typing import Any

import msgspec
import pytest

from woodfrog.errors import ImageError
from woodfrog.kernel.netlink import rtnetlink
from woodfrog.kernel.netlink.messages import attribute, nested
from woodfrog.resources.network import layouts, records
from woodfrog.resources.network.groups import MulticastGroup
from woodfrog.resources.network.mptcp import Mptcp
from woodfrog.resources.network.records import Entries, GivenDevice, Link, Network, NetworkEntry
from woodfrog.resources.network.shaping import Shaper

EMPTY = Entries(addresses=[], next_hops=[], routes=[], rules=[], neighbours=[])
_NET_NS_FD = 28


def link(index: int = 2, name: bytes = b"br0", **fields: object) -> Link:
    """Return a bridge, changed."""
    usual: dict[str, object] = {
        "type": "bridge",
        "elsewhere": records.SAME,
        "running": True,
        "flags": 1,
        "lower": 0,
        "master": 0,
        "attributes": attribute(layouts.IFLA_MTU, struct.pack("<I", 1500)),
        "data": b"",
        "port_of": "",
        "port": b"",
        "specific": b"",
        "names": b"",
        "uids": [],
        "gids": [],
        "settings": [],
    }
    return Link(index=index, name=name, **(usual | fields))  # type: ignore[arg-type]


def network(
    *links: Link, given: list[GivenDevice] | None = None, **added: list[NetworkEntry]
) -> Network:
    """Return a network with some devices and entries."""
    entries = {name: getattr(EMPTY, name) for name in EMPTY.__struct_fields__} | added
    return Network(links=list(links), given=given or [], added=Entries(**entries), removed=EMPTY)


def route(index: int) -> NetworkEntry:
    """Return a route by a device."""
    return NetworkEntry(
        header=bytes(12), attributes=attribute(layouts.RTA_OIF, struct.pack("<I", index))
    )


def group(**fields: Any) -> Network:
    """Return a network with a member of a multicast group, changed."""
    usual = {"bridge": 2, "port": 2, "vlan": 0, "address": bytes(16), "protocol": 8}
    one = MulticastGroup(**({"attributes": b""} | usual | fields))
    return msgspec.structs.replace(network(link()), groups=[one])


def shaped(attributes: bytes) -> Network:
    """Return a network with a queue (tc)."""
    queue = Shaper(message=rtnetlink.NEW_QDISC, header=bytes(20), attributes=attributes)
    return msgspec.structs.replace(network(link()), shaping=[queue])


def of_mptcp(endpoints: list[bytes], accepted: int = 2) -> Network:
    """Return a network with endpoints of MPTCP."""
    found = Mptcp(endpoints=endpoints, accepted=accepted, subflows=2)
    return msgspec.structs.replace(network(link()), mptcp=found)


def test_members_of_groups_and_endpoints_are_taken() -> None:
    records.check(group(attributes=attribute(1, bytes(4))))
    at_device = attribute(3, bytes(4)) + attribute(7, struct.pack("<I", 2))
    records.check(of_mptcp([at_device, attribute(2, b"\5")]))


def test_a_network_is_taken() -> None:
    pair = (
        link(3, b"left", type="veth", lower=4, master=2, port_of="bridge"),
        link(4, b"right", type="veth", lower=3),
    )
    settings = [("net/ipv4/conf/br0/rp_filter", b"2")]
    records.check(network(link(settings=settings), *pair, routes=[route(3)]))


@pytest.mark.parametrize(
    "wrong",
    [
        network(link(type="netdevsim")),
        network(link(index=0)),
        network(link(), link()),
        network(link(), link(3)),
        network(link(name=b"a/b")),
        network(link(name=b"sixteen-bytes-xx")),
        network(link(flags=-1)),
        network(link(flags=1 << 32)),
        network(link(master=9)),
        network(link(lower=9)),
        network(link(type="veth")),
        network(link(type="veth", lower=3), link(3, b"br1")),
        network(link(attributes=b"\xff\xff\x01\x00")),
        network(link(attributes=attribute(layouts.IFLA_MTU, bytes(3)))),
        network(link(data=attribute(99, bytes(4)))),
        network(link(names=nested(99))),
        network(link(port_of="bond")),
        network(link(uids=[1, 2])),
        network(link(gids=[1 << 40])),
        network(link(settings=[("kernel/core_pattern", b"|/bin/sh")])),
        network(link(settings=[("net/ipv4/conf/other/rp_filter", b"2")])),
        network(link(settings=[("net/ipv4/conf/br0/../../ip_forward", b"2")])),
        network(link(), routes=[route(9)]),
        network(link(), routes=[NetworkEntry(header=bytes(11), attributes=b"")]),
        network(link(), routes=[NetworkEntry(header=bytes(12), attributes=attribute(99, b""))]),
        network(link(), addresses=[NetworkEntry(header=bytes(8), attributes=b"")]),
        network(link(), neighbours=[NetworkEntry(header=bytes(12), attributes=b"")]),
        group(port=9),
        group(address=bytes(4)),
        group(vlan=1 << 16),
        group(attributes=attribute(9, bytes(4))),
        shaped(attribute(1, b"unknown\0")),
        shaped(bytes(4)),
        of_mptcp([attribute(7, struct.pack("<I", 9))]),
        of_mptcp([attribute(9, bytes(4))]),
        of_mptcp([attribute(2, bytes(3))]),
        of_mptcp([b""] * 256),
        of_mptcp([], accepted=-1),
        network(
            given=[GivenDevice(index=1, name=b"lo", flags=0, master=7, attributes=b"", changed=0)]
        ),
    ],
)
def test_nothing_else_is_set_up(wrong: Network) -> None:
    with pytest.raises(ImageError):
        records.check(wrong)


@pytest.mark.parametrize("layout", [layouts.LINK, layouts.CHANGEABLE])
def test_no_device_is_moved_by_a_descriptor_of_ours(layout: records.Layout) -> None:
    hostile = attribute(_NET_NS_FD, struct.pack("<I", 3))
    assert records.translated(hostile, layout, {}) == b""


def test_pairs_between_namespaces_fit_together() -> None:
    one = link(3, b"left", type="veth", lower=5, elsewhere=7)
    other = link(5, b"right", type="veth", lower=3, elsewhere=0)
    for wrong in ({0: network(one)}, {0: network(one), 7: network(link(5, b"br0"))}):
        with pytest.raises(ImageError):
            records.check_pairs(wrong)
    both = {0: network(one), 7: network(other)}
    for namespace in both.values():
        records.check(namespace)
    records.check_pairs(both)
    with pytest.raises(ImageError):
        records.check(network(link(5, b"mac0", type="macvlan", lower=3, elsewhere=0)))
