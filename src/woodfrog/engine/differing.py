"""In what two records of different images differ, whose numbers may be others."""

from collections.abc import Iterator
from typing import Any

import msgspec

# What goes on by itself, and is no part of what a program has.
_PASSING = frozenset(("timestamp",))
# Numbers that mean something only within one image, by what they number.
_NUMBERS = {
    **dict.fromkeys(("id", "file", "files", "same", "peer_file"), "file"),
    **dict.fromkeys(
        ("object", "deleted", "memory", "executable_object", "directory_deleted", "root_deleted"),
        "object",
    ),
    "pair": "pair",
    "pipe": "pipe",
    "inode": "inode",
    "pending": "inode",
}


class Pairs:
    """Which number of an image stands for which number of now, one for one."""

    def __init__(self) -> None:
        self._now: dict[tuple[str, int], int] = {}
        self._then: dict[tuple[str, int], int] = {}

    def match(self, what: str, then: int, now: int) -> bool:
        """Note that two numbers mean the same; tell whether that contradicts nothing."""
        if not then or not now:
            return then == now
        if self._now.get((what, then), now) != now or self._then.get((what, now), then) != then:
            return False
        self._now[what, then], self._then[what, now] = now, then
        return True

    def now(self, what: str, then: int) -> int:
        """Return the number of now for one of the image; 0 if there is none."""
        return self._now.get((what, then), 0)

    def of(self, what: str) -> Iterator[tuple[int, int]]:
        """Go through all pairs of a kind."""
        for (kind, then), now in self._now.items():
            if kind == what:
                yield then, now


def differences(
    then: object, now: object, pairs: Pairs, but: frozenset[str] = frozenset()
) -> list[str]:
    """Return the names of the fields in which two records differ, but for some."""
    if type(then) is not type(now):
        return ["kind"]
    one, other = (msgspec.to_builtins(record, builtin_types=(bytes,)) for record in (then, now))
    return [
        name
        for name in one.keys() | other.keys()
        if name not in but and not _alike(one.get(name), other.get(name), name, pairs)
    ]


def _alike(then: Any, now: Any, name: str, pairs: Pairs) -> bool:
    if name in _PASSING:
        return True
    if isinstance(then, dict) and isinstance(now, dict):
        keys = then.keys() | now.keys()
        return all(_alike(then.get(key), now.get(key), key, pairs) for key in keys)
    if isinstance(then, list) and isinstance(now, list):
        return len(then) == len(now) and all(
            _alike(one, other, name, pairs) for one, other in zip(then, now, strict=True)
        )
    if name in _NUMBERS and isinstance(then, int) and isinstance(now, int):
        return pairs.match(_NUMBERS[name], then, now)
    return bool(then == now)
