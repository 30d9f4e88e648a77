"""JSON without the json package, whose import (it brings re and enum) costs 6 ms per command."""

from __future__ import annotations

from _json import encode_basestring_ascii, make_encoder, make_scanner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_SPACE = " \t\r\n"


class _Plain:
    """What the scanner of the json package's C half asks of its decoder."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    array_hook = None
    parse_float = float
    parse_int = int
    parse_constant = staticmethod(float)
    memo: dict[str, str] = {}


def parse(text: str) -> Any:
    """Return what a JSON text says; raises ValueError naming the place that is wrong."""
    start = len(text) - len(text.lstrip(_SPACE))
    try:
        value, end = make_scanner(_Plain())(text, start)  # type: ignore[arg-type]
    except StopIteration as stop:
        line = text.count("\n", 0, stop.value) + 1
        raise ValueError(f"expecting a value at line {line}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if rest := text[end:].strip(_SPACE):
        line = text.count("\n", 0, end) + 1
        raise ValueError(f"unexpected text after the value at line {line}: {rest[:20]!r}")
    return value


def write(value: object, indent: int | None = None) -> str:
    """Return the JSON text of plain values; `indent` breaks it into lines."""
    if indent is None:
        encode = make_encoder(
            None, _refuse, encode_basestring_ascii, None, ":", ",", False, False, True
        )
        return "".join(encode(value, 0))
    parts: list[str] = []
    _write(value, parts, "\n", " " * indent)
    return "".join(parts)


def _refuse(value: object) -> NoReturn:
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _write(value: object, parts: list[str], line: str, indent: str) -> None:
    if isinstance(value, str):
        parts.append(encode_basestring_ascii(value))
    elif value is None:
        parts.append("null")
    elif isinstance(value, bool):
        parts.append("true" if value else "false")
    elif isinstance(value, (int, float)):
        parts.append(repr(value))
    elif isinstance(value, dict):
        _write_members(
            parts,
            "{}",
            [(encode_basestring_ascii(str(key)), member) for key, member in value.items()],
            line,
            indent,
        )
    elif isinstance(value, (list, tuple)):
        _write_members(parts, "[]", [(None, member) for member in value], line, indent)
    else:
        _refuse(value)


def _write_members(
    parts: list[str],
    brackets: str,
    members: list[tuple[str | None, Any]],
    line: str,
    indent: str,
) -> None:
    inner = line + indent
    parts.append(brackets[0])
    for position, (key, member) in enumerate(members):
        if position:
            parts.append(",")
        parts.append(inner)
        if key is not None:
            parts.append(f"{key}: ")
        _write(member, parts, inner, indent)
    if members:
        parts.append(line)
    parts.append(brackets[1])
