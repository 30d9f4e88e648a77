"""ip_tables and ip6_tables (linux/netfilter_ipv4/ip_tables.h): whole tables, by socket options."""

import ctypes
import socket
import struct
from collections.abc import Iterator

import msgspec

from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE

# By family: the level of the options, and the size of what an entry says of a packet's header.
_LEVELS: dict[int, int] = {socket.AF_INET: socket.IPPROTO_IP, socket.AF_INET6: socket.IPPROTO_IPV6}
_HEADS: dict[int, int] = {socket.AF_INET: 84, socket.AF_INET6: 136}
_NAMES: dict[int, str] = {socket.AF_INET: "ip_tables_names", socket.AF_INET6: "ip6_tables_names"}
_GET_INFO, _GET_ENTRIES, _REPLACE, _ADD_COUNTERS = 64, 65, 64, 65
_INFO = struct.Struct("<32s13I")  # name, hooks, entries and underflows by hook, number, size
_ASKED = struct.Struct("<32sI4x")  # ipt_get_entries, xt_counters_info
_REPLACEMENT = struct.Struct("<32s14IQ")
_OFFSETS = struct.Struct("<4xHH")  # after the head: of the target, of the next entry
_EXTENSION = struct.Struct("<H29sB")  # size, name, revision
_COUNTERS = 16
HOOKS = 5


class Table(msgspec.Struct, frozen=True):
    """A table: which hooks it has, where in its entries they begin and end, and the entries."""

    hooks: int
    begins: tuple[int, ...]
    ends: tuple[int, ...]
    number: int  # of its entries
    entries: bytes


def names(family: int) -> list[str]:
    """Return the tables that there are in our own network namespace."""
    try:
        with open(f"/proc/thread-self/net/{_NAMES[family]}", encoding="ascii") as file:
            return file.read().split()
    except FileNotFoundError:
        return []


def _get(on: socket.socket, option: int, value: bytearray) -> None:
    length = bytearray(struct.pack("<I", len(value)))
    HERE.call(SYS.GETSOCKOPT, on.fileno(), _LEVELS[on.family], option, value, length)


def _info(on: socket.socket, name: str) -> tuple[int, ...]:
    value = bytearray(_INFO.size)
    value[: len(name)] = name.encode()
    _get(on, _GET_INFO, value)
    numbers: tuple[int, ...] = _INFO.unpack(value)[1:]
    return numbers


def read(on: socket.socket, name: str) -> Table:
    """Read a table by a socket of its family; one that isn't there yet is made."""
    numbers = _info(on, name)
    count, size = numbers[-2:]
    value = bytearray(_ASKED.pack(name.encode(), size) + bytes(size))
    _get(on, _GET_ENTRIES, value)
    begins, ends = numbers[1 : 1 + HOOKS], numbers[1 + HOOKS : 1 + 2 * HOOKS]
    return Table(numbers[0], begins, ends, count, bytes(value[_ASKED.size :]))


def write(on: socket.socket, name: str, table: Table) -> None:
    """Put a table in the place of the one that is there, with its counters."""
    before = _info(on, name)[-2]
    old = ctypes.create_string_buffer(max(before, 1) * _COUNTERS)
    head = _REPLACEMENT.pack(
        name.encode(),
        table.hooks,
        table.number,
        len(table.entries),
        *table.begins,
        *table.ends,
        before,
        ctypes.addressof(old),
    )
    on.setsockopt(_LEVELS[on.family], _REPLACE, head + table.entries)
    counters = b"".join(one.counters for one in parts(on.family, table.entries))
    added = _ASKED.pack(name.encode(), len(counters) // _COUNTERS) + counters
    on.setsockopt(_LEVELS[on.family], _ADD_COUNTERS, added)


def without_counters(family: int, entries: bytes) -> bytes:
    """Return the entries of a table with counters of zero."""
    changed = bytearray(entries)
    for part in parts(family, entries):
        changed[part.counters_at : part.counters_at + _COUNTERS] = bytes(_COUNTERS)
    return bytes(changed)


class Part(msgspec.Struct, frozen=True):
    """An entry of a table, as far as anybody but the kernel needs to know."""

    counters: bytes
    counters_at: int
    extensions: list[bytes]  # names of its matches and of its target


def parts(family: int, entries: bytes) -> Iterator[Part]:
    """Yield each entry of a table; raises ValueError for what can't be."""
    head = _HEADS[family]
    counters = -(-(head + 12) // 8) * 8
    first = counters + _COUNTERS
    at = 0
    while at < len(entries):
        if at + first + _EXTENSION.size > len(entries):
            raise ValueError("half an entry")
        target, following = _OFFSETS.unpack_from(entries, at + head)
        if not first <= target <= following - _EXTENSION.size or at + following > len(entries):
            raise ValueError("an entry that ends elsewhere")
        found = []
        place = first
        while place < target:
            size, name, _ = _EXTENSION.unpack_from(entries, at + place)
            if not _EXTENSION.size <= size <= target - place:
                raise ValueError("a match that ends elsewhere")
            found.append(name.rstrip(b"\0"))
            place += size
        found.append(_EXTENSION.unpack_from(entries, at + target)[1].rstrip(b"\0"))
        yield Part(entries[at + counters : at + first], at + counters, found)
        at += following
