"""Many system calls in one stop: a `Program` collects them, the loop runs them."""

import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from woodfrog.kernel.abi.x86_64 import SYS, call_name
from woodfrog.kernel.caller import Argument

with open(os.path.join(os.path.dirname(__file__), "code", "loop_x86_64.bin"), "rb") as _file:
    LOOP = _file.read()

# See the comments of the loop.
_RECORD = struct.Struct("<8QqQ")
RECORD_BYTES = _RECORD.size
_RESULT = struct.Struct("<72xq")
_WORD_OF = struct.Struct("<Q")
_ARGUMENTS_AT, _LINKS_AT, _OUTCOME_AT, _EXPECTED_AT, _RESULT_AT = 8, 56, 57, 64, 72
_END, STORE, _LOAD = (1 << 64) - 1, (1 << 64) - 2, (1 << 64) - 3
# What may come back; in the second byte of the record's word 7.
_MUST_EQUAL, _MAY_FAIL, _CHILD_ENDS = 1, 2, 4
_WORD = (1 << 64) - 1
_LAST = _RECORD.pack(_END, *(0,) * 9)
# What is behind the arguments of a call, by their number.
_REST = tuple((0,) * (9 - count) for count in range(7))
_ALIGN = 16


def packed(number: int, *words: int, may_fail: bool = True) -> bytes:
    """Return the record of a call."""
    outcome = _MAY_FAIL << 8 if may_fail else 0
    return _RECORD.pack(number, *words, *_REST[len(words)][:-3], outcome, 0, 0)


class Placeholder(int):
    """The result of a call that has not run yet; other calls of the program can take it.

    An int, so that the catalogue's functions fit; the value says which call of which program it is.
    """


class ProgramError(OSError):
    """A call of a program failed, or returned something else than it should have.

    `opened` is the path that could not be opened, if that was it.
    """

    opened = b""


