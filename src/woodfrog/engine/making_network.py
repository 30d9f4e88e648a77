"""The image's network and packet filters, set up in the new container with its own rights."""

import socket
from contextlib import ExitStack

from woodfrog.engine.admission import Bounds, Plan
from woodfrog.kernel.netlink import nf_messages, rtnetlink
from woodfrog.remote.stub import Stub
from woodfrog.resources.network import making
from woodfrog.resources.packet_filters import nftables


class Networking:
    """What programs had set up; sockets for it are opened by the root stub while it may."""

    def __init__(self, plan: Plan, bounds: Bounds, undo: ExitStack) -> None:
        self._plan = plan
        self._bounds = bounds
        self._undo = undo
        self._netfilter: socket.socket | None = None

    def refuse_wider(self, init: int) -> None:
        """Refuse what the waiting container may not do, or lacks."""
        if self._plan.network or self._plan.rules:
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
        return missing

    def _open(self, root: Stub, protocol: int, permitted: int) -> socket.socket:
        return making.socket_of(root, protocol, bounding=self._bounds.bounding, permitted=permitted)

    def filter(self) -> None:
        """Make the packet filters, last: they may forbid what a restore sends."""
        if self._plan.rules and self._netfilter:
            nftables.restore(self._netfilter, self._plan.rules)
