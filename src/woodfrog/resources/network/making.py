"""The image's network, set up in a new container's namespace.

The root stub opens the socket, with the container's own rights: whoever sends by it, the kernel
asks for the rights of who opened it, too (netlink_ns_capable).
"""

import errno
import os
import socket
import struct

from woodfrog.errors import UnsupportedResource, while_
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.capability import CAP_NET_ADMIN
from woodfrog.kernel.netlink import rtnetlink
from woodfrog.kernel.netlink.attributes import Visitor, walk
from woodfrog.kernel.netlink.messages import (
    NLM_F_APPEND,
    NLM_F_CREATE,
    attribute,
    attributes_of,
)
from woodfrog.remote import descriptors
from woodfrog.remote.stub import Stub
from woodfrog.resources import credentials
from woodfrog.resources.network import groups, layouts, shaping, state
from woodfrog.resources.network.devices import Devices
from woodfrog.resources.network.records import (
    INDEX_AT,
    LAYOUTS,
    Network,
    NetworkEntry,
)

_EXCLUSIVE, _REPLACE = 0x200, 0x100
_AF_INET6 = socket.AF_INET6
_IFA_F_NODAD, _IFA_F_TENTATIVE, _IFA_F_DADFAILED = 0x02, 0x40, 0x08
_MAKE = {
    "addresses": rtnetlink.NEW_ADDRESS,
    "next_hops": rtnetlink.NEW_NEXT_HOP,
    "routes": rtnetlink.NEW_ROUTE,
    "rules": rtnetlink.NEW_RULE,
    "neighbours": rtnetlink.NEW_NEIGHBOUR,
}
# From a message that makes something to the one that takes it away.
_REMOVE = 1
# What the kernel answers where a container has other addresses than the old one.
_ELSEWHERE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.ENETDOWN)


def refuse_wider(init: int, network: Network | None, *, joins: bool, bounding: int) -> None:
    """Refuse what the waiting container may not do, or lacks.

    `joins` tells that it would happen in a network namespace that it joins.
    """
    if joins:
        raise UnsupportedResource(
            "the image has a network that was set up inside, but the new container joins a network"
            " namespace",
            hint='give it one of its own: "network" without a path in linux.namespaces',
        )
    if not bounding >> CAP_NET_ADMIN & 1:
        raise UnsupportedResource(
            "the image has a network that was set up inside, which the new container may not do"
            " (CAP_NET_ADMIN)",
            hint="add CAP_NET_ADMIN to process.capabilities of config.json",
        )
    if network is None:
        return
    there = {seen.name for seen in state.read(init).links.values()}
    lacking = {given.index: given.name for given in network.given if given.name not in there}
    for link in network.links:
        if link.lower in lacking:
            raise UnsupportedResource(
                f"the image has a network device {os.fsdecode(link.name)} that is made over"
                f" {os.fsdecode(lacking[link.lower])}, which the new container does not have",
                hint="give the new container the same networks",
            )


def socket_of(
    stub: Stub, family: int, kind: int, protocol: int, *, bounding: int, permitted: int
) -> socket.socket:
    """Return a socket that a stub has opened with the container's own rights."""
    program = stub.program()
    credentials.set_effective(program, bounding, permitted)
    theirs = program.call(SYS.SOCKET, family, kind | socket.SOCK_CLOEXEC, protocol)
    credentials.set_effective(program, permitted, permitted)
    stub.run(program)
    number = program[theirs]
    found = socket.socket(fileno=descriptors.fetch(stub.pid, number))
    program = stub.program()
    program.call(SYS.CLOSE, number)
    stub.run(program)
    return found