class Program:
    """Calls to be run by the loop in the memory area that starts at `base`.

    Data for the calls comes first in the area, the records behind it. It can be run more than once,
    and be moved to another area in between.
    """

    def __init__(self, base: int, size: int) -> None:
        self.base = base
        self.size = size
        # The value of the first call's placeholder. No other program that lives has it.
        self._first = id(self) << 32
        self._data = bytearray()
        self._records = bytearray()
        # How many arguments each call was given.
        self._counts = bytearray()
        # Which words of the records are to hold the address of an earlier result, or of data.
        self._links: list[tuple[int, int]] = []
        self._places: list[tuple[int, int]] = []
        self._has_addresses = False
        self._fills: list[tuple[int, bytearray]] = []
        self._results: list[int] = []

    def __len__(self) -> int:
        return len(self._counts)

    def call(self, number: int, *arguments: Argument) -> Placeholder:
        """Add a call; see `Caller`."""
        words: list[Any] = list(arguments)
        links = 0
        for place, argument in enumerate(arguments):
            if type(argument) is Placeholder:
                self._links.append((self._word_at(place), self._index(argument)))
                words[place] = 0
                links |= 1 << place
            elif isinstance(argument, int):
                if argument < 0:
                    words[place] = argument & _WORD
            else:
                self._places.append((self._word_at(place), self._add(argument)))
                words[place] = 0
        self._records += _RECORD.pack(number, *words, *_REST[len(words)])
        if links:
            self._records[_LINKS_AT - RECORD_BYTES] = links
        self._counts.append(len(words))
        return Placeholder(self._first + len(self._counts) - 1)

    def _index(self, result: int) -> int:
        """Return which call a placeholder stands for; it must be one of this program."""
        index = result - self._first
        if not isinstance(result, Placeholder) or not 0 <= index < len(self._counts):
            raise ValueError(f"{result:#x} is not the result of a call of this program")
        return index

    def call_each(
        self, number: int, rows: Sequence[Sequence[int]], *, may_fail: bool = True
    ) -> None:
        """Add a call for each row of arguments, all of them numbers from 0 up."""
        self._records += b"".join([packed(number, *words, may_fail=may_fail) for words in rows])
        self._counts += bytes(map(len, rows))

    def extend(self, other: "Program") -> None:
        """Add the calls of another program, which stays as it is: it may be added to many.

        None of them may take results back through memory, or know an address in the area.
        """
        assert not other._has_addresses
        assert not other._fills
        start, first = len(self._records), len(self._counts)
        offset = self._add(bytes(other._data))
        self._links += [(at + start, result + first) for at, result in other._links]
        self._places += [(at + start, offset + place) for at, place in other._places]
        self._records += other._records
        self._counts += other._counts

    def mark(self) -> tuple[int, ...]:
        """Return how much there is by now, for `cut`."""
        assert not self._has_addresses
        return tuple(map(len, self._parts))

    def cut(self, mark: tuple[int, ...]) -> None:
        """Leave only what there was when `mark` was called."""
        for part, length in zip(self._parts, mark, strict=True):
            del part[length:]
        self._has_addresses = False

    @property
    def _parts(self) -> tuple[Any, ...]:
        """All that calls add to."""
        return (
            self._data,
            self._records,
            self._counts,
            self._links,
            self._places,
            self._fills,
        )

    def _word_at(self, place: int) -> int:
        """Return where an argument of the next call stands in the records."""
        return len(self._records) + _ARGUMENTS_AT + 8 * place

    def address_of(self, data: bytes | bytearray) -> int:
        """Put data into the area and return where it will be; a `bytearray` is filled back."""
        self._has_addresses = True
        return self.base + self._add(data)

    def _add(self, data: bytes | bytearray) -> int:
        offset = -(-len(self._data) // _ALIGN) * _ALIGN
        self._data += bytes(offset - len(self._data))
        self._data += data
        if isinstance(data, bytearray):
            self._fills.append((offset, data))
        else:
            # bytes are paths more often than not, and a path ends in a zero.
            self._data += b"\0"
        return offset

    def store(self, address: int, value: int) -> None:
        """Store the low 32 bits of a result at an address, for structures that hold one."""
        self.call(STORE, address, value)

    def load(self, address: int) -> Placeholder:
        """Take 32 bits from an address as a result, for calls that return through memory."""
        return self.call(_LOAD, address)

    def expect(self, result: int, value: int) -> int:
        """Have the program stop if the call returns anything but `value`."""
        at = RECORD_BYTES * self._index(result) + _EXPECTED_AT
        struct.pack_into("<q", self._records, at, value)
        return self._allow(result, _MUST_EQUAL)

    def may_fail(self, result: int) -> int:
        """Have the program go on even if the call fails."""
        return self._allow(result, _MAY_FAIL)

    def end_child(self, result: int) -> int:
        """Have a child that the call makes end at once, should nobody hold it."""
        return self._allow(result, _CHILD_ENDS)

    def _allow(self, result: int, outcome: int) -> int:
        self._records[RECORD_BYTES * self._index(result) + _OUTCOME_AT] = outcome
        return result

    @property
    def room(self) -> int:
        """How many bytes of the area are still free."""
        return self.size - len(self._data) - len(self._records) - 2 * RECORD_BYTES

    @property
    def entry(self) -> int:
        """Where the first record will be."""
        return self.base + -(-len(self._data) // _ALIGN) * _ALIGN

    def move(self, base: int, size: int) -> None:
        """Have it run in another area from now on; nobody may have asked for an address in it."""
        assert not self._has_addresses
        self.base, self.size = base, size

    def assemble(self, ending: bytes = b"") -> bytes:
        """Return the bytes to be written at `base`; `ending` are records that come last."""
        if self.room < len(ending):
            raise ValueError(f"a program of {len(self)} calls does not fit its area")
        self._link()
        data = self._data.ljust(self.entry - self.base, b"\0")
        return b"".join((data, self._records, ending, _LAST))

    def _link(self) -> None:
        results = self.entry + _RESULT_AT
        for at, result in self._links:
            _WORD_OF.pack_into(self._records, at, results + RECORD_BYTES * result)
        for at, offset in self._places:
            _WORD_OF.pack_into(self._records, at, self.base + offset)

    def calls(self) -> Iterator[tuple[int, tuple[int | None, ...]]]:
        """Go through the calls proper, as (number, six arguments); None where a result will be."""
        self._link()
        for number, *words, mode, _, _ in _RECORD.iter_unpack(self._records):
            if number < _LOAD:
                yield (
                    number,
                    tuple(None if mode >> i & 1 else word for i, word in enumerate(words)),
                )

    def records(self) -> range:
        """Return the addresses of all records."""
        entry = self.entry
        return range(entry, entry + len(self._records), RECORD_BYTES)

    def end_after(self, record: int, memory: int) -> bytes:
        """Have the program end after one record; returns what stood there before."""
        after = os.pread(memory, 8, record + RECORD_BYTES)
        os.pwrite(memory, _END.to_bytes(8, "little"), record + RECORD_BYTES)
        return after

    def finish(self, memory: int, stopped_at: int) -> None:
        """Take the results over from the task's memory, given the record that the loop ended at.

        Raises ProgramError, naming the call, if it is not the last one.
        """
        entry = self.entry
        done = (stopped_at - entry) // RECORD_BYTES
        first = self.base + self._fills[0][0] if self._fills else entry
        end = entry + min(RECORD_BYTES * (done + 1), len(self._records))
        found = memoryview(os.pread(memory, end - first, first) if end > first else b"")
        self._results = [result for (result,) in _RESULT.iter_unpack(found[entry - first :])]
        if done < len(self):
            raise self._failure(done)
        for offset, buffer in self._fills:
            at = self.base + offset - first
            buffer[:] = found[at : at + len(buffer)]

    def _failure(self, index: int) -> ProgramError:
        number, *words, mode, expected, _ = _RECORD.unpack_from(self._records, RECORD_BYTES * index)
        result = self._results[index]
        shown = ", ".join(
            str(self._result_at(word)) if mode >> i & 1 else self._shown(word)
            for i, word in enumerate(words[: self._counts[index]])
        )
        if -4096 < result < 0:
            failure = ProgramError(-result, f"{call_name(number)}({shown}): {os.strerror(-result)}")
            if number == SYS.OPENAT2:
                failure.opened = self._bytes_at(words[1])
            return failure
        wanted = f", not {expected:#x}" if mode >> 8 & _MUST_EQUAL else ""
        return ProgramError(0, f"{call_name(number)}({shown}) returned {result:#x}{wanted}")

    def _result_at(self, address: int) -> int:
        """Return the result that a linked argument stands for."""
        return self._results[(address - self.entry) // RECORD_BYTES]

    def _bytes_at(self, address: int) -> bytes:
        """Return what stands in the data at an address, up to a zero byte."""
        offset = address - self.base
        return bytes(self._data[offset : self._data.index(0, offset)])

    def _shown(self, word: int) -> str:
        if word >> 63:
            return str(word - (1 << 64))
        offset = word - self.base
        if 0 <= offset < len(self._data):
            text = bytes(self._data[offset : offset + 80]).split(b"\0")[0]
            if text.isascii() and text.decode("ascii").isprintable() and len(text) > 2:
                return repr(text.decode())
        return hex(word) if word > 4096 else str(word)

    def __getitem__(self, result: int) -> int:
        """Return what a call returned, once the program has run."""
        return self._results[self._index(result)]

    def results(self, placeholders: Iterable[int]) -> list[int]:
        """Return what several calls returned."""
        return [self[placeholder] for placeholder in placeholders]
