"""What else a network namespace may be set up with, that is refused or lost by name."""

from woodfrog.errors import UnsupportedResource
from woodfrog.kernel.netlink import dumps
from woodfrog.kernel.netlink.messages import attribute, attributes_of
from woodfrog.resources import namespaces

_NETFILTER, _XFRM = 12, 6
# linux/netfilter/ipset/ip_set.h
_IPSET = 6 << 8
_IPSET_LIST, _IPSET_PROTOCOL = 7, 7
_IPSET_ATTR_PROTOCOL, _IPSET_ATTR_SETNAME, _IPSET_ATTR_FLAGS = 1, 2, 6
_ONLY_NAMES = b"\0\0\0\2"
# linux/xfrm.h
_NEW_STATE, _NEW_POLICY, _FROM_NEW_TO_GET = 0x10, 0x13, 2
_HEADER_BYTES = 4
_MULTICAST_ROUTERS = ("ip_mr_vif", "ip6_mr_vif")


def refuse(namespace: int) -> None:
    """Refuse what can't be saved in the network namespace that a descriptor names."""
    if names := _sets(namespace):
        raise UnsupportedResource(
            f"has sets of ipset ({', '.join(names)}), which cannot be saved yet",
            hint="sets of nftables can be",
        )
    for kind, what in ((_NEW_STATE, "states"), (_NEW_POLICY, "policies")):
        told = _ask(namespace, _XFRM, kind + _FROM_NEW_TO_GET, b"")
        if any(answer == kind for answer, _ in dumps.messages(told)):
            raise UnsupportedResource(
                f"has {what} of IPsec (ip xfrm), which cannot be saved yet",
            )
    for name in _MULTICAST_ROUTERS:
        if len(_lines(namespace, f"/proc/thread-self/net/{name}")) > 1:
            raise UnsupportedResource("routes multicasts (MRT_INIT), which cannot be saved yet")


def count_tracked(namespace: int) -> int:
    """Return how many connections are tracked there (conntrack)."""
    count = _lines(namespace, "/proc/sys/net/netfilter/nf_conntrack_count")
    return int(count[0]) if count else 0


def _sets(namespace: int) -> list[str]:
    asked = bytes(_HEADER_BYTES)
    asked += attribute(_IPSET_ATTR_PROTOCOL, bytes((_IPSET_PROTOCOL,)))
    asked += attribute(_IPSET_ATTR_FLAGS | 0x4000, _ONLY_NAMES)
    told = _ask(namespace, _NETFILTER, _IPSET | _IPSET_LIST, asked)
    found = []
    for answer, payload in dumps.messages(told):
        if answer == _IPSET | _IPSET_LIST:
            name = attributes_of(payload[_HEADER_BYTES:]).get(_IPSET_ATTR_SETNAME, b"")
            found.append(name.rstrip(b"\0").decode(errors="replace"))
    return found


def _ask(namespace: int, protocol: int, kind: int, header: bytes) -> bytes:
    try:
        with namespaces.within(namespace, "net"):
            netlink = dumps.open_socket(protocol)
    except OSError:
        return b""  # not in this kernel
    try:
        return dumps.dump(netlink, kind, header)
    finally:
        netlink.close()


def _lines(namespace: int, path: str) -> list[str]:
    try:
        with namespaces.within(namespace, "net"), open(path, encoding="ascii") as file:
            return file.readlines()
    except FileNotFoundError:
        return []
