"""What programs have set up in a container's network namespace.

A container begins with what its engine gives it: that is read when it starts (`rtnetlink.read_all`)
and compared with what is there now. Devices that are new and have no end outside were made inside.
"""

import os
from collections.abc import Mapping

import msgspec

from woodfrog.errors import UnsupportedResource
from woodfrog.kernel.netlink.attributes import Layout, Visitor, walk
from woodfrog.resources import sysctls
from woodfrog.resources.network import groups, layouts, mptcp, shaping
from woodfrog.resources.network.records import (
    SAME,
    SIZES,
    Entries,
    GivenDevice,
    Link,
    Network,
    NetworkEntry,
)
from woodfrog.resources.network.state import (
    AF_BRIDGE,
    AF_INET6,
    FLAGS,
    IFF_RUNNING,
    RTPROT_KERNEL,
    RTPROT_RA,
    RTPROT_REDIRECT,
    Seen,
    State,
    devices_of,
    inner,
    key,
    packed,
    read_all,
)

_SCOPE_LINK = 253
_NO_ONE = 0xFFFFFFFF
_MACADDR_SET = bytes((3, 0, 0, 0))
_NTF_SELF = 0x02
_GROUP_ADDRESS = bytes.fromhex("0180c2000000")  # of bridges, in IEEE 802.1D


class Place(msgspec.Struct, frozen=True):
    """A network namespace by a descriptor of ours, and the container around it.

    `others` are the container's other network namespaces: ids by what this one calls them.
    """

    namespace: int
    view: int  # a process that sees the container from its root
    has_own_users: bool
    others: Mapping[int, int]
    usual: sysctls.Usual


def collect(place: Place, given: bytes) -> tuple[Network | None, list[str]]:
    """Return what is set up by programs, and what of it is lost.

    `given` is what rtnetlink told when the container started; empty if nobody has written that
    down.
    """
    now = State(read_all(place.namespace))
    before = State(given) if given else _supposed(now)
    made = {
        index: seen
        for index, seen in now.links.items()
        if index not in before.links and (not seen.is_of_outside or seen.nsid in place.others)
    }
    _refuse(place, now, before, made)
    outside = now.links.keys() - made.keys()
    added, removed = _differences(now, before, set(made))
    links = [_link(seen, now, place) for seen in made.values()]
    used = {one for link in links for one in (link.master, *_indexes(link)) if one}
    used |= {link.lower for link in links if link.lower and link.elsewhere == SAME}
    for entries in (added, removed):
        used |= {one for kind, entry in entries.all() for one in devices_of(kind, entry)}
    shapers = shaping.collect(place.namespace, now.queues, now.shaped - before.shaped)
    for shaper in shapers:
        used |= shaper.devices() & now.links.keys()
    bridges = {index for index, seen in now.links.items() if seen.kind == "bridge"}
    members = groups.collect(place.namespace, bridges)
    used |= {index for one in members for index in one.devices}
    of_mptcp = mptcp.collect(place.namespace)
    used |= of_mptcp.devices() & now.links.keys() if of_mptcp else set()
    devices = []
    for index in sorted(outside):
        one = _given(now.links[index], before.links.get(index))
        if index in used or one.changed or one.attributes or one.master:
            devices.append(one)
    used |= {one.master for one in devices}
    known = {one.index for one in devices}
    devices += [
        _given(now.links[index], before.links.get(index))
        for index in sorted(used & outside - known)
    ]
    network = Network(
        links=links,
        given=devices,
        added=added,
        removed=removed,
        shaping=shapers,
        groups=members,
        mptcp=of_mptcp,
    )
    if not (links or devices or added or removed or of_mptcp):
        return None, []
    losses = [
        f"a setting of the network ({what}) that woodfrog doesn't know" for what in now.unknown
    ]
    return network, sorted(losses)


def _supposed(now: State) -> State:
    """Return what the engine may have given, if that isn't known: all that has to do with it."""
    before = State(b"")
    before.links = {index: seen for index, seen in now.links.items() if seen.is_of_outside}
    before.shaped = set(now.shaped)
    for kind, entries in now.entries.items():
        before.entries[kind] = [
            one
            for one in entries
            if kind != "next_hops" and devices_of(kind, one) <= before.links.keys()
        ]
    return before


