"""Annotations org.systemd.property.NAME: properties of the container's unit, as GVariant text."""

from __future__ import annotations

import struct

from woodfrog.errors import SpecError
from woodfrog.runtime.cgroups import dbus

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from woodfrog.runtime.cgroups.dbus import Typed
    from woodfrog.runtime.cgroups.units import Property

PREFIX = "org.systemd.property."

_KEYWORDS = {
    "boolean": "b",
    "byte": "y",
    "int16": "n",
    "uint16": "q",
    "int32": "i",
    "uint32": "u",
    "int64": "x",
    "uint64": "t",
    "double": "d",
    "string": "s",
    "objectpath": "o",
    "signature": "g",
}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v"}


def properties(annotations: dict[str, str]) -> list[Property]:
    """Return the properties that the annotations ask for."""
    found = []
    for key, text in annotations.items():
        name = key.removeprefix(PREFIX)
        if name == key:
            continue
        if len(name) < 3 or not (name.isascii() and name.isalpha()):
            raise SpecError(f"annotation {key} name incorrect: letters, at least three")
        try:
            kind, value = parse(text)
            if name.endswith("Sec") and name[-4].islower():
                # What unit files write in seconds is called USec, and counted so, on the bus.
                name, kind, value = f"{name[:-3]}USec", "t", _microseconds(kind, value)
            dbus.put(bytearray(), "v", (kind, value))
        except (ValueError, TypeError, LookupError, AttributeError, struct.error) as error:
            raise SpecError(f"annotation {key}={text} value parse error: {error}") from None
        found.append((name, (kind, value)))
    return found


def _microseconds(kind: str, value: Any) -> int:
    if kind not in "ynqiuxtd":
        raise ValueError("not a number")
    return int(value * 1_000_000)


def parse(text: str) -> Typed:
    """Return the (signature, value) that GVariant text says: 5, uint64 5, 'a', ['a', 'b']."""
    kind, value, rest = _value(text.strip(), "")
    if rest.strip():
        raise ValueError(f"unexpected {rest.strip()!r}")
    return kind, value


def _value(text: str, wanted: str) -> tuple[str, Any, str]:
    """Return (signature, value, what follows); `wanted` is the signature, if known."""
    text = text.lstrip()
    if not text:
        raise ValueError("a value is missing")
    if text[0] == "@":
        wanted, _, text = text[1:].partition(" ")
        return _value(text, wanted)
    if text[0] in "'\"":
        value, rest = _string(text)
        return wanted or "s", value, rest
    if text[0] in "[(":
        return _several(text, wanted)
    end = next((at for at, letter in enumerate(text) if letter in " ,])"), len(text))
    word, rest = text[:end], text[end:]
    if word in _KEYWORDS:
        return _value(rest, _KEYWORDS[word])
    if word in ("true", "false"):
        return "b", word == "true", rest
    if wanted != "d":
        try:
            return wanted or "i", int(word, 0), rest
        except ValueError:
            if wanted:
                raise
    return "d", float(word), rest


def _string(text: str) -> tuple[str, str]:
    found, at = "", 1
    while at < len(text) and text[at] != text[0]:
        if text[at] == "\\" and at + 1 < len(text):
            at += 1
            found += _ESCAPES.get(text[at], text[at])
        else:
            found += text[at]
        at += 1
    if at >= len(text):
        raise ValueError("a string doesn't end")
    return found, text[at + 1 :]


def _several(text: str, wanted: str) -> tuple[str, Any, str]:
    is_list = text[0] == "["
    closing = "]" if is_list else ")"
    inner = wanted[1:] if is_list else ""
    kinds: list[str] = []
    values = []
    rest = text[1:].lstrip()
    while not rest.startswith(closing):
        kind, value, rest = _value(rest, inner)
        if is_list and kinds and kind != kinds[0]:
            raise ValueError("the values of a list differ in type")
        inner = kind if is_list else ""
        kinds.append(kind)
        values.append(value)
        rest = rest.lstrip()
        if rest.startswith(","):
            rest = rest[1:].lstrip()
        elif not rest.startswith(closing):
            raise ValueError(f"{closing} is missing")
    if is_list and not kinds and not inner:
        raise ValueError("the type of an empty list must be given, as in @as []")
    if is_list:
        return f"a{kinds[0] if kinds else inner}", values, rest[1:]
    return f"({''.join(kinds)})", tuple(values), rest[1:]
