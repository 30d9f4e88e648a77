"""Records as no checkpoint makes them: of the right types, with other values."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from woodfrog.engine.admission import Bounds, admit
from woodfrog.engine.plan import Plan
from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.image.record import Tagged
from woodfrog.remote.vdso import Vdso
from woodfrog.resources.cpu import CpuCheck

_NUMBERS = (0, 1, 2, 3, 7, 64, 255, 4095, 4096, 4097, 65535, 1 << 20, 1 << 31, (1 << 32) - 1)
_NUMBERS += (1 << 32, 1 << 47, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 4096, (1 << 64) - 1)
NUMBERS = (*_NUMBERS, *(-one for one in _NUMBERS if one <= 1 << 63))
_WORDS = (b"", b"\0", b"/", b".", b"..", b"a/../b", b"\xff\xfe", b"%s", b"9" * 30, b"x" * 70000)

Step = tuple[list[Any] | dict[Any, Any], Any]


class Parts:
    """What a `Plan` needs of an image: its records, and how much memory it has."""

    def __init__(self, records: Sequence[Any], page_bytes: int) -> None:
        self.page_bytes = page_bytes
        self.store_bytes = [page_bytes]
        self._records = msgspec.msgpack.encode(records)

    def tags(self) -> list[str]:
        return [one.kind for one in self.records(Tagged)]

    def records(self, kinds: Any) -> list[Any]:
        try:
            return msgspec.msgpack.decode(self._records, type=list[kinds])  # type: ignore[no-any-return]
        except msgspec.ValidationError as error:
            raise ImageError(str(error)) from error


def admitted(records: Sequence[Any], page_bytes: int, bounds: Bounds, vdso: Vdso) -> bool:
    """Tell whether an image of such records is admitted; all but a refusal is raised."""
    try:
        admit(Plan(Parts(records, page_bytes)), bounds, vdso, CpuCheck.NONE)  # type: ignore[arg-type]
    except (ImageError, UnsupportedResource):
        return False
    return True


def places(value: Any) -> Iterator[Step]:
    """Go through everything in a record, as what holds it and where."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    else:
        return
    for key, inner in items:
        if key != "kind":
            yield value, key
            yield from places(inner)


def other(value: Any, dice: random.Random) -> Any:
    """Return another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        near = value + dice.choice((-4096, -1, 1, 4096)), value ^ 1 << dice.randrange(64)
        return max(-(1 << 63), min(dice.choice((*NUMBERS, *near)), (1 << 64) - 1))
    if isinstance(value, bytes):
        return _other_bytes(value, dice)
    if isinstance(value, str):
        return dice.choice((*(word.decode("latin-1") for word in _WORDS), value + "x", value[1:]))
    if isinstance(value, list):
        changes: list[Callable[[], list[Any]]] = [
            list,
            lambda: value[1:],
            lambda: value + value[-1:],
            lambda: value[::-1],
            lambda: value * 3,
        ]
        return dice.choice(changes)()
    if isinstance(value, dict):
        return {} if dice.random() < 0.5 else {"extra": 1} | value
    return dice.choice((0, b"", None))


def _other_bytes(value: bytes, dice: random.Random) -> bytes:
    if value and dice.random() < 0.5:
        at = dice.randrange(len(value))
        return value[:at] + bytes([dice.randrange(256)]) + value[at + 1 :]
    return dice.choice((*_WORDS, value[:-1], value + b"\0", value * 2, value[1:]))


def mutated(records: list[Any], dice: random.Random) -> tuple[str, Callable[[], None]]:
    """Change one thing in records; returns what, and what takes it back."""
    record = dice.choice(records)
    found = list(places(record))
    holder, key = dice.choice(found)
    was = holder[key]
    holder[key] = other(was, dice)
    said = f"{record['kind']}: {key} of {str(holder)[:200]} was {str(was)[:80]}"

    def undo() -> None:
        holder[key] = was

    return said, undo


def simplest(kind: Any, dice: random.Random, depth: int = 0) -> Any:
    """Return something of a type, as a decoded record has it."""
    match msgspec.inspect.type_info(kind) if not isinstance(kind, msgspec.inspect.Type) else kind:
        case msgspec.inspect.StructType() as found:
            fields = {
                one.encode_name: simplest(one.type, dice, depth + 1)
                for one in found.fields
                if one.required or dice.random() < 0.5
            }
            if found.array_like:
                return [simplest(one.type, dice, depth + 1) for one in found.fields]
            return ({"kind": found.tag} if found.tag else {}) | fields
        case msgspec.inspect.ListType() as found:
            return [simplest(found.item_type, dice, depth + 1) for _ in range(dice.randrange(3))]
        case msgspec.inspect.TupleType() as found:
            return [simplest(one, dice, depth + 1) for one in found.item_types]
        case msgspec.inspect.DictType() as found:
            return {simplest(found.key_type, dice): simplest(found.value_type, dice, depth + 1)}
        case msgspec.inspect.UnionType() as found:
            return simplest(dice.choice(found.types), dice, depth + 1)
        case msgspec.inspect.EnumType() as found:
            return dice.choice([one.value for one in found.cls])
        case msgspec.inspect.LiteralType() as found:
            return dice.choice(found.values)
        case msgspec.inspect.BoolType():
            return dice.random() < 0.5
        case msgspec.inspect.IntType():
            return dice.choice((0, 1, 2, 3, dice.choice(NUMBERS)))
        case msgspec.inspect.BytesType():
            return dice.choice((b"", b"/tmp", dice.randbytes(dice.choice((1, 4, 8, 16, 36, 64)))))
        case msgspec.inspect.StrType():
            return dice.choice(("", "/tmp", "tmpfs", "net/ipv4/ip_forward"))
        case msgspec.inspect.NoneType():
            return None
        case other_kind:
            raise AssertionError(f"a record has a field of {other_kind}")
