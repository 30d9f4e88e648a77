"""A network namespace as the kernel tells of it, without what follows from the rest."""

import os
import struct
import threading
from collections.abc import Callable

import msgspec

from woodfrog.kernel.caller import HERE
from woodfrog.kernel.namespaces import CLONE_NEWNET, unshare
from woodfrog.kernel.netlink import dumps, rtnetlink
from woodfrog.kernel.netlink.attributes import Visitor, walk
from woodfrog.kernel.netlink.messages import attributes_of
from woodfrog.resources import namespaces
from woodfrog.resources.network import layouts
from woodfrog.resources.network.records import INDEX_AT, KINDS, LAYOUTS, SIZES, NetworkEntry

_LINK = struct.Struct("<BxHiII")  # struct ifinfomsg: family, type, index, flags, which of them
# IFF_UP, DEBUG, NOTRAILERS, NOARP, PROMISC, ALLMULTI, PORTSEL, AUTOMEDIA, MULTICAST, DYNAMIC.
FLAGS = 0x0001 | 0x0004 | 0x0020 | 0x0080 | 0x0100 | 0x0200 | 0x1000 | 0x2000 | 0x4000 | 0x8000
IFF_RUNNING = 0x0040
AF_INET6, AF_BRIDGE = 10, 7
_IFA_F_SECONDARY = 0x01
_FOREVER = 0xFFFFFFFF
_RT_TABLE_LOCAL = 255
RTPROT_KERNEL = 2
RTPROT_REDIRECT, RTPROT_RA = 1, 9
_RTM_F_CLONED, _RTNH_F_ONLINK = 0x200, 4
_USER_HZ = 100
_NUD_NOARP, _NUD_PERMANENT = 0x40, 0x80
_NTF_SELF, _NTF_MASTER, _NTF_PROXY = 0x02, 0x04, 0x08
_RULE_FLAGS = 0x00010002  # FIB_RULE_INVERT and FIB_RULE_FIND_SADDR


class Seen(msgspec.Struct, frozen=True):
    """A device as the kernel tells of it."""

    number: int  # its index
    flags: int
    attributes: dict[int, bytes]
    message: memoryview
    kind: str
    info: dict[int, bytes]

    @property
    def name(self) -> bytes:
        """Its name, without the end of text."""
        return self.attributes[layouts.IFLA_IFNAME].rstrip(b"\0")

    def value(self, attribute: int) -> int:
        """Return a number among its attributes; 0 if it is lacking."""
        return int.from_bytes(self.attributes.get(attribute, b""), "little")

    @property
    def nsid(self) -> int | None:
        """What the namespace calls the one where the other end is, if that is another."""
        value = self.attributes.get(layouts.IFLA_LINK_NETNSID)
        return int.from_bytes(value, "little", signed=True) if value else None

    @property
    def is_of_outside(self) -> bool:
        """Whether it is hardware, or has its other end in another network namespace."""
        return not self.kind or self.nsid is not None


