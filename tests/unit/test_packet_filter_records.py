"""Rulesets of images: nothing but what layouts have is made."""

import struct

import pytest

from woodfrog.errors import ImageError
from woodfrog.kernel.netlink import nf_messages
from woodfrog.kernel.netlink.messages import attribute, nested
from woodfrog.resources.packet_filters import legacy, nftables
from woodfrog.resources.packet_filters.compatible import compatibility
from woodfrog.resources.packet_filters.legacy import LegacyTable
from woodfrog.resources.packet_filters.nftables import NfMessage, Nftables


def text(number: int, value: str) -> bytes:
    """Return an attribute of text."""
    return attribute(number, value.encode() + b"\0")


def word(number: int, value: int) -> bytes:
    """Return an attribute of four bytes."""
    return attribute(number, struct.pack(">I", value))


def expression(name: str, *attributes: bytes) -> bytes:
    """Return a part of a rule."""
    return nested(1, text(1, name), nested(2, *attributes))


def rule(*expressions: bytes) -> NfMessage:
    """Return a rule."""
    attributes = text(1, "pond") + text(2, "in") + nested(4, *expressions)
    return NfMessage(number=nf_messages.NEW_RULE, family=1, attributes=attributes)


TABLE = NfMessage(number=nf_messages.NEW_TABLE, family=1, attributes=text(1, "pond"))
META = expression("meta", word(1, 1), word(2, 16))


def compare(operator: int) -> bytes:
    """Return a comparison with TCP's number."""
    return expression("cmp", word(1, 1), word(2, operator), nested(3, attribute(1, b"\x06")))


def deep(levels: int) -> bytes:
    """Return an expression in an expression, and so on."""
    inner = META
    for _ in range(levels):
        inner = nested(1, text(1, "dynset"), nested(2, nested(10, inner)))
    return inner


def test_a_ruleset_is_taken() -> None:
    nftables.check(Nftables(messages=[TABLE, rule(META, compare(0), deep(3))]))


@pytest.mark.parametrize(
    "wrong",
    [
        NfMessage(number=2, family=1, attributes=text(1, "pond")),
        NfMessage(number=nf_messages.NEW_TABLE, family=1, attributes=text(1, "woodfrog-of-1")),
        NfMessage(number=nf_messages.NEW_TABLE, family=300, attributes=text(1, "pond")),
        NfMessage(number=nf_messages.NEW_TABLE, family=1, attributes=b"\x09\0\x01\0pond"),
        NfMessage(number=nf_messages.NEW_TABLE, family=1, attributes=word(99, 1)),
        NfMessage(number=nf_messages.NEW_TABLE, family=1, attributes=text(1, "x" * 300)),
        rule(expression("bpf")),
        rule(expression("match", text(1, "bpf"))),
        rule(expression("meta", attribute(1, bytes(3)))),
        rule(deep(30)),
    ],
)
def test_nothing_else_is_made(wrong: NfMessage) -> None:
    with pytest.raises(ImageError):
        nftables.check(Nftables(messages=[TABLE, wrong]))


def test_rules_with_extensions_say_which_protocol_they_are_for() -> None:
    match = expression("match", text(1, "multiport"), word(2, 1), attribute(3, bytes(48)))
    assert compatibility(rule(META, compare(0)).attributes) == b""
    assert compatibility(rule(match).attributes) == nested(5, word(1, 0), word(2, 0))
    for operator, flags in ((0, 0), (1, 2)):
        made = compatibility(rule(META, compare(operator), match).attributes)
        assert made == nested(5, word(1, 6), word(2, flags))


def entry(match: bytes = b"", size: int = 40) -> bytes:
    """Return an entry of a table of iptables, with a match or without."""
    matches = struct.pack("<H29sB", size, match, 0).ljust(40, b"\0") if match else b""
    target = struct.pack("<H29sBi4x", 40, b"", 0, -2)
    offsets = struct.pack("<IHHI", 0, 112 + len(matches), 152 + len(matches), 0)
    return bytes(84) + offsets + bytes(16) + matches + target


def table(entries: bytes | None = None, **fields: object) -> LegacyTable:
    """Return a table of iptables, changed."""
    usual: dict[str, object] = {
        "family": 2,
        "name": "filter",
        "hooks": 14,
        "begins": [0] * 5,
        "ends": [0] * 5,
        "count": 1,
        "entries": entry() if entries is None else entries,
    }
    return LegacyTable(**(usual | fields))  # type: ignore[arg-type]


def test_a_table_of_iptables_is_taken() -> None:
    legacy.check([table(entry(b"tcp")), table(b"", family=10, count=0)])


@pytest.mark.parametrize(
    "wrong",
    [
        [table(), table()],
        [table(family=7)],
        [table(name="")],
        [table(name="x" * 32)],
        [table(begins=[0] * 6)],
        [table(ends=[-1] * 5)],
        [table(hooks=1 << 32)],
        [table(count=2)],
        [table(entry()[:-1])],
        [table(entry(b"bpf"))],
        [table(entry(b"tcp", size=0))],
        [table(entry(b"tcp", size=41))],
    ],
)
def test_no_other_table_of_iptables_is_made(wrong: list[LegacyTable]) -> None:
    with pytest.raises(ImageError):
        legacy.check(wrong)
