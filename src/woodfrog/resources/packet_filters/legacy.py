"""Tables of legacy iptables (x_tables), each as a whole."""

import socket
from collections.abc import Collection

import msgspec

from woodfrog.errors import ImageError, UnsupportedResource, while_
from woodfrog.image.record import Record
from woodfrog.kernel import xtables
from woodfrog.kernel.xtables import Table
from woodfrog.resources import namespaces

_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_MOST_NAME = 31
_WORD = 1 << 32
# What an extension finds by a name or number that means another thing in another container.
_FOREIGN = {b"bpf", b"set", b"SET"}


class LegacyTable(Record, frozen=True, tag="iptables"):
    """A table; `begins` and `ends` are where in its entries each hook's chain does."""

    family: int
    name: str
    hooks: int
    begins: list[int]
    ends: list[int]
    count: int
    entries: bytes


def collect(namespace: int, given: Collection[str]) -> tuple[list[LegacyTable], list[str]]:
    """Return the tables that were made in a network namespace, and what is lost.

    `given` are those that the engine had made: FAMILY/NAME of each.
    """
    found, lost = [], []
    for family in _FAMILIES:
        # The kernel tells the newest first.
        with namespaces.within(namespace, "net"):
            names = xtables.names(family)
        for name in reversed(names):
            if f"{int(family)}/{name}" in given:
                lost.append(f"what programs changed in iptables' table {name}, if anything did")
                continue
            with namespaces.within(namespace, "net"):
                on = socket.socket(family, socket.SOCK_DGRAM)
            with on:
                table = xtables.read(on, name)
            for part in xtables.parts(family, table.entries):
                if foreign := _FOREIGN & set(part.extensions):
                    raise UnsupportedResource(
                        f"has a rule of iptables with {min(foreign).decode()}, which cannot be"
                        " saved"
                    )
            found.append(
                LegacyTable(
                    family=family,
                    name=name,
                    hooks=table.hooks,
                    begins=list(table.begins),
                    ends=list(table.ends),
                    count=table.number,
                    entries=table.entries,
                )
            )
    return found, lost


def lasting(table: LegacyTable) -> LegacyTable:
    """Return a table without its counters."""
    entries = xtables.without_counters(table.family, table.entries)
    return msgspec.structs.replace(table, entries=entries)


def check(tables: Collection[LegacyTable]) -> None:
    """Check tables of an image, as far as the kernel doesn't."""
    if len({(one.family, one.name) for one in tables}) < len(tables):
        raise ImageError("the image has two tables of iptables of one name")
    for one in tables:
        numbers = (one.hooks, one.count, *one.begins, *one.ends)
        sizes = len(one.begins), len(one.ends)
        if (
            one.family not in _FAMILIES
            or not 0 < len(one.name.encode()) <= _MOST_NAME
            or sizes != (xtables.HOOKS, xtables.HOOKS)
            or any(not 0 <= number < _WORD for number in numbers)
        ):
            raise ImageError("the image has an impossible table of iptables")
        try:
            parts = list(xtables.parts(one.family, one.entries))
        except ValueError as error:
            raise ImageError(f"the image has an impossible table of iptables: {error}") from error
        if any(_FOREIGN & set(part.extensions) for part in parts) or len(parts) != one.count:
            raise ImageError("the image has an impossible table of iptables")


def restore(on: socket.socket, one: LegacyTable) -> None:
    """Put a table in its place by a socket of its family."""
    table = Table(one.hooks, tuple(one.begins), tuple(one.ends), one.count, one.entries)
    with while_(f"making iptables' table {one.name}"):
        xtables.write(on, one.name, table)