class State:
    """A network namespace as the kernel tells of it."""

    def __init__(self, told: bytes) -> None:
        self.links: dict[int, Seen] = {}
        self.entries: dict[str, list[NetworkEntry]] = {kind: [] for kind in SIZES}
        self.shaped: set[int] = set()  # indexes of devices whose queues were set
        self.queues: list[bytes] = []  # all messages of them
        self.unknown: set[str] = set()
        self.odd: set[str] = set()  # what can't be saved
        for kind, payload in dumps.messages(told):
            if kind == rtnetlink.NEW_LINK:
                seen = _seen(payload)
                self.links[seen.number] = seen
            elif kind == rtnetlink.NEW_QDISC:
                self.queues.append(bytes(payload))
                _, index, handle = struct.unpack_from("<B3xiI", payload)
                if handle:
                    self.shaped.add(index)
            elif kind in KINDS and (entry := self._entry(KINDS[kind], payload)) is not None:
                self.entries[KINDS[kind]].append(entry)

    def _entry(self, kind: str, payload: memoryview) -> NetworkEntry | None:
        size = SIZES[kind]
        header, rest = bytearray(payload[:size]), bytes(payload[size:])
        attributes = inner(rest)
        cleaned = _CLEAN[kind](header, attributes)
        if cleaned is None:
            return None
        if layouts.RTA_ENCAP in attributes and kind == "routes":
            self.odd.add("a route through a tunnel of its own (encap)")
        if layouts.NHA_ENCAP in attributes and kind == "next_hops":
            self.odd.add("a next hop through a tunnel of its own (encap)")
        added = b"".join(
            packed(number, value) for number, value in cleaned.items() if value is not None
        )
        kept = {number: value for number, value in LAYOUTS[kind].items() if number not in cleaned}

        def unknown(number: int) -> None:
            if number not in cleaned:
                self.unknown.add(f"{kind}, attribute {number}")

        visitor = Visitor(lambda index: index, unknown, hop_flags=_RTNH_F_ONLINK)
        return NetworkEntry(header=bytes(header), attributes=walk(rest, kept, visitor) + added)


def packed(number: int, value: bytes) -> bytes:
    """Return one attribute, padded."""
    return struct.pack("<HH", 4 + len(value), number) + value + bytes(-len(value) % 4)


def _seen(payload: memoryview) -> Seen:
    _, _, index, flags, _ = _LINK.unpack_from(payload)
    rest = payload[_LINK.size :]
    attributes = inner(rest)
    info = inner(attributes.get(layouts.IFLA_LINKINFO, b""))
    kind = info.get(layouts.IFLA_INFO_KIND, b"").rstrip(b"\0").decode(errors="replace")
    return Seen(index, flags, attributes, rest, kind, info)


def inner(value: bytes | memoryview) -> dict[int, bytes]:
    """Return the attributes in one, by their numbers without flags."""
    return {number & 0x3FFF: one for number, one in attributes_of(memoryview(value)).items()}


# Attributes that are to be others than told, None for those that are left out.
Cleaned = dict[int, "bytes | None"]
# Each takes what isn't to be kept out of a header, and returns such attributes; or None for all of
# what the kernel makes by itself.


def _clean_address(header: bytearray, told: dict[int, bytes]) -> Cleaned | None:
    family, _, flags, _ = header[:4]
    flags = int.from_bytes(told.get(layouts.IFA_FLAGS, bytes((flags,))), "little")
    if family == AF_INET6 and flags & _IFA_F_SECONDARY:
        return None  # a temporary one
    header[2] = 0
    preferred, valid = struct.unpack_from("<2I", told.get(layouts.IFA_CACHEINFO, b"\xff" * 8))
    life = struct.pack("<4I", preferred, valid, 0, 0)
    lasting = (preferred, valid) == (_FOREVER, _FOREVER)
    if family != AF_INET6:
        flags &= ~_IFA_F_SECONDARY
    changed: Cleaned = {layouts.IFA_FLAGS: struct.pack("<I", flags)}
    changed[layouts.IFA_CACHEINFO] = None if lasting else life
    return changed


def _clean_next_hop(header: bytearray, told: dict[int, bytes]) -> Cleaned | None:
    (flags,) = struct.unpack_from("<I", header, 4)
    struct.pack_into("<I", header, 4, flags & _RTNH_F_ONLINK)
    header[1] = 0  # the scope, which follows from the rest
    if 2 in told:  # a group
        header[0] = 0
    return {}


