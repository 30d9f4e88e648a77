"""netlink(7): attributes by a layout that says what may be in them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

import msgspec

_HEAD = struct.Struct("<HH")
_HOP = struct.Struct("<HBBi")  # struct rtnexthop: length, flags, hops, interface
_NESTED = 0x8000
_NUMBER = 0x3FFF
_DEEPEST = 20


class Field(msgspec.Struct, frozen=True):
    """What an attribute may hold: so many bytes, or attributes."""

    least: int = 0
    most: int = 0
    inner: Layout | None = None
    is_index: bool = False  # the index of an interface
    index_at: int = -1  # where in it such an index is
    is_hops: bool = False  # struct rtnexthop, each with attributes as in `inner`
    unless_zero: bool = False  # told also where nobody may set it
    is_fleeting: bool = False  # it changes by itself: a counter
    kinds: Mapping[bytes, Layout] | None = None  # by the value of the attribute before it
    never: Mapping[bytes, str] = {}  # values that there is no layout for, and what they are


# By number, or ANY for all others; None: what the kernel tells, and nobody sets.
ANY = -1
Layout = Mapping[int, "Field | None"]

U8, U16, U32, U64 = (Field(size, size) for size in (1, 2, 4, 8))
INDEX = Field(4, 4, is_index=True)
FLAG = Field()


def data(most: int, least: int = 0) -> Field:
    """Return a field of some bytes."""
    return Field(least, most)


def nest(inner: Layout) -> Field:
    """Return a field of attributes."""
    return Field(inner=inner)


class UnknownKindError(ValueError):
    """There is no layout for an attribute of this kind."""


class Visitor(msgspec.Struct, frozen=True):
    """What is done with what is met."""

    turn: Callable[[int], int]  # the index of an interface into another
    unknown: Callable[[int], None]  # an attribute that the layout lacks; it is left out
    lasting: bool = False  # what changes by itself is left out
    hop_flags: int = 0xFF  # those of struct rtnexthop that are kept


def walk(
    attributes: bytes | memoryview, layout: Layout, visitor: Visitor, *, depth: int = 0
) -> bytes:
    """Return attributes again, as far as the layout has them.

    Raises ValueError for what can't be.
    """
    rest = memoryview(attributes)
    found = []
    before = b""
    if depth > _DEEPEST:
        raise ValueError("attributes in attributes without end")
    while len(rest):
        if len(rest) < _HEAD.size:
            raise ValueError("half an attribute")
        length, number = _HEAD.unpack_from(rest)
        if not _HEAD.size <= length <= len(rest):
            raise ValueError("an attribute that ends elsewhere")
        value, number = rest[_HEAD.size : length], number & _NUMBER
        rest = rest[(length + 3) & ~3 :]
        found_in = number if number in layout else ANY
        if found_in not in layout:
            visitor.unknown(number)
            continue
        field = layout[found_in]
        if field is not None and field.unless_zero and not any(value):
            continue
        if field is None or (visitor.lasting and field.is_fleeting):
            continue
        if field.kinds is not None:
            if before not in field.kinds:
                raise UnknownKindError(before.decode(errors="replace"))
            field = nest(field.kinds[before])
        nested = _NESTED if field.inner is not None and not field.is_hops else 0
        changed = _field(value, field, visitor, depth)
        before = changed.rstrip(b"\0")
        head = _HEAD.pack(_HEAD.size + len(changed), number | nested)
        found.append(head + changed + bytes(-len(changed) % 4))
    return b"".join(found)


def _field(value: memoryview, field: Field, visitor: Visitor, depth: int) -> bytes:
    if field.is_hops and field.inner is not None:
        return _hops(value, field.inner, visitor)
    if field.inner is not None:
        return walk(value, field.inner, visitor, depth=depth + 1)
    if not field.least <= len(value) <= field.most:
        raise ValueError(f"an attribute of {len(value)} bytes")
    if field.never and (what := field.never.get(bytes(value).rstrip(b"\0"))):
        raise UnknownKindError(what)
    if field.index_at >= 0:
        at = slice(field.index_at, field.index_at + 4)
        turned = bytearray(value)
        if number := int.from_bytes(value[at], "little"):
            turned[at] = visitor.turn(number).to_bytes(4, "little")
        return bytes(turned)
    if field.is_index and (number := int.from_bytes(value, "little")):
        return visitor.turn(number).to_bytes(4, "little")
    return bytes(value)


def _hops(value: memoryview, inner: Layout, visitor: Visitor) -> bytes:
    found = []
    while len(value):
        if len(value) < _HOP.size:
            raise ValueError("half a next hop")
        length, flags, hops, index = _HOP.unpack_from(value)
        if not _HOP.size <= length <= len(value):
            raise ValueError("a next hop that ends elsewhere")
        attributes = walk(value[_HOP.size : length], inner, visitor)
        index = visitor.turn(index) if index else 0
        head = _HOP.pack(_HOP.size + len(attributes), flags & visitor.hop_flags, hops, index)
        found.append(head + attributes)
        value = value[(length + 3) & ~3 :]
    return b"".join(found)