def _refuse(place: Place, now: State, before: State, made: dict[int, Seen]) -> None:
    for what in sorted(now.odd):
        raise UnsupportedResource(f"has {what}, which cannot be saved yet")
    for seen in made.values():
        name = os.fsdecode(seen.name)
        if seen.kind not in layouts.KINDS:
            raise UnsupportedResource(
                f"has a network device {name} of the kind {seen.kind}, which cannot be saved yet"
            )
        if seen.nsid is not None and seen.kind != "veth":
            raise UnsupportedResource(
                f"has a network device {name} over one in another network namespace, which cannot"
                " be saved yet"
            )
        if any(inner(seen.attributes.get(layouts.IFLA_XDP, b"")).get(2, b"")):
            raise UnsupportedResource(
                f"has an XDP program at the network device {name}, which cannot be saved"
            )
        settings = inner(seen.info.get(layouts.IFLA_INFO_DATA, b""))
        if seen.kind == "bridge" and any(settings.get(layouts.IFLA_BR_VLAN_FILTERING, b"")):
            raise UnsupportedResource(
                f"has a bridge {name} that filters VLANs, which cannot be saved yet"
            )
        port = seen.info.get(layouts.IFLA_INFO_SLAVE_KIND, b"").rstrip(b"\0").decode()
        if port and port not in layouts.PORTS:
            raise UnsupportedResource(
                f"has a network device {name} that is part of a {port}, which cannot be saved yet"
            )
    rules = now.entries["rules"]
    if place.has_own_users and any(
        layouts.FRA_UID_RANGE in inner(rule.attributes) for rule in rules
    ):
        raise UnsupportedResource(
            "has a routing rule for users in a user namespace, which cannot be saved yet"
        )


def _differences(now: State, before: State, made: set[int]) -> tuple[Entries, Entries]:
    """Return what was added and removed since then."""
    added: dict[str, list[NetworkEntry]] = {}
    removed: dict[str, list[NetworkEntry]] = {}
    for kind in SIZES:
        is_there = {key(kind, one) for one in now.entries[kind]}
        was_there = {key(kind, one) for one in before.entries[kind]}
        added[kind] = [
            one
            for one in now.entries[kind]
            if key(kind, one) not in was_there
            and not _comes_by_itself(kind, one, made, before)
            and not (kind == "neighbours" and _is_of_another(one, now))
        ]
        removed[kind] = [
            one
            for one in before.entries[kind]
            if key(kind, one) not in is_there
            and devices_of(kind, one) <= now.links.keys()
            and not _comes_by_itself(kind, one, made, before)
        ]
    return Entries(**added), Entries(**removed)


def _comes_by_itself(kind: str, entry: NetworkEntry, made: set[int], before: State) -> bool:
    """Tell what the kernel does at devices of the engine's, and what belongs to later ones."""
    devices = devices_of(kind, entry)
    if devices & made:
        return False
    if not devices <= before.links.keys():
        return True
    if any(before.links[one].name != b"lo" for one in devices):
        if kind == "addresses":
            return entry.header[0] == AF_INET6 and entry.header[3] == _SCOPE_LINK
        if kind == "neighbours":
            return entry.header[0] == AF_BRIDGE
        return kind == "routes" and entry.header[5] in (
            RTPROT_KERNEL,
            RTPROT_REDIRECT,
            RTPROT_RA,
        )
    return kind == "routes" and not devices and entry.header[5] == RTPROT_KERNEL


def _is_of_another(entry: NetworkEntry, now: State) -> bool:
    """Tell whether a device only lets packets in that another, or a multicast group, wants."""
    devices = devices_of("neighbours", entry)
    kinds = {now.links[one].kind for one in devices if one in now.links}
    if entry.header[0] != AF_BRIDGE or not entry.header[10] & _NTF_SELF or "vxlan" in kinds:
        return False
    address = inner(entry.attributes).get(layouts.NDA_LLADDR, b"")
    others = (seen.attributes.get(layouts.IFLA_ADDRESS) for seen in now.links.values())
    return bool(address[:1] and address[0] & 1) or address in others


def _indexes(link: Link) -> set[int]:
    found = set()

    def note(index: int) -> int:
        found.add(index)
        return index

    visitor = Visitor(note, lambda number: None)
    walk(link.data, layouts.KINDS[link.type], visitor)
    if link.port_of:
        walk(link.port, layouts.PORTS[link.port_of], visitor)
    return found


