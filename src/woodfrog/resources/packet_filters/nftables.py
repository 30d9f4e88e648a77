"""nf_tables: the whole ruleset, as the messages that make it.

What the engine had made by the time that the container started is left out, and is the new
container's own; as are woodfrog's tables.
"""

import socket
import struct
from _socket import socket as raw_socket
from collections.abc import Iterator

import msgspec

from woodfrog.errors import ImageError, UnsupportedResource, while_
from woodfrog.image.record import Part, Record
from woodfrog.kernel.netlink import dumps, nf_messages, nftables
from woodfrog.kernel.netlink.attributes import UnknownKindError, Visitor, walk
from woodfrog.kernel.netlink.messages import (
    NLM_F_APPEND,
    NLM_F_CREATE,
    attribute,
    attributes_of,
    explain,
)
from woodfrog.resources import namespaces
from woodfrog.resources.packet_filters import settable
from woodfrog.resources.packet_filters.compatible import compatibility
from woodfrog.resources.packet_filters.layouts import MESSAGES

_MOST = 1 << 20
_SET_ID = 10
_CHAIN_NAME, _CHAIN_FLAGS, _CHAIN_BINDING = 3, 10, 4
_RULE_CHAIN, _VERDICT_CHAIN = 2, 2
_TABLE, _NAME, _TABLE_NAME, _TABLE_FLAGS = 1, 2, 1, 2


class NfMessage(Part, frozen=True):
    """A message of nf_tables that makes something: its number there, family, and attributes."""

    number: int
    family: int
    attributes: bytes


class Nftables(Record, frozen=True, tag="nftables"):
    """A ruleset, in the order in which it is made."""

    messages: list[NfMessage]


class _Told(msgspec.Struct, frozen=True):
    message: NfMessage
    key: bytes  # without counters


def collect(namespace: int, given: bytes) -> tuple[Nftables | None, list[str]]:
    """Return the ruleset that programs made in a network namespace, and what is lost of it.

    `given` is what nf_tables told when the container started (`nf_messages.read_all`).
    """
    unknown: set[str] = set()
    before = {
        (number, payload[0], _lasting(number, payload[nf_messages.HEADER_BYTES :]))
        for number, payload in _messages(given)
    }
    with namespaces.within(namespace, "net"):
        netlink = nf_messages.open_socket()
    if netlink is None:
        return None, []
    try:
        found = [
            told.message
            for told in _read(netlink, unknown)
            if (told.message.number, told.message.family, told.key) not in before
        ]
    finally:
        netlink.close()
    if not found:
        return None, []
    losses = [f"a setting of nftables that woodfrog doesn't know ({one})" for one in unknown]
    return Nftables(messages=found), sorted(losses)


def _lasting(number: int, attributes: bytes | memoryview) -> bytes:
    visitor = Visitor(lambda index: index, lambda _: None, lasting=True)
    return walk(attributes, MESSAGES[number], visitor)


def _messages(told: bytes) -> Iterator[tuple[int, memoryview]]:
    for kind, payload in dumps.messages(told):
        if kind & ~0xFF == nf_messages.SUBSYSTEM and kind & 0xFF in MESSAGES:
            yield kind & 0xFF, payload


def _read(netlink: raw_socket, unknown: set[str]) -> Iterator[_Told]:
    told = [(number, payload) for number, payload in _messages(nf_messages.read_all(netlink))]
    for number, payload in list(told):
        if number == nf_messages.NEW_SET:
            names = attributes_of(payload[nf_messages.HEADER_BYTES :])
            asked = bytes((payload[0], 0, 0, 0)) + attribute(_TABLE, names[_TABLE])
            asked += attribute(_NAME, names[_NAME])
            kind = nf_messages.SUBSYSTEM | nf_messages.NEW_ELEMENTS + nf_messages.GET
            told += _messages(dumps.dump(netlink, kind, asked))
    order = list(MESSAGES)
    rules = _inner_first(told)
    told = [one for one in told if one[0] != nf_messages.NEW_RULE]
    for number, payload in [*sorted(told, key=lambda one: order.index(one[0])), *rules]:
        family, attributes = payload[0], payload[nf_messages.HEADER_BYTES :]
        found = attributes_of(attributes)
        table = found[_TABLE].rstrip(b"\0").decode(errors="replace")
        if table.startswith(nftables.OURS):
            continue
        flags = int.from_bytes(found.get(_TABLE_FLAGS, b"\0"), "big")
        if number == nf_messages.NEW_TABLE and flags & nftables.TABLE_OWNER:
            raise UnsupportedResource(
                f"has an nftables table {table} that belongs to a socket, which cannot be saved yet"
            )
        yield _told(number, family, attributes, unknown)


