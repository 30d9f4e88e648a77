"""The record of a network namespace: what it has beyond what the engine gave it.

Attributes are rtnetlink's own (layouts.py); indexes in them are those of the record's devices.
"""

from collections.abc import Iterator, Mapping

import msgspec

from woodfrog.errors import ImageError
from woodfrog.image.record import Part, Record
from woodfrog.kernel.netlink import rtnetlink
from woodfrog.kernel.netlink.attributes import Layout, Visitor, walk
from woodfrog.kernel.netlink.messages import attributes_of
from woodfrog.resources import sysctls
from woodfrog.resources.network import groups, layouts, mptcp, shaping
from woodfrog.resources.network.groups import MulticastGroup
from woodfrog.resources.network.mptcp import Mptcp
from woodfrog.resources.network.shaping import Shaper

SAME = -1
_MOST = 1 << 16
_MOST_NAME = 15
_WORD = 1 << 32
# Sizes of the families' headers, and where in them the index of a device is.
SIZES = {"addresses": 8, "next_hops": 8, "routes": 12, "rules": 12, "neighbours": 12}
INDEX_AT = {"addresses": 4, "neighbours": 4}
LAYOUTS: Mapping[str, Layout] = {
    "addresses": layouts.ADDRESS,
    "next_hops": layouts.NEXT_HOP,
    "routes": layouts.ROUTE,
    "rules": layouts.RULE,
    "neighbours": layouts.NEIGHBOUR,
}
KINDS = {
    rtnetlink.NEW_ADDRESS: "addresses",
    rtnetlink.NEW_NEXT_HOP: "next_hops",
    rtnetlink.NEW_ROUTE: "routes",
    rtnetlink.NEW_RULE: "rules",
    rtnetlink.NEW_NEIGHBOUR: "neighbours",
}


class NetworkEntry(Part, frozen=True):
    """An address, next hop, route, rule or neighbour: its family's header, and attributes."""

    header: bytes
    attributes: bytes


class Entries(Part, frozen=True):
    """Such entries, each kind in the order in which it is made."""

    addresses: list[NetworkEntry]
    next_hops: list[NetworkEntry]
    routes: list[NetworkEntry]
    rules: list[NetworkEntry]
    neighbours: list[NetworkEntry]

    def all(self) -> Iterator[tuple[str, NetworkEntry]]:
        """Return all of them with their kinds."""
        for kind in SIZES:
            for entry in getattr(self, kind):
                yield kind, entry

    def __bool__(self) -> bool:
        return any(True for _ in self.all())


class Device(Part, frozen=True):
    """A network device."""

    index: int
    name: bytes
    flags: int  # IFF_UP and the others that are set
    master: int  # what it belongs to, or 0
    attributes: bytes


class Link(Device, frozen=True):
    """One that was made inside."""

    type: str
    running: bool  # its carrier was there, and its own addresses were made
    lower: int  # what it is made over; for one of a veth pair the other end
    elsewhere: int  # the id of the network namespace where that is (0: the own one), or SAME
    data: bytes  # of its kind
    port_of: str  # the kind of its master
    port: bytes  # what belongs to it as a part of that
    specific: bytes  # of address families
    names: bytes  # the others that it has
    uids: list[int]  # who may use a tun device: one or nobody
    gids: list[int]
    settings: list[tuple[str, bytes]]  # by paths below /proc/sys


class GivenDevice(Device, frozen=True):
    """One that the new container has from its engine: its name there, and what was changed."""

    changed: int  # flags


class Network(Record, frozen=True, tag="network"):
    """A network namespace, as far as programs have set it up."""

    links: list[Link]
    given: list[GivenDevice]
    added: Entries
    removed: Entries  # of what the engine had given
    shaping: list[Shaper] = []
    groups: list[MulticastGroup] = []
    mptcp: Mptcp | None = None

    @property
    def indexes(self) -> set[int]:
        """Return the indexes of all devices."""
        devices: list[Device] = [*self.links, *self.given]
        return {one.index for one in devices}

    @property
    def addresses(self) -> set[bytes]:
        """Return the addresses that were added."""
        found = set()
        for entry in self.added.addresses:
            told = attributes_of(memoryview(entry.attributes))
            found.add(told.get(layouts.IFA_LOCAL) or told.get(layouts.IFA_ADDRESS, b""))
        return found


def translated(attributes: bytes, layout: Layout, indexes: Mapping[int, int]) -> bytes:
    """Return attributes with other indexes; raises ImageError for what no image has."""

    def unknown(number: int) -> None:
        raise ImageError(f"the image has an impossible attribute of the network, {number}")

    try:
        return walk(attributes, layout, Visitor(indexes.__getitem__, unknown))
    except (ValueError, KeyError) as error:
        raise ImageError(f"the image has an impossible network: {error}") from error


