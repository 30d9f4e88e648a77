"""The image's networks and packet filters, set up in the new container with its own rights."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec

from woodfrog.engine.admission import Bounds
from woodfrog.engine.making_namespaces import MadeNamespaces
from woodfrog.engine.plan import Plan
from woodfrog.remote.stub import Stub
from woodfrog.resources import credentials

if TYPE_CHECKING:
    from woodfrog.resources.network.records import Network
    from woodfrog.resources.packet_filters.legacy import LegacyTable
    from woodfrog.resources.packet_filters.nftables import Nftables
    from woodfrog.resources.packet_filters.tracked import Tracked

_OWN = 0


class _SetUp(msgspec.Struct, frozen=True):
    """What a network namespace is set up with; its id is 0 for the container's own."""

    number: int
    settings: list[tuple[str, bytes]]
    network: Network | None
    rules: Nftables | None
    tables: list[LegacyTable]
    tracked: Tracked | None


class Networking:
    """What programs had set up; sockets for it are opened by the root stub while it may."""

    def __init__(self, plan: Plan, bounds: Bounds, undo: ExitStack) -> None:
        self._plan = plan
        self._bounds = bounds
        self._undo = undo
        self._filters: list[tuple[socket.socket, Nftables | LegacyTable | Tracked]] = []

    def _all(self) -> Iterator[_SetUp]:
        plan = self._plan
        if plan.network or plan.rules or plan.tables or plan.tracked:
            yield _SetUp(_OWN, [], plan.network, plan.rules, plan.tables, plan.tracked)
        for one in plan.networks_made:
            if one.is_set_up:
                told = one.settings, one.network, one.rules, one.tables, one.tracked
                yield _SetUp(one.id, *told)

    @property
    def addresses(self) -> set[bytes]:
        """The addresses that programs had added in the container's own network namespace."""
        return self._plan.network.addresses if self._plan.network else set()

    def refuse_wider(self, init: int) -> None:
        """Refuse what the waiting container may not do, or lacks."""
        for one in self._all():
            from woodfrog.resources import sysctls
            from woodfrog.resources.network import making

            is_own = one.number == _OWN
            sysctls.refuse_read_only(init, one.settings)
            making.refuse_wider(
                init,
                one.network if is_own else None,
                joins=is_own and "network" not in self._bounds.new_namespaces,
                bounding=self._bounds.bounding,
            )

    def set_up(self, root: Stub, permitted: int, made: MadeNamespaces) -> list[str]:
        """Make devices and what belongs to them; returns what the new container lacks."""
        all_of_it = list(self._all())
        if not all_of_it:
            return []
        from woodfrog.kernel.netlink import generic, rtnetlink
        from woodfrog.kernel.netlink.messages import explain
        from woodfrog.resources import sysctls
        from woodfrog.resources.network import making, mptcp
        from woodfrog.resources.network.devices import Devices

        bounding = self._bounds.bounding
        devices: dict[int, Devices] = {}
        multipath: dict[int, socket.socket] = {}
        with ExitStack() as sockets:
            for one in all_of_it:
                with made.visited(root, "net", one.number):
                    with credentials.with_capabilities(root, bounding, permitted):
                        sysctls.write(root, one.settings)
                    self._open_for_filters(root, permitted, one)
                    if one.network:
                        kind, protocol = socket.SOCK_RAW, rtnetlink.NETLINK_ROUTE
                        netlink = sockets.enter_context(
                            self._open(root, permitted, socket.AF_NETLINK, kind, protocol)
                        )
                        explain(netlink)
                        descriptor = made.descriptor("net", one.number)
                        devices[one.number] = Devices(
                            root, one.network, netlink, descriptor, devices
                        )
                        if one.network.mptcp:
                            protocol = generic.NETLINK_GENERIC
                            multipath[one.number] = sockets.enter_context(
                                self._open(root, permitted, socket.AF_NETLINK, kind, protocol)
                            )
            steps = (
                Devices.make,
                Devices.set_up,
                lambda some: making.Making(some).make(),
                Devices.finish,
            )
            for step in steps:
                for number, some in devices.items():
                    with (
                        made.visited(root, "net", number),
                        credentials.with_capabilities(root, bounding, permitted),
                    ):
                        step(some)
            for number, netlink in multipath.items():
                some = devices[number]
                if found := some.network.mptcp:
                    explain(netlink)
                    some.missing += mptcp.make(netlink, found, some.indexes)
        return [lack for some in devices.values() for lack in some.missing]

    def _open(
        self, root: Stub, permitted: int, family: int, kind: int, protocol: int
    ) -> socket.socket:
        from woodfrog.resources.network import making

        bounding = self._bounds.bounding
        return making.socket_of(
            root, family, kind, protocol, bounding=bounding, permitted=permitted
        )

    def _open_for_filters(self, root: Stub, permitted: int, one: _SetUp) -> None:
        # What goes on must be known before rules can ask whether it does.
        of_netfilter: tuple[Tracked | Nftables | None, ...] = (one.tracked, one.rules)
        for record in of_netfilter:
            if record is None:
                continue
            from woodfrog.kernel.netlink import nf_messages

            kind, protocol = socket.SOCK_RAW, nf_messages.NETLINK_NETFILTER
            netlink = self._open(root, permitted, socket.AF_NETLINK, kind, protocol)
            self._filters.append((self._undo.enter_context(netlink), record))
        for family in {table.family for table in one.tables}:
            on = self._undo.enter_context(self._open(root, permitted, family, socket.SOCK_DGRAM, 0))
            self._filters += [(on, table) for table in one.tables if table.family == family]

    def filter(self) -> list[str]:
        """Make the packet filters, last: they may forbid what a restore sends.

        Returns which of the connections that were tracked are not any more.
        """
        lost = []
        for on, one in self._filters:
            from woodfrog.resources.packet_filters import legacy, nftables, tracked

            if isinstance(one, tracked.Tracked):
                lost += tracked.restore(on, one)
            elif isinstance(one, legacy.LegacyTable):
                legacy.restore(on, one)
            else:
                nftables.restore(on, one)
        return lost