def _inner_first(told: list[tuple[int, memoryview]]) -> list[tuple[int, memoryview]]:
    """Return the rules, those of unnamed chains before the one that such a chain belongs to."""
    chains: dict[tuple[int, bytes, bytes], list[tuple[int, memoryview]]] = {}
    unnamed = set()
    for number, payload in told:
        found = attributes_of(payload[nf_messages.HEADER_BYTES :])
        if number == nf_messages.NEW_CHAIN:
            flags = int.from_bytes(found.get(_CHAIN_FLAGS, b""), "big")
            if flags & _CHAIN_BINDING:
                unnamed.add((payload[0], found[_TABLE], found[_CHAIN_NAME]))
        elif number == nf_messages.NEW_RULE:
            place = (payload[0], found[_TABLE], found[_RULE_CHAIN])
            chains.setdefault(place, []).append((number, payload))
    ordered: list[tuple[int, memoryview]] = []
    placed = set()

    def place_chain(place: tuple[int, bytes, bytes]) -> None:
        if place in placed:
            return
        placed.add(place)
        rules = chains.get(place, [])
        for one in unnamed:
            if any(attribute(_VERDICT_CHAIN, one[2]) in bytes(rule) for _, rule in rules):
                place_chain(one)
        ordered.extend(rules)

    for place in sorted(chains, key=lambda one: one not in unnamed):
        place_chain(place)
    return ordered


def _told(number: int, family: int, attributes: memoryview, unknown: set[str]) -> _Told:
    def note(one: int) -> None:
        unknown.add(f"message {number}, attribute {one}")

    try:
        kept = walk(attributes, MESSAGES[number], Visitor(lambda index: index, note))
        key = _lasting(number, attributes)
    except UnknownKindError as error:
        raise UnsupportedResource(
            f"has an nftables rule or object of a kind that cannot be saved yet ({error})"
        ) from error
    if number == nf_messages.NEW_RULE:
        kept = settable.rule(kept)
        kept += compatibility(kept)
    elif number == nf_messages.NEW_ELEMENTS:
        kept = settable.elements(kept)
    return _Told(NfMessage(number=number, family=family, attributes=kept), key)


def lasting(ruleset: Nftables) -> Nftables:
    """Return a ruleset without what changes by itself: counters, and how long something lasts."""
    return Nftables(
        messages=[
            msgspec.structs.replace(one, attributes=_lasting(one.number, one.attributes))
            for one in ruleset.messages
        ]
    )


def check(ruleset: Nftables) -> None:
    """Check that an image has nothing in its ruleset but what layouts know."""

    def unknown(number: int) -> None:
        raise ImageError(f"the image has an impossible attribute of nftables, {number}")

    if len(ruleset.messages) > _MOST:
        raise ImageError("the image has an endless ruleset of nftables")
    for one in ruleset.messages:
        if one.number not in MESSAGES or not 0 <= one.family < 256:
            raise ImageError("the image has an impossible message of nftables")
        try:
            walk(one.attributes, MESSAGES[one.number], Visitor(lambda index: index, unknown))
        except (ValueError, struct.error) as error:
            raise ImageError(f"the image has an impossible ruleset: {error}") from error
        name = attributes_of(memoryview(one.attributes)).get(_TABLE_NAME, b"")
        if name.startswith(nftables.OURS.encode()):
            raise ImageError("the image has a table of woodfrog's own")


def restore(netlink: socket.socket, ruleset: Nftables) -> None:
    """Make a ruleset by a socket that has the container's own rights, all or nothing."""
    explain(netlink)
    requests = []
    for number, one in enumerate(ruleset.messages, 1):
        flags = NLM_F_CREATE
        attributes = one.attributes
        if one.number == nf_messages.NEW_RULE:
            flags |= NLM_F_APPEND
        if one.number == nf_messages.NEW_SET:
            attributes += attribute(_SET_ID, struct.pack(">I", number))
        requests.append(nftables.request(one.number, flags, one.family, attributes))
    with while_("making the rules of nftables"):
        nftables.transact(netlink, *requests)
