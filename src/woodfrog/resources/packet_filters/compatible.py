"""Rules of nf_tables with extensions of x_tables (iptables-nft makes such).

With one of these the kernel wants to know the transport protocol that the rule is for, and doesn't
tell it afterwards (NFTA_RULE_COMPAT). But the rule asks for it by itself.
"""

import itertools
import struct
from collections.abc import Iterator

from woodfrog.kernel.netlink.messages import attribute, attributes_of, nested

_RULE_EXPRESSIONS, _RULE_COMPAT = 4, 5
_NAME, _DATA = 1, 2
_COMPAT_PROTO, _COMPAT_FLAGS, _INVERTED = 1, 2, 2
_META_KEY, _L4PROTO = 2, 16
_PAYLOAD_BASE, _PAYLOAD_OFFSET, _NETWORK_HEADER = 2, 3, 1
_PROTOCOL_AT = (9, 6)  # in headers of IPv4 and IPv6
_CMP_OP, _CMP_DATA, _EQUAL, _NOT_EQUAL = 2, 3, 0, 1
_EXTENSIONS = {b"match", b"target"}


def compatibility(rule: bytes) -> bytes:
    """Return the attribute that a rule needs besides those that it is told by; often none."""
    expressions = list(_expressions(rule))
    if not _EXTENSIONS & {name for name, _ in expressions}:
        return b""
    protocol, flags = 0, 0
    for (name, asked), (then, compared) in itertools.pairwise(expressions):
        if then != b"cmp" or not _asks_for_protocol(name, asked):
            continue
        value = attributes_of(memoryview(compared[_CMP_DATA])).get(1, b"")
        operator = _word(compared, _CMP_OP)
        if len(value) == 1 and operator in (_EQUAL, _NOT_EQUAL):
            protocol, flags = value[0], _INVERTED if operator == _NOT_EQUAL else 0
            break
    return nested(
        _RULE_COMPAT,
        attribute(_COMPAT_PROTO, struct.pack(">I", protocol)),
        attribute(_COMPAT_FLAGS, struct.pack(">I", flags)),
    )


def _asks_for_protocol(name: bytes, asked: dict[int, bytes]) -> bool:
    if name == b"meta":
        return _word(asked, _META_KEY) == _L4PROTO
    return (
        name == b"payload"
        and _word(asked, _PAYLOAD_BASE) == _NETWORK_HEADER
        and _word(asked, _PAYLOAD_OFFSET) in _PROTOCOL_AT
    )


def _word(attributes: dict[int, bytes], number: int) -> int:
    return int.from_bytes(attributes.get(number, b""), "big")


def _expressions(rule: bytes) -> Iterator[tuple[bytes, dict[int, bytes]]]:
    """Yield name and attributes of each expression of a rule."""
    rest = memoryview(_inner(memoryview(rule)).get(_RULE_EXPRESSIONS, b""))
    while len(rest) >= 4:
        length = int.from_bytes(rest[:2], "little")
        one = _inner(rest[4:length])
        yield (
            one.get(_NAME, b"").rstrip(b"\0"),
            dict(_inner(memoryview(one.get(_DATA, b""))).items()),
        )
        rest = rest[(length + 3) & ~3 :]


def _inner(attributes: memoryview) -> dict[int, bytes]:
    return {number & 0x3FFF: value for number, value in attributes_of(attributes).items()}