def _kept(value: bytes | memoryview, layout: Layout, now: State, what: str) -> bytes:
    def unknown(number: int) -> None:
        now.unknown.add(f"{what}, attribute {number}")

    return walk(value, layout, Visitor(lambda index: index, unknown))


def _link(seen: Seen, now: State, place: Place) -> Link:
    port_of = seen.info.get(layouts.IFLA_INFO_SLAVE_KIND, b"").rstrip(b"\0").decode()
    settings = inner(seen.info.get(layouts.IFLA_INFO_DATA, b""))
    lower = seen.value(layouts.IFLA_LINK)
    is_elsewhere = seen.nsid is not None
    users, groups = (
        [number]
        if (number := int.from_bytes(settings.get(one, b"\xff" * 4), "little")) != _NO_ONE
        else []
        for one in ((1, 2) if seen.kind == "tun" else (-1, -1))
    )
    port = seen.info.get(layouts.IFLA_INFO_SLAVE_DATA, b"") if port_of else b""
    attributes = _kept(seen.message, layouts.LINK, now, "link")
    return Link(
        index=seen.number,
        name=seen.name,
        type=seen.kind,
        running=bool(seen.flags & IFF_RUNNING),
        flags=seen.flags & FLAGS,
        lower=lower if is_elsewhere or (lower != seen.number and lower in now.links) else 0,
        elsewhere=place.others[seen.nsid] if is_elsewhere and seen.nsid is not None else SAME,
        master=seen.value(layouts.IFLA_MASTER),
        attributes=attributes,
        data=_data(seen, now),
        port_of=port_of,
        port=_kept(port, layouts.PORTS[port_of], now, f"{port_of} port") if port_of else b"",
        specific=_kept(
            seen.attributes.get(layouts.IFLA_AF_SPEC, b""), layouts.SPECIFIC, now, "families"
        ),
        names=seen.attributes.get(layouts.IFLA_PROP_LIST, b""),
        uids=users,
        gids=groups,
        settings=sysctls.of_device(place.namespace, place.view, seen.name, place.usual),
    )


def _data(seen: Seen, now: State) -> bytes:
    """Return what is set of a device's kind."""
    data = seen.info.get(layouts.IFLA_INFO_DATA, b"")
    layout = dict(layouts.KINDS[seen.kind])
    told = inner(data)
    added = b""
    if seen.kind == "bridge" and told.get(layouts.IFLA_BR_GROUP_ADDR) == _GROUP_ADDRESS:
        layout[layouts.IFLA_BR_GROUP_ADDR] = None  # who sets it to that forwards other packets
    options = told.get(layouts.IFLA_BR_MULTI_BOOLOPT, b"")
    if seen.kind == "bridge" and options:
        # Those that are on: a kernel may not know others.
        layout[layouts.IFLA_BR_MULTI_BOOLOPT] = None
        if any(options[:4]):
            added = packed(layouts.IFLA_BR_MULTI_BOOLOPT, options[:4] * 2)
    if seen.kind in ("macvlan", "macvtap") and layouts.IFLA_MACVLAN_MACADDR_DATA in told:
        added = packed(layouts.IFLA_MACVLAN_MACADDR_MODE, _MACADDR_SET)
    if seen.kind == "vxlan":
        # A number when it is told, a flag when it is set.
        layout[layouts.IFLA_VXLAN_TTL_INHERIT] = None
        # To have them named, even as 0, is to use them.
        layout |= {number: None for number in layouts.IFLA_VXLAN_REMCSUM if not any(told[number])}
        if any(told.get(layouts.IFLA_VXLAN_TTL_INHERIT, b"")):
            added = packed(layouts.IFLA_VXLAN_TTL_INHERIT, b"")
    return _kept(data, layout, now, seen.kind) + added


def _given(seen: Seen, before: Seen | None) -> GivenDevice:
    """Return how a device differs from what the engine made it."""
    before = before or seen
    changed = (seen.flags ^ before.flags) & FLAGS
    master = seen.value(layouts.IFLA_MASTER)
    attributes = [
        packed(number, seen.attributes.get(number, b""))
        for number, field in layouts.CHANGEABLE.items()
        if field and seen.attributes.get(number) != before.attributes.get(number)
    ]
    return GivenDevice(
        index=seen.number,
        name=before.name,
        flags=seen.flags & changed,
        changed=changed,
        master=master if master != before.value(layouts.IFLA_MASTER) else 0,
        attributes=b"".join(attributes),
    )
