"""/proc/PID/net/fib_trie and if_inet6: the addresses that a network namespace has."""

_GLOBAL = "00"


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
