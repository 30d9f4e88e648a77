"""/proc/PID/net/fib_trie and if_inet6: the addresses that a network namespace has."""

import time

_GLOBAL = "00"
_UNUSABLE = 0x08 | 0x40  # IFA_F_DADFAILED, IFA_F_TENTATIVE
_RTF_LOCAL = 0x80000000
_LINK_LOCAL = b"\xfe\x80"
_ROUTE_MADE_S = 1


def ipv4(text: str) -> list[bytes]:
    """Return the host addresses in a fib_trie."""
    found: dict[bytes, None] = {}
    address = b""
    for line in text.splitlines():
        kind, _, rest = line.strip().partition(" ")
        if kind == "|--":
            address = bytes(map(int, rest.split(".")))
        elif kind == "/32" and rest == "host LOCAL":
            found[address] = None
    return list(found)


def ipv6(text: str) -> list[bytes]:
    """Return the addresses in an if_inet6 that are valid everywhere."""
    lines = map(str.split, text.splitlines())
    return [bytes.fromhex(address) for address, _, _, scope, *_ in lines if scope == _GLOBAL]


def ipv6_local(text: str, device: str) -> list[bytes]:
    """Return a device's own addresses in an ipv6_route: packets to them come in at once."""
    lines = map(str.split, text.splitlines())
    return [
        bytes.fromhex(target)
        for target, *_, flags, name in lines
        if name == device and int(flags, 16) & _RTF_LOCAL
    ]


def has_usable(text: str, device: str) -> bool:
    """Tell whether a device has an address in an if_inet6 that is, or is about to be, its own."""
    lines = map(str.split, text.splitlines())
    return any(name == device and not int(flags, 16) & _UNUSABLE for *_, flags, name in lines)


def read_addresses(pid: int) -> list[bytes]:
    """Return the addresses of a process's network namespace, 4 or 16 bytes each."""
    found = []
    for name, parse in (("fib_trie", ipv4), ("if_inet6", ipv6)):
        try:
            with open(f"/proc/{pid}/net/{name}", encoding="ascii") as file:
                found += parse(file.read())
        except FileNotFoundError:
            pass  # a kernel without that protocol
    return found


def read_ipv6_at(pid: int, device: str) -> bytes:
    """Return an address of a device, global if it has one, in a process's network namespace.

    Waits until the kernel has made the route to a new one, which it does a moment later.
    """
    end = time.monotonic() + _ROUTE_MADE_S
    try:
        while True:
            with open(f"/proc/{pid}/net/ipv6_route", encoding="ascii") as file:
                found = ipv6_local(file.read(), device)
            if found:
                return min(found, key=lambda one: one.startswith(_LINK_LOCAL))
            with open(f"/proc/{pid}/net/if_inet6", encoding="ascii") as file:
                if not has_usable(file.read(), device) or time.monotonic() > end:
                    return b""
            time.sleep(0.001)
    except FileNotFoundError:
        return b""  # a kernel without that protocol
