"""Many system calls in one stop: a `Program` collects them, the loop runs them."""

import os
import struct
from collections.abc import Iterable, Iterator

from woodfrog.kernel.abi.x86_64 import SYS, call_name
from woodfrog.kernel.caller import Argument

with open(os.path.join(os.path.dirname(__file__), "code", "loop_x86_64.bin"), "rb") as _file:
    LOOP = _file.read()

_RECORD = struct.Struct("<8QqQ")
RECORD_BYTES = _RECORD.size
_END, _STORE, _LOAD = (1 << 64) - 1, (1 << 64) - 2, (1 << 64) - 3
_MUST_EQUAL, _MAY_FAIL, _CHILD_ENDS = 1 << 8, 1 << 9, 1 << 10
_WORD = (1 << 64) - 1
_ALIGN = 16


class Placeholder(int):
    """The result of a call that has not run yet; other calls of the program can take it."""

    index: int

    def __new__(cls, index: int) -> "Placeholder":
        # Within an int, so that the catalogue's functions fit; the value itself means nothing.
        self = super().__new__(cls, 0)
        self.index = index
        return self


class ProgramError(OSError):
    """A call of a program failed, or returned something else than it should have.

    `opened` is the path that could not be opened, if that was it.
    """

    opened = b""


class Program:
    """Calls to be run by the loop in the memory area that starts at `base`.

    Data for the calls comes first in the area, the records behind it.
    """

    def __init__(self, base: int, size: int) -> None:
        self.base = base
        self.size = size
        self._data = bytearray()
        self._calls: list[tuple[int, tuple[int, ...], int, int]] = []
        self._fills: list[tuple[int, bytearray]] = []
        self._results: list[int] = []

    def __len__(self) -> int:
        return len(self._calls)

    def call(self, number: int, *arguments: Argument) -> Placeholder:
        """Add a call; see `Caller`."""
        words = tuple(
            argument if isinstance(argument, int) else self.address_of(argument)
            for argument in arguments
        )
        self._calls.append((number, words, 0, 0))
        return Placeholder(len(self._calls) - 1)

    def address_of(self, data: bytes | bytearray) -> int:
        """Put data into the area and return where it will be; a `bytearray` is filled back."""
        offset = -(-len(self._data) // _ALIGN) * _ALIGN
        self._data += bytes(offset - len(self._data))
        self._data += data
        if isinstance(data, bytearray):
            self._fills.append((offset, data))
        else:
            # bytes are paths more often than not, and a path ends in a zero.
            self._data += b"\0"
        return self.base + offset

    def store(self, address: int, value: int) -> None:
        """Store the low 32 bits of a result at an address, for structures that hold one."""
        self._calls.append((_STORE, (address, value), 0, 0))

    def load(self, address: int) -> Placeholder:
        """Take 32 bits from an address as a result, for calls that return through memory."""
        self._calls.append((_LOAD, (address,), 0, 0))
        return Placeholder(len(self._calls) - 1)

    def expect(self, result: int, value: int) -> int:
        """Have the program stop if the call returns anything but `value`."""
        assert isinstance(result, Placeholder)
        number, words, _, _ = self._calls[result.index]
        self._calls[result.index] = (number, words, _MUST_EQUAL, value)
        return result

    def may_fail(self, result: int) -> int:
        """Have the program go on even if the call fails."""
        assert isinstance(result, Placeholder)
        number, words, _, _ = self._calls[result.index]
        self._calls[result.index] = (number, words, _MAY_FAIL, 0)
        return result

    def end_child(self, result: int) -> int:
        """Have a child that the call makes end at once, should nobody hold it."""
        assert isinstance(result, Placeholder)
        number, words, _, _ = self._calls[result.index]
        self._calls[result.index] = (number, words, _CHILD_ENDS, 0)
        return result

    @property
    def room(self) -> int:
        """How many bytes of the area are still free."""
        return self.size - len(self._data) - _RECORD.size * (len(self._calls) + 2)

    @property
    def entry(self) -> int:
        """Where the first record will be."""
        return self.base + -(-len(self._data) // _ALIGN) * _ALIGN

    def assemble(self) -> bytes:
        """Return the bytes to be written at `base`."""
        if self.room < 0:
            raise ValueError(f"a program of {len(self._calls)} calls does not fit its area")
        entry = self.entry
        out = bytearray(self._data)
        out += bytes(entry - self.base - len(out))
        for number, words, mode, expected in self._calls:
            row = [0, 0, 0, 0, 0, 0]
            for i, word in enumerate(words):
                if type(word) is Placeholder:
                    mode |= 1 << i
                    row[i] = entry + _RECORD.size * word.index + 72
                else:
                    row[i] = word & _WORD
            out += _RECORD.pack(number, *row, mode, expected, 0)
        out += _RECORD.pack(_END, 0, 0, 0, 0, 0, 0, 0, 0, 0)
        return bytes(out)

    def calls(self) -> Iterator[tuple[int, tuple[int | None, ...]]]:
        """Go through the calls proper, as (number, six arguments); None where a result will be."""
        for number, words, _, _ in self._calls:
            if number < _LOAD:
                known = (None if type(word) is Placeholder else word for word in words)
                yield number, (*known, *(0,) * (6 - len(words)))

    def records(self) -> range:
        """Return the addresses of all records."""
        entry = self.entry
        return range(entry, entry + RECORD_BYTES * len(self._calls), RECORD_BYTES)

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
        done = (stopped_at - entry) // _RECORD.size
        length = _RECORD.size * min(done + 1, len(self._calls))
        table = os.pread(memory, length, entry) if length else b""
        self._results = [
            struct.unpack_from("<q", table, at + 72)[0] for at in range(0, len(table), _RECORD.size)
        ]
        if done < len(self._calls):
            raise self._failure(done)
        for offset, buffer in self._fills:
            buffer[:] = os.pread(memory, len(buffer), self.base + offset)

    def _failure(self, index: int) -> ProgramError:
        number, words, mode, expected = self._calls[index]
        result = self._results[index]
        shown = ", ".join(self._shown(word) for word in words)
        if -4096 < result < 0:
            failure = ProgramError(-result, f"{call_name(number)}({shown}): {os.strerror(-result)}")
            if number == SYS.OPENAT2:
                failure.opened = self._bytes_at(words[1])
            return failure
        wanted = f", not {expected:#x}" if mode & _MUST_EQUAL else ""
        return ProgramError(0, f"{call_name(number)}({shown}) returned {result:#x}{wanted}")

    def _bytes_at(self, address: int) -> bytes:
        """Return what stands in the data at an address, up to a zero byte."""
        offset = address - self.base
        return bytes(self._data[offset : self._data.index(0, offset)])

    def _shown(self, word: int) -> str:
        if type(word) is Placeholder:
            return str(self._results[word.index])
        offset = word - self.base
        if 0 <= offset < len(self._data):
            text = bytes(self._data[offset : offset + 80]).split(b"\0")[0]
            if text.isascii() and text.decode("ascii").isprintable() and len(text) > 2:
                return repr(text.decode())
        return hex(word) if word > 4096 else str(word)

    def __getitem__(self, result: int) -> int:
        """Return what a call returned, once the program has run."""
        assert isinstance(result, Placeholder)
        return self._results[result.index]

    def results(self, placeholders: Iterable[int]) -> list[int]:
        """Return what several calls returned."""
        return [self[placeholder] for placeholder in placeholders]
