"""What programs set up in the container's network namespaces, its own and those that they made."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from woodfrog.engine.collecting_namespaces import Namespaces
from woodfrog.engine.obstacles import Obstacles
from woodfrog.kernel.netlink import rtnetlink
from woodfrog.kernel.netlink.messages import nsid, socket_at
from woodfrog.resources import namespaces, sysctls

if TYPE_CHECKING:
    from woodfrog.resources.network.looking import Place
    from woodfrog.resources.network.records import Network
    from woodfrog.resources.packet_filters.legacy import LegacyTable
    from woodfrog.resources.packet_filters.nftables import Nftables
    from woodfrog.resources.packet_filters.tracked import Tracked

_OWN = 0


def prepare() -> None:
    """Import what a look at a network needs."""
    from woodfrog.resources.network import looking, others, rarer, state  # noqa: F401
    from woodfrog.resources.packet_filters import legacy, nftables  # noqa: F401


class Networks:
    """The container's own network, and what is lost; those of nested namespaces go to these."""

    def __init__(self) -> None:
        self.network: Network | None = None
        self.rules: Nftables | None = None
        self.tables: list[LegacyTable] = []
        self.tracked: Tracked | None = None
        self.losses: list[str] = []

    def collect(
        self,
        init: int,
        view: int,
        nested: Namespaces,
        obstacles: Obstacles,
        given: bytes | None,
        given_tables: frozenset[str],
        usual: sysctls.Usual,
    ) -> None:
        """Look at all of them; `given` is what the own one had at the start, None if none may.

        Each knows others that its devices have an end in.
        """
        own = os.open(f"/proc/{init}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            all_of_them = dict(nested.descriptors("net"))
            if given is not None:
                all_of_them[_OWN] = own
            if not all_of_them:
                return
            from woodfrog.resources.network import state
            from woodfrog.resources.network.looking import Place

            fresh = state.fresh() if all_of_them.keys() - {_OWN} else b""
            for number, descriptor in all_of_them.items():
                with obstacles.at("the container"):
                    place = Place(
                        descriptor,
                        view,
                        not namespaces.is_ours(init, "user"),
                        _neighbours_of(number, all_of_them),
                        usual,
                    )
                    if number == _OWN and given is not None:
                        found = self._look(place, given, given, given_tables)
                        self.network, self.rules, self.tables = found
                        self.tracked = _tracked(descriptor)
                    else:
                        found = self._look(place, fresh, b"", frozenset())
                        settings = _settings(place, usual)
                        _put(nested, number, settings, *found, _tracked(descriptor))
        finally:
            os.close(own)

    def _look(
        self, place: Place, given: bytes, given_rules: bytes, given_tables: frozenset[str]
    ) -> tuple[Network | None, Nftables | None, list[LegacyTable]]:
        from woodfrog.resources.network import looking, others, rarer
        from woodfrog.resources.packet_filters import legacy, nftables

        others.refuse(place.namespace)
        rarer.refuse(place.namespace)
        network, losses = looking.collect(place, given)
        rules, more = nftables.collect(place.namespace, given_rules)
        tables, lost = legacy.collect(place.namespace, given_tables)
        self.losses += [*losses, *more, *lost]
        return network, rules, tables


def _neighbours_of(number: int, all_of_them: Mapping[int, int]) -> dict[int, int]:
    """Return the ids of the others by what this network namespace calls them."""
    found = {}
    kind, protocol = socket.SOCK_RAW, rtnetlink.NETLINK_ROUTE
    with socket_at(all_of_them[number], socket.AF_NETLINK, kind, protocol) as netlink:
        for other, descriptor in all_of_them.items():
            if other != number and (name := nsid(netlink, descriptor)) is not None:
                found[name] = other
    return found


def _settings(place: Place, usual: sysctls.Usual) -> list[tuple[str, bytes]]:
    if sysctls.is_read_only(place.view):
        return []
    with namespaces.within(place.namespace, "net"):
        return sysctls.changed_here("net", usual)


def _tracked(namespace: int) -> Tracked | None:
    from woodfrog.resources.network import others

    if not others.count_tracked(namespace):
        return None
    from woodfrog.resources.packet_filters import tracked

    return tracked.collect(namespace)


def _put(
    nested: Namespaces,
    number: int,
    settings: list[tuple[str, bytes]],
    network: Network | None,
    rules: Nftables | None,
    tables: list[LegacyTable],
    tracked: Tracked | None,
) -> None:
    from woodfrog.resources.nested import NetworkNamespace

    for position, record in enumerate(nested.records):
        if isinstance(record, NetworkNamespace) and record.id == number:
            nested.records[position] = msgspec.structs.replace(
                record,
                settings=settings,
                network=network,
                rules=rules,
                tables=tables,
                tracked=tracked,
            )