def lasting(network: Network) -> Network:
    """Return a network without what changes by itself: how long something lasts, or runs."""

    def of(entries: Entries) -> Entries:
        visitor = Visitor(lambda index: index, lambda _: None, lasting=True)
        kept: dict[str, list[NetworkEntry]] = {kind: [] for kind in SIZES}
        for kind, entry in entries.all():
            attributes = walk(entry.attributes, LAYOUTS[kind], visitor)
            kept[kind].append(NetworkEntry(header=entry.header, attributes=attributes))
        return Entries(**kept)

    links = [msgspec.structs.replace(link, running=False) for link in network.links]
    return msgspec.structs.replace(
        network, links=links, added=of(network.added), removed=of(network.removed)
    )


def check(network: Network) -> None:
    """Check a network of an image against itself and what is known of messages."""
    devices: list[Device] = [*network.links, *network.given]
    if len(network.indexes) < len(devices) or any(
        not 0 < number < 1 << 31 for number in network.indexes
    ):
        raise ImageError("the image has impossible network devices")
    if len({one.name for one in devices}) < len(devices):
        raise ImageError("the image has network devices of one name")
    same = {number: number for number in network.indexes}
    for one in devices:
        _check_name(one.name)
        if not 0 <= one.flags < _WORD:
            raise ImageError("a network device of the image has impossible flags")
        if one.master and one.master not in same:
            raise ImageError("a network device of the image belongs to one that it lacks")
    by_index = {link.index: link for link in network.links}
    for link in network.links:
        _check_link(link, same)
        if link.elsewhere == SAME:
            _check_pair(link, by_index.get(link.lower), SAME)
        elif link.type != "veth":
            raise ImageError("the image has a network device over one in another namespace")
    for given in network.given:
        translated(given.attributes, layouts.CHANGEABLE, same)
        if not 0 <= given.changed < _WORD:
            raise ImageError("a network device of the image has impossible flags")
    shaping.check(network.shaping, same)
    groups.check(network.groups, same)
    if network.mptcp:
        mptcp.check(network.mptcp, same)
    for entries in (network.added, network.removed):
        for number, (kind, entry) in enumerate(entries.all()):
            if len(entry.header) != SIZES[kind] or number > _MOST:
                raise ImageError(f"the image has impossible {kind} of the network")
            if kind in INDEX_AT:
                at = INDEX_AT[kind]
                if int.from_bytes(entry.header[at : at + 4], "little") not in same:
                    raise ImageError(f"the image has {kind} of a network device that it lacks")
            translated(entry.attributes, LAYOUTS[kind], same)


def check_pairs(networks: Mapping[int, Network]) -> None:
    """Check pairs of devices in two network namespaces; networks are given by the ids of those."""
    for number, network in networks.items():
        for link in network.links:
            if link.elsewhere != SAME:
                other = networks.get(link.elsewhere)
                links = {one.index: one for one in other.links} if other else {}
                _check_pair(link, links.get(link.lower), number)


def _check_pair(link: Link, peer: Link | None, number: int) -> None:
    if link.type == "veth" and (
        not peer
        or peer is link
        or (peer.type, peer.lower, peer.elsewhere) != ("veth", link.index, number)
    ):
        raise ImageError("the image has half a pair of network devices")


def _check_name(name: bytes) -> None:
    is_odd = any(byte <= 0x20 or byte in b"/:%" for byte in name)
    if not 0 < len(name) <= _MOST_NAME or name in (b".", b"..") or is_odd:
        raise ImageError("the image has a network device with an impossible name")


def _check_link(link: Link, same: Mapping[int, int]) -> None:
    if link.type not in layouts.KINDS or (link.port_of and link.port_of not in layouts.PORTS):
        raise ImageError(f"the image has a network device of an impossible kind, {link.type}")
    if link.lower and link.elsewhere == SAME and link.lower not in same:
        raise ImageError("the image has a network device over one that it lacks")
    if len(link.uids) > 1 or len(link.gids) > 1:
        raise ImageError("the image has a network device that several users own")
    if any(not 0 <= number < _WORD for number in (*link.uids, *link.gids)):
        raise ImageError("the image has a network device that nobody can own")
    translated(link.attributes, layouts.LINK, same)
    translated(link.data, layouts.KINDS[link.type], same)
    if link.port_of:
        translated(link.port, layouts.PORTS[link.port_of], same)
    translated(link.specific, layouts.SPECIFIC, same)
    translated(link.names, layouts.ALT_NAMES, same)
    if not sysctls.are_of_device(link.settings, link.name):
        raise ImageError("the image sets what no image does (sysctl)")
