"""The network devices of an image, made in a new container."""

import errno
import os
import socket
import struct
import time
from collections.abc import Iterable, Mapping

from woodfrog.errors import while_
from woodfrog.kernel import syscalls
from woodfrog.kernel.netlink import rtnetlink
from woodfrog.kernel.netlink.attributes import Layout
from woodfrog.kernel.netlink.messages import (
    NLM_F_ACK,
    NLM_F_APPEND,
    NLM_F_CREATE,
    answers,
    attribute,
    attributes_of,
    message,
    nested,
)
from woodfrog.remote.stub import Stub
from woodfrog.resources import sysctls
from woodfrog.resources.network import layouts, state, tun
from woodfrog.resources.network.records import SAME, GivenDevice, Link, Network, translated

_LINK = struct.Struct("<BxHiII")
_EXCLUSIVE = 0x200
_AF_INET6 = socket.AF_INET6
_MOST_SECONDS = 1.0
_ADDRESS = struct.Struct("<B2xBI")  # struct ifaddrmsg: family, scope, index
_SCOPE_LINK = 253
_NO_ADDRESSES, _STABLE_ADDRESSES = 1, 2  # IN6_ADDR_GEN_MODE_NONE, IN6_ADDR_GEN_MODE_STABLE_PRIVACY