def _clean_route(header: bytearray, told: dict[int, bytes]) -> Cleaned | None:
    protocol = header[5]
    (flags,) = struct.unpack_from("<I", header, 8)
    table = int.from_bytes(told.get(15, bytes((header[4],))), "little")
    if flags & _RTM_F_CLONED or (protocol == RTPROT_KERNEL and table == _RT_TABLE_LOCAL):
        return None
    struct.pack_into("<I", header, 8, flags & _RTNH_F_ONLINK)
    cache = told.get(layouts.RTA_CACHEINFO, b"")
    left = struct.unpack_from("<i", cache, 8)[0] if len(cache) >= 12 else 0
    changed: Cleaned = {}
    if layouts.RTA_NH_ID in told:  # which tells the same
        shown = (layouts.RTA_OIF, layouts.RTA_GATEWAY, layouts.RTA_VIA, layouts.RTA_MULTIPATH)
        changed |= dict.fromkeys(shown)
    if left > 0:
        changed[layouts.RTA_EXPIRES] = struct.pack("<I", max(left // _USER_HZ, 1))
    return changed


def _clean_rule(header: bytearray, told: dict[int, bytes]) -> Cleaned | None:
    (flags,) = struct.unpack_from("<I", header, 8)
    struct.pack_into("<I", header, 8, flags & _RULE_FLAGS)
    return {}


def _clean_neighbour(header: bytearray, told: dict[int, bytes]) -> Cleaned | None:
    family = header[0]
    state, flags = struct.unpack_from("<HB", header, 8)
    if family == AF_BRIDGE:
        if not state & (_NUD_NOARP | _NUD_PERMANENT):
            return None  # learned
        master = told.get(layouts.NDA_MASTER, bytes(header[4:8]))
        header[10] = flags | (_NTF_SELF if master == header[4:8] else _NTF_MASTER)
    elif not (state & _NUD_PERMANENT or flags & _NTF_PROXY or _is_set(family, state, told)):
        return None
    return {}


def _is_set(family: int, state: int, told: dict[int, bytes]) -> bool:
    """Tell whether a program has set a neighbour that is never asked for (nud noarp).

    The kernel itself makes such ones for multicast and broadcast, and where nobody is asked.
    """
    address, hardware = told.get(layouts.NDA_DST, b""), told.get(layouts.NDA_LLADDR, b"")
    many = address[:1] >= b"\xe0" if family != AF_INET6 else address[:1] == b"\xff"
    return bool(state & _NUD_NOARP and any(hardware) and not hardware[0] & 1 and not many)


_CLEAN: dict[str, Callable[[bytearray, dict[int, bytes]], Cleaned | None]] = {
    "addresses": _clean_address,
    "next_hops": _clean_next_hop,
    "routes": _clean_route,
    "rules": _clean_rule,
    "neighbours": _clean_neighbour,
}


def devices_of(kind: str, entry: NetworkEntry) -> set[int]:
    """Return the indexes of the devices that an entry speaks of."""
    found = set()
    if kind in INDEX_AT:
        at = INDEX_AT[kind]
        found.add(int.from_bytes(entry.header[at : at + 4], "little"))

    def note(index: int) -> int:
        found.add(index)
        return index

    walk(entry.attributes, LAYOUTS[kind], Visitor(note, lambda number: None))
    return found


def key(kind: str, entry: NetworkEntry) -> object:
    """Return what an entry is known by: addresses are the same with another lifetime."""
    if kind != "addresses":
        return entry
    told = inner(entry.attributes)
    return entry.header, told.get(layouts.IFA_LOCAL), told.get(layouts.IFA_ADDRESS)


def read_all(namespace: int) -> bytes:
    """Return how the network namespace that a descriptor names is set up."""
    with namespaces.within(namespace, "net"):
        netlink = dumps.open_socket(rtnetlink.NETLINK_ROUTE)
    try:
        return rtnetlink.read_all(netlink)
    finally:
        netlink.close()


def read(pid: int) -> State:
    """Look at the network namespace of a process."""
    namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return State(read_all(namespace))
    finally:
        os.close(namespace)


def fresh() -> bytes:
    """Return how a new network namespace is set up."""
    found = []

    def look() -> None:
        unshare(HERE, CLONE_NEWNET)
        netlink = dumps.open_socket(rtnetlink.NETLINK_ROUTE)
        found.append(rtnetlink.read_all(netlink))
        netlink.close()

    # A thread that ends there takes it along.
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return found[0]
