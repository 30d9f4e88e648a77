"""What takes a moment for each of many things takes no longer for each if there are more."""

from collections.abc import Iterator
from typing import Any

import msgspec

from woodfrog.engine.collecting_memory import Policies
from woodfrog.remote.program import Program
from woodfrog.resources.files.unix_socket import UnixSocketFile


def blank(kind: type[Any], **fields: Any) -> Any:
    """Return a record of which only some fields matter."""
    known = {one.name: None for one in msgspec.structs.fields(kind) if one.required}
    return kind(**known | fields)


class Walked(list[Any]):
    """A list that counts how often somebody has gone through it."""

    walks = 0

    def __iter__(self) -> Iterator[Any]:
        self.walks += 1
        return super().__iter__()


class Making:
    """What the ends of pairs are found by."""

    def __init__(self, records: Walked) -> None:
        self.records = records
        self._shared: dict[object, Any] = {}

    def share(self, key: object, value: Any) -> None:
        self._shared[key] = value

    def shared(self, key: object) -> Any:
        return self._shared.get(key)


def test_the_other_ends_of_unix_pairs_are_looked_for_once() -> None:
    numbers = [*range(1, 101), *range(100, 0, -1)]
    ends = [blank(UnixSocketFile, id=place, pair=pair) for place, pair in enumerate(numbers)]
    lone = blank(UnixSocketFile, id=200, pair=101)
    making: Any = Making(Walked([*ends, lone]))

    for place, end in enumerate(ends):
        assert end.other_end(making) is ends[-1 - place]
    assert lone.other_end(making) is None
    assert making.records.walks == 1


class Asked:
    """A mapping that counts how often somebody has asked where it is."""

    asked = 0

    def __init__(self, start: int) -> None:
        self._start = start

    @property
    def start(self) -> int:
        Asked.asked += 1
        return self._start


class Scratch:
    """Room for programs that ask for little at a time, and find no policies."""

    def __init__(self) -> None:
        self.runs = 0

    def program(self) -> Program:
        return Program(0x1000, 4096)

    def run(self, program: Program) -> None:
        self.runs += 1


def test_mappings_are_passed_over_once_however_often_their_policies_are_asked_for() -> None:
    scratch: Any = Scratch()
    mappings: Any = [Asked(number << 12) for number in range(1000)]

    policies = Policies(scratch.program(), mappings)
    assert policies.of(scratch) == [None] * len(mappings)
    assert scratch.runs > 10
    assert Asked.asked == len(mappings)
