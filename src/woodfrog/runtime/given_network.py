"""What an engine has set up in a container's network namespace by the time that it starts.

A checkpoint keeps what programs did to that later. Containers that may not do anything to it
(CAP_NET_ADMIN), or that join another's, pay nothing for this. At a start the init reads it, which
is there already, and tells `start` by the FIFO.
"""

from __future__ import annotations

import os

from woodfrog.runtime import spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from woodfrog.runtime.state import Container

_FILE, _TABLES = "network", "tables"
_WORD = b"network "


def may_change(config: dict[str, Any]) -> bool:
    """Tell whether programs in a container may set up a network of its own."""
    bounding = ((config.get("process") or {}).get("capabilities") or {}).get("bounding") or ()
    return "CAP_NET_ADMIN" in bounding and "network" in spec.new_namespaces(config)


def note(container: Container, config: dict[str, Any]) -> None:
    """Write down how the network namespace is now."""
    if not may_change(config):
        return
    from woodfrog.kernel.caller import HERE
    from woodfrog.kernel.namespaces import CLONE_NEWNET, setns

    note_tables(container, config)
    ours = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    theirs = os.open(f"/proc/{container.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(HERE, theirs, CLONE_NEWNET)
        try:
            told = _reader()()
        finally:
            setns(HERE, ours, CLONE_NEWNET)
    finally:
        os.close(ours)
        os.close(theirs)
    container.write(_FILE, told)


def _reader() -> Callable[[], bytes]:
    """Return what reads how the network namespace is that we are in then."""
    from woodfrog.kernel.netlink import dumps, nf_messages, rtnetlink

    def read() -> bytes:
        route = dumps.open_socket(rtnetlink.NETLINK_ROUTE)
        netfilter = nf_messages.open_socket()
        told = rtnetlink.read_all(route) + nf_messages.read_all(netfilter)
        route.close()
        if netfilter:
            netfilter.close()
        return told

    return read


def teller(config: dict[str, Any]) -> Callable[[int], None] | None:
    """Return what has the init tell `start` of its network namespace, if it needs to be known.

    What it takes is imported at once: later there is only the container's root.
    """
    if not may_change(config):
        return None
    read = _reader()

    def tell(fifo: int) -> None:
        try:
            line = memoryview(_WORD + read().hex().encode() + b"\n")
        except OSError:
            return  # nobody may be kept from starting by this
        while line:
            line = line[os.write(fifo, line) :]

    return tell


def take(container: Container, line: bytes) -> bool:
    """Write down what the init has told, if a line is that."""
    if not line.startswith(_WORD):
        return False
    container.write(_FILE, bytes.fromhex(line[len(_WORD) :].decode()))
    return True


def note_tables(container: Container, config: dict[str, Any]) -> None:
    """Write down which tables of legacy iptables there are now."""
    if not may_change(config):
        return
    tables = [*_tables(container.pid, 2, "ip"), *_tables(container.pid, 10, "ip6")]
    if tables:
        container.write(_TABLES, " ".join(tables).encode())


def _tables(pid: int, family: int, name: str) -> list[str]:
    """Return the tables of legacy iptables."""
    try:
        with open(f"/proc/{pid}/net/{name}_tables_names", "rb", buffering=0) as file:
            return [f"{family}/{table}" for table in file.readall().decode().split()]
    except FileNotFoundError:
        return []


def noted(container: Container, config: dict[str, Any]) -> bytes | None:
    """Return what was written down: None for a container that can't have changed it.

    It is empty if an older woodfrog started the container.
    """
    if not may_change(config):
        return None
    try:
        with open(container.path(_FILE), "rb", buffering=0) as file:
            return file.readall()
    except FileNotFoundError:
        return b""


def noted_tables(container: Container) -> frozenset[str]:
    """Return the tables of legacy iptables that were there: FAMILY/NAME of each."""
    try:
        with open(container.path(_TABLES), "rb", buffering=0) as file:
            return frozenset(file.readall().decode().split())
    except FileNotFoundError:
        return frozenset()