class Devices:
    """Makes devices by a socket that has the container's own rights.

    `indexes` are theirs in the new container, by those of the image. `others` has the devices of
    the container's other network namespaces by the ids of those, `descriptor` is one of this one.
    """

    def __init__(
        self,
        stub: Stub,
        network: Network,
        netlink: socket.socket,
        descriptor: int,
        others: "Mapping[int, Devices]",
    ) -> None:
        self._stub = stub
        self._descriptor = descriptor
        self._others = others
        self.network = network
        self._netlink = netlink
        self._links = list(_lower_first(network.links))
        self.pid = stub.pid
        self.indexes: dict[int, int] = {}
        self.missing: list[str] = []
        # The stub's descriptors of tun devices, which would have no carrier without a holder.
        self._held: list[int] = []

    def make(self) -> None:
        """Make them."""
        self._find_given()
        for link in self._links:
            if link.index not in self.indexes:
                with while_(f"making the network device {os.fsdecode(link.name)}"):
                    self._make(link)

    def set_up(self) -> None:
        """Set them up when those of all namespaces are there, and switch them on."""
        for link in self._links:
            with while_(f"setting up the network device {os.fsdecode(link.name)}"):
                self._set_up(link)
        for given in self.network.given:
            if given.index in self.indexes:
                with while_(f"setting up the network device {os.fsdecode(given.name)}"):
                    self._change(given)
        for link in self._links:
            self._set_flags(link.index, link.flags, state.FLAGS)

    def finish(self) -> None:
        """Let them make addresses of their own as they did; they have those that they had."""
        self._await_carriers(self._links)
        for link in self._links:
            self._finish(link)
        program = self._stub.program()
        for held in self._held:
            # Those who had them are yet to come.
            syscalls.close(program, held)
        self._stub.run(program)

    def request(self, kind: int, flags: int, payload: bytes) -> None:
        """Have the kernel do something."""
        self._netlink.sendall(message(kind, NLM_F_ACK | flags, payload))
        for _ in answers(self._netlink, "rtnetlink"):
            pass

    def translate(self, attributes: bytes, layout: Layout) -> bytes:
        """Return attributes with the indexes of the new container."""
        return translated(attributes, layout, self.indexes)

    def _find_given(self) -> None:
        there = state.read(self.pid).links.values()
        by_name = {seen.name: seen.number for seen in there}
        for given in self.network.given:
            if given.name in by_name:
                self.indexes[given.index] = by_name[given.name]
            else:
                name = os.fsdecode(given.name)
                self.missing.append(f"the container has no network device {name} any more")

    def _make(self, link: Link) -> None:
        if link.type == "tun":
            held = self._has_been_ready(link)
            self._held += tun.make(self._stub, link, held=held)
            self.indexes[link.index] = link.index
            self._set(link.index, self.translate(link.attributes, layouts.CHANGEABLE))
        else:
            try:
                self._make_with(link, link.index)
            except OSError as error:
                if error.errno not in (errno.EBUSY, errno.EEXIST):
                    raise
                # The engine has given the index to one of its devices.
                self._make_with(link, 0)
        self._note(link)
        if link.type == "veth":
            self._home_of_peer(link)._note(self._peer(link))

    def _home_of_peer(self, link: Link) -> "Devices":
        return self if link.elsewhere == SAME else self._others[link.elsewhere]

    def _note(self, link: Link) -> None:
        index = self._index(link.name)
        self.indexes[link.index] = index
        if index != link.index:
            self.missing.append(
                f"the network device {os.fsdecode(link.name)} has the index {index}, no longer"
                f" {link.index}"
            )

    def _index(self, name: bytes) -> int:
        body = _LINK.pack(0, 0, 0, 0, 0) + attribute(layouts.IFLA_IFNAME, name + b"\0")
        self._netlink.sendall(message(rtnetlink.NEW_LINK + 2, NLM_F_ACK, body))
        index = 0
        for _, payload in answers(self._netlink, "looking for it"):
            index = _LINK.unpack_from(payload)[2]
        return index

    def _peer(self, link: Link) -> Link:
        links = self._home_of_peer(link).network.links
        return next(one for one in links if one.index == link.lower)

    def _make_with(self, link: Link, index: int) -> None:
        data = self.translate(link.data, layouts.KINDS[link.type])
        if link.type == "veth":
            peer, home = self._peer(link), self._home_of_peer(link)
            there = _LINK.pack(0, 0, peer.index if index else 0, 0, 0) + home._attributes(peer)
            if home is not self:
                there += attribute(layouts.IFLA_NET_NS_FD, struct.pack("<I", home._descriptor))
            data = attribute(layouts.VETH_INFO_PEER | 0x8000, there)
        body = _LINK.pack(0, 0, index, 0, 0) + self._attributes(link)
        if link.lower and link.type != "veth":
            body += attribute(layouts.IFLA_LINK, struct.pack("<I", self.indexes[link.lower]))
        body += nested(
            layouts.IFLA_LINKINFO,
            attribute(layouts.IFLA_INFO_KIND, link.type.encode()),
            attribute(layouts.IFLA_INFO_DATA | 0x8000, data),
        )
        self.request(rtnetlink.NEW_LINK, NLM_F_CREATE | _EXCLUSIVE, body)

    def _attributes(self, link: Link) -> bytes:
        kept = link.attributes
        if self._finds_address(link):
            layout = {**layouts.LINK, layouts.IFLA_ADDRESS: None}
            return self.translate(kept, layout) + self._name(link)
        return self.translate(kept, layouts.LINK) + self._name(link)

    def _name(self, link: Link) -> bytes:
        return attribute(layouts.IFLA_IFNAME, link.name + b"\0")

    def _finds_address(self, link: Link) -> bool:
        """Tell whether a bridge has its address from its ports: the lowest of theirs."""

        def address(one: Link) -> bytes:
            return attributes_of(memoryview(one.attributes)).get(layouts.IFLA_ADDRESS, b"")

        ports = [address(one) for one in self.network.links if one.master == link.index]
        return link.type == "bridge" and bool(ports) and address(link) == min(ports)

    def _set(self, index: int, *attributes: bytes, flags: int = 0, change: int = 0) -> None:
        body = _LINK.pack(0, 0, self.indexes[index], flags, change) + b"".join(attributes)
        self.request(rtnetlink.NEW_LINK, 0, body)

    def _set_flags(self, index: int, flags: int, change: int) -> None:
        self._set(index, flags=flags, change=change)

    def _set_up(self, link: Link) -> None:
        late = self.translate(link.attributes, layouts.LATE)
        if late:
            self._set(link.index, late)
        if link.names:
            body = _LINK.pack(0, 0, self.indexes[link.index], 0, 0)
            body += nested(layouts.IFLA_PROP_LIST, self.translate(link.names, layouts.ALT_NAMES))
            flags = NLM_F_CREATE | NLM_F_APPEND | _EXCLUSIVE
            self.request(rtnetlink.NEW_LINK_PROPERTY, flags, body)
        if link.specific:
            self._set(link.index, _generating(_NO_ADDRESSES))
        sysctls.write(self._stub, link.settings)
        if link.master in self.indexes:
            self._enslave(link.index, link.master)
            port = self.translate(link.port, layouts.PORTS.get(link.port_of, {}))
            if port:
                info = attribute(layouts.IFLA_INFO_SLAVE_KIND, link.port_of.encode())
                info += attribute(layouts.IFLA_INFO_SLAVE_DATA | 0x8000, port)
                self._set(link.index, nested(layouts.IFLA_LINKINFO, info))

    def _enslave(self, index: int, master: int) -> None:
        self._set(index, attribute(layouts.IFLA_MASTER, struct.pack("<I", self.indexes[master])))

    def _change(self, given: GivenDevice) -> None:
        if given.attributes:
            self._set(given.index, self.translate(given.attributes, layouts.CHANGEABLE))
        if given.master in self.indexes:
            self._enslave(given.index, given.master)
        if given.changed:
            self._set_flags(given.index, given.flags, given.changed)

    def _await_carriers(self, links: Iterable[Link]) -> None:
        """Wait until devices run of which the kernel would make another address when they do."""
        waiting = {
            self.indexes[link.index]
            for link in links
            if (link.type == "tun" and self._has_been_ready(link))
            or (link.running and link.type != "tun" and not self._has_address_of_its_own(link))
        }
        end = time.monotonic() + _MOST_SECONDS
        while waiting and time.monotonic() < end:
            seen = state.read(self.pid).links
            waiting = {index for index in waiting if not seen[index].flags & state.IFF_RUNNING}
            if waiting:
                time.sleep(0.005)

    def _has_been_ready(self, link: Link) -> bool:
        """Tell whether a device has had a carrier: then it has an address of IPv6 for itself."""
        heads = (_ADDRESS.unpack(entry.header) for entry in self.network.added.addresses)
        return any(
            family == _AF_INET6 and scope == _SCOPE_LINK and index == link.index
            for family, scope, index in heads
        )

    def _has_address_of_its_own(self, link: Link) -> bool:
        """Tell whether a device has the address of IPv6 that its hardware address makes."""
        hardware = attributes_of(memoryview(link.attributes)).get(layouts.IFLA_ADDRESS, b"")
        if len(hardware) != 6:
            return True
        made = bytes((hardware[0] ^ 2, *hardware[1:3], 0xFF, 0xFE, *hardware[3:]))
        addresses = [
            attributes_of(memoryview(entry.attributes)).get(layouts.IFA_ADDRESS)
            for entry in self.network.added.addresses
            if state.devices_of("addresses", entry) == {link.index}
        ]
        return b"\xfe\x80" + bytes(6) + made in addresses

    def _finish(self, link: Link) -> None:
        """Let a device make addresses of its own as it did."""
        if not link.specific:
            return
        family = attributes_of(memoryview(link.specific))
        inner = next(iter(family.values()), b"")
        told = {number & 0x3FFF: one for number, one in attributes_of(memoryview(inner)).items()}
        mode = told.get(layouts.IFLA_INET6_ADDR_GEN_MODE, b"\0")[0]
        try:
            self._set(link.index, _generating(mode))
        except OSError as error:
            # conf/all/addr_gen_mode sets also what a single device is refused: stable addresses
            # without a secret (check_stable_privacy). It has none then, as it has now.
            if error.errno != errno.EINVAL or mode != _STABLE_ADDRESSES:
                raise
        token = told.get(layouts.IFLA_INET6_TOKEN, b"")
        if any(token):
            self._set(link.index, _of_ipv6(attribute(layouts.IFLA_INET6_TOKEN, token)))


def _generating(mode: int) -> bytes:
    return _of_ipv6(attribute(layouts.IFLA_INET6_ADDR_GEN_MODE, bytes((mode,))))


def _of_ipv6(inner: bytes) -> bytes:
    return nested(layouts.IFLA_AF_SPEC, nested(_AF_INET6, inner))


def _lower_first(links: Iterable[Link]) -> Iterable[Link]:
    """Order devices so that each comes after the one that it is made over."""
    by_index = {link.index: link for link in links}
    placed: set[int] = set()

    def place(link: Link) -> Iterable[Link]:
        if link.index in placed:
            return
        placed.add(link.index)
        if link.elsewhere == SAME and link.lower in by_index:
            yield from place(by_index[link.lower])
        yield link

    for link in by_index.values():
        yield from place(link)
