"""The image's network and packet filters, set up in the new container with its own rights."""

import socket
from contextlib import ExitStack

from woodfrog.engine.admission import Bounds, Plan
from woodfrog.kernel.netlink import nf_messages, rtnetlink
from woodfrog.remote.stub import Stub
from woodfrog.resources.network import making
from woodfrog.resources.packet_filters import legacy, nftables


class Networking:
    """What programs had set up; sockets for it are opened by the root stub while it may."""

    def __init__(self, plan: Plan, bounds: Bounds, undo: ExitStack) -> None:
        self._plan = plan
        self._bounds = bounds
        self._undo = undo
        self._netfilter: socket.socket | None = None
        self._by_family: dict[int, socket.socket] = {}

    def refuse_wider(self, init: int) -> None:
        """Refuse what the waiting container may not do, or lacks."""
        if self._plan.network or self._plan.rules or self._plan.tables:
            new = "network" in self._bounds.new_namespaces
            making.refuse_wider(init, self._plan.network, new=new, bounding=self._bounds.bounding)

    def set_up(self, root: Stub, permitted: int) -> list[str]:
        """Make devices and what belongs to them; returns what the new container lacks."""
        missing = []
        bounding = self._bounds.bounding
        if self._plan.network:
            with self._open(root, rtnetlink.NETLINK_ROUTE, permitted) as netlink:
                missing = making.restore(
                    root, netlink, self._plan.network, bounding=bounding, permitted=permitted
                )
        if self._plan.rules:
            netlink = self._open(root, nf_messages.NETLINK_NETFILTER, permitted)
            self._netfilter = self._undo.enter_context(netlink)
        for family in {table.family for table in self._plan.tables}:
            on = making.socket_of(
                root, family, socket.SOCK_DGRAM, 0, bounding=bounding, permitted=permitted
            )
            self._by_family[family] = self._undo.enter_context(on)
        return missing

    def _open(self, root: Stub, protocol: int, permitted: int) -> socket.socket:
        family, kind, bounding = socket.AF_NETLINK, socket.SOCK_RAW, self._bounds.bounding
        return making.socket_of(
            root, family, kind, protocol, bounding=bounding, permitted=permitted
        )

    def filter(self) -> None:
        """Make the packet filters, last: they may forbid what a restore sends."""
        if self._plan.rules and self._netfilter:
            nftables.restore(self._netfilter, self._plan.rules)
        for table in self._plan.tables:
            legacy.restore(self._by_family[table.family], table)