class Making:
    """Sets up what belongs to devices that are there, in a network namespace that a stub is in."""

    def __init__(self, devices: Devices) -> None:
        self._network = network = devices.network
        self._devices = devices
        self._indexes = devices.indexes
        self._inside = {link.index for link in network.links}
        self.missing = devices.missing

    def make(self) -> None:
        """Set up all of it."""
        network = self._network
        for kind, entry in network.removed.all():
            self._remove(kind, entry)
        addresses = network.added.addresses
        # A new one of IPv6 comes before those that are there.
        for entry in reversed([one for one in addresses if one.header[0] == _AF_INET6]):
            self._add("addresses", entry)
        for entry in (one for one in addresses if one.header[0] != _AF_INET6):
            self._add("addresses", entry)
        for entry in network.added.next_hops:
            self._add("next_hops", entry)
        # A gateway can be set only when there is a route to it.
        for entry in sorted(network.added.routes, key=_has_gateway):
            self._add("routes", entry)
        self._remove_what_came_by_itself()
        for kind in ("rules", "neighbours"):
            for entry in getattr(network.added, kind):
                self._add(kind, entry)
        self._shape()
        # Those that come last are told first.
        for group in reversed(network.groups):
            if group.devices <= self._indexes.keys():
                with while_("setting up multicast groups of the network"):
                    payload = group.moved(self._indexes)
                    self._devices.request(groups.NEW_GROUP, NLM_F_CREATE | _EXCLUSIVE, payload)

    def _shape(self) -> None:
        """Make queues, classes and filters; what they replace came by itself."""
        names = {one.index: one.name for one in (*self._network.links, *self._network.given)}
        for one in self._network.shaping:
            if one.devices() <= self._indexes.keys():
                with while_(shaping.explained(one, names[one.index])):
                    payload = one.moved(self._indexes)
                    self._devices.request(one.message, NLM_F_CREATE | _EXCLUSIVE, payload)

    def _payload(self, kind: str, entry: NetworkEntry) -> bytes | None:
        header = bytearray(entry.header)
        devices = state.devices_of(kind, entry)
        if not devices <= self._indexes.keys():
            return None
        if kind in INDEX_AT:
            at = INDEX_AT[kind]
            (index,) = struct.unpack_from("<I", header, at)
            struct.pack_into("<I", header, at, self._indexes[index])
        return bytes(header) + self._devices.translate(entry.attributes, LAYOUTS[kind])

    def _add(self, kind: str, entry: NetworkEntry) -> None:
        payload = self._payload(kind, entry)
        if payload is None:
            return
        flags = NLM_F_CREATE | _EXCLUSIVE
        if kind == "routes" and entry.header[0] != _AF_INET6:
            flags = NLM_F_CREATE | NLM_F_APPEND
        elif kind == "neighbours":
            many = entry.header[0] == socket.AF_BRIDGE  # ends of a VXLAN for one address
            flags = NLM_F_CREATE | (NLM_F_APPEND if many else _REPLACE)
        devices = state.devices_of(kind, entry)
        with while_(f"setting up {kind} of the network"):
            try:
                if kind == "addresses" and entry.header[0] == _AF_INET6:
                    self._add_address(entry, payload)
                else:
                    self._devices.request(_MAKE[kind], flags, payload)
            except FileExistsError:
                pass  # it came by itself
            except OSError as error:
                if devices <= self._inside or error.errno not in _ELSEWHERE:
                    raise
                self.missing.append(f"the container can't have one of its {kind}: {error.strerror}")

    def _add_address(self, entry: NetworkEntry, payload: bytes) -> None:
        """Add an address of IPv6, which is known to be nobody else's if it was."""
        told = attributes_of(memoryview(entry.attributes))
        flags = int.from_bytes(told.get(layouts.IFA_FLAGS, b""), "little")
        if flags & (_IFA_F_TENTATIVE | _IFA_F_DADFAILED | _IFA_F_NODAD):
            self._devices.request(rtnetlink.NEW_ADDRESS, NLM_F_CREATE | _EXCLUSIVE, payload)
            return
        known = attribute(layouts.IFA_FLAGS, struct.pack("<I", flags | _IFA_F_NODAD))
        self._devices.request(rtnetlink.NEW_ADDRESS, NLM_F_CREATE | _EXCLUSIVE, payload + known)
        self._devices.request(rtnetlink.NEW_ADDRESS, _REPLACE, payload)

    def _remove(self, kind: str, entry: NetworkEntry) -> None:
        payload = self._payload(kind, entry)
        if payload is None:
            return
        try:
            self._devices.request(_MAKE[kind] + _REMOVE, 0, payload)
        except OSError:
            pass  # the new container's engine has given something else

    def _remove_what_came_by_itself(self) -> None:
        """Remove the routes of addresses that the container's programs had removed."""

        def lasting(header: bytes, attributes: bytes) -> bytes:
            layout = {**layouts.ROUTE, layouts.RTA_EXPIRES: None}
            return header + walk(attributes, layout, Visitor(lambda index: index, lambda _: None))

        wanted = {
            lasting(entry.header, self._devices.translate(entry.attributes, layouts.ROUTE))
            for entry in self._network.added.routes
            if state.devices_of("routes", entry) <= self._indexes.keys()
        }
        inside = {self._indexes[index] for index in self._inside}
        for entry in state.read(self._devices.pid).entries["routes"]:
            devices = state.devices_of("routes", entry)
            if (
                devices
                and devices <= inside
                and lasting(entry.header, entry.attributes) not in wanted
            ):
                self._devices.request(rtnetlink.DELETE_ROUTE, 0, entry.header + entry.attributes)


def _has_gateway(entry: NetworkEntry) -> bool:
    told = attributes_of(memoryview(entry.attributes))
    gateways = {layouts.RTA_GATEWAY, layouts.RTA_VIA, layouts.RTA_MULTIPATH}
    return bool(gateways & told.keys())
