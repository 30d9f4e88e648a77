"""Internet addresses and devices of the network namespaces that files are made in."""

import os
import socket

from woodfrog.kernel import netdevice
from woodfrog.kernel.netlink.messages import socket_in
from woodfrog.kernel.procfs.addresses import read_addresses, read_ipv6_at


class Addresses:
    """Those that were looked for, by the ids of namespaces; `pid` is a process that is there."""

    def __init__(self) -> None:
        self._all: dict[int, frozenset[bytes]] = {}
        # By namespace, device and family.
        self._of_devices: dict[tuple[int, bytes, int], bytes] = {}

    def has(self, pid: int, network: int, address: bytes) -> bool:
        """Tell whether a namespace has an address."""
        if network not in self._all:
            self._all[network] = frozenset(read_addresses(pid))
        return address in self._all[network]

    def at(self, pid: int, network: int, device: bytes, family: int) -> bytes:
        """Return an address of a device; empty if it is missing, or has none."""
        key = network, device, family
        if key not in self._of_devices:
            if family == socket.AF_INET6:
                found = read_ipv6_at(pid, os.fsdecode(device))
            else:
                with socket_in(pid, family, socket.SOCK_DGRAM, 0) as one:
                    found = netdevice.address_of(one.fileno(), device)
            self._of_devices[key] = found
        return self._of_devices[key]


def device_number(pid: int, name: bytes) -> int:
    """Return the number of a device; 0 if there is none such."""
    with socket_in(pid, socket.AF_INET, socket.SOCK_DGRAM, 0) as one:
        return netdevice.number_of(one.fileno(), name)
