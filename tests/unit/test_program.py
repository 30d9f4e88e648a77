"""What a program becomes in memory, and what is told of it when it has run."""

import errno
import os
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from needs import needs
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.remote import program as module
from woodfrog.remote.program import LOOP, Placeholder, Program, ProgramError

BASE = 0x10000
WORD = (1 << 64) - 1
END = (WORD, 0, 0, 0, 0, 0, 0, 0, 0, 0)
CODE = Path(module.__file__).parent / "code"


class Memory:
    """A file that stands for the memory of a task, with the loop's part played by the test."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def run(self, program: Program, *results: int, filled: bytes = b"") -> None:
        """Have the calls return these results and fill the first bytes of the data."""
        self._end(program, results, filled, len(results))

    def fail(self, program: Program, *results: int) -> None:
        """Have the calls return these results, at the last of which the loop stops."""
        self._end(program, results, b"", len(results) - 1)

    def _end(self, program: Program, results: Sequence[int], filled: bytes, done: int) -> None:
        os.pwrite(self.fd, program.assemble(), BASE)
        os.pwrite(self.fd, filled, BASE)
        for record, result in zip(program.records(), results, strict=False):
            os.pwrite(self.fd, struct.pack("<q", result), record + 72)
        program.finish(self.fd, program.entry + 80 * done)


@pytest.fixture
def memory() -> Iterator[Memory]:
    """Empty memory."""
    with tempfile.TemporaryFile() as file:
        yield Memory(file.fileno())


@pytest.fixture
def program() -> Program:
    """An empty program of a page."""
    return Program(BASE, 4096)


def test_a_program_is_added_to_others(memory: Memory) -> None:
    part = Program(0, 0)
    opened = part.call(SYS.OPENAT2, 3, b"/a/path", 0)
    part.expect(part.call(SYS.DUP3, opened, 7, 0), 7)
    for before in (0, 1):
        program = Program(BASE, 4096)
        for number in range(before):
            program.call(SYS.CHDIR, b"/before")
            program.call(SYS.CLOSE, number)
        program.extend(part)
        after = program.call(SYS.GETPID)
        whole = Program(BASE, 4096)
        for number in range(before):
            whole.call(SYS.CHDIR, b"/before")
            whole.call(SYS.CLOSE, number)
        opened = whole.call(SYS.OPENAT2, 3, b"/a/path", 0)
        whole.expect(whole.call(SYS.DUP3, opened, 7, 0), 7)
        whole.call(SYS.GETPID)
        assert len(program) == len(whole)
        assert [*program.calls()] == [*whole.calls()]
        assert records(program) == records(whole)
        memory.run(program, *(0,) * (2 * before), 5, 7, 42)
        assert program[after] == 42
        with pytest.raises(ProgramError, match="/a/path"):
            memory.fail(program, *(0,) * (2 * before), -errno.ENOENT)


def records(program: Program) -> list[tuple[int, ...]]:
    """Take the assembled records apart."""
    table = program.assemble()[program.entry - BASE :]
    return list(struct.iter_unpack("<10Q", table))


def test_an_empty_program_is_its_end(program: Program) -> None:
    assert (len(program), program.entry, records(program)) == (0, BASE, [END])


def test_numbers_become_words(program: Program) -> None:
    program.call(SYS.MMAP, 0, 4096, 3, 0x22, -1, 1 << 40)
    assert records(program) == [(SYS.MMAP, 0, 4096, 3, 0x22, WORD, 1 << 40, 0, 0, 0), END]


def test_a_result_becomes_the_address_of_an_earlier_record(program: Program) -> None:
    first = program.call(SYS.GETPID)
    second = program.call(SYS.GETPPID)
    program.call(SYS.KILL, second, 9)
    program.call(SYS.KILL, 7, first)
    assert isinstance(first, Placeholder)
    assert records(program)[2] == (SYS.KILL, BASE + 80 + 72, 9, 0, 0, 0, 0, 1, 0, 0)
    assert records(program)[3] == (SYS.KILL, 7, BASE + 72, 0, 0, 0, 0, 2, 0, 0)


def test_every_argument_can_be_a_result(program: Program) -> None:
    first = program.call(SYS.GETPID)
    program.call(SYS.FUTEX, *[first] * 6)
    assert records(program)[1][1:8] == (*[BASE + 72] * 6, 0b111111)


def test_data_stands_before_the_records_and_is_aligned(program: Program) -> None:
    program.call(SYS.WRITE, 1, b"frog", 4)
    buffer = bytearray(b"12345678")
    program.call(SYS.READ, 0, buffer, 8)
    out = program.assemble()
    assert program.entry == BASE + 32
    assert out[:32] == b"frog\0" + bytes(11) + b"12345678" + bytes(8)
    assert [record[2] for record in records(program)[:2]] == [BASE, BASE + 16]


def test_bytes_end_in_a_zero_and_buffers_do_not_grow(program: Program) -> None:
    assert program.address_of(b"x" * 16) == BASE
    assert program.address_of(bytearray(16)) == BASE + 32
    assert program.address_of(b"y") == BASE + 48


def test_data_added_later_does_not_break_references(program: Program) -> None:
    first = program.call(SYS.GETPID)
    program.call(SYS.KILL, first, 0)
    program.address_of(bytes(100))
    assert records(program)[1][1] == program.entry + 72


def test_what_is_expected_is_in_the_record(program: Program) -> None:
    program.expect(program.call(SYS.CLOSE, 3), 0)
    program.expect(program.call(SYS.CLOSE, 4), -9)
    program.may_fail(program.call(SYS.CLOSE, 5))
    assert [record[7:9] for record in records(program)[:3]] == [
        (1 << 8, 0),
        (1 << 8, (-9) & WORD),
        (1 << 9, 0),
    ]


def test_stores_and_loads_are_records_and_not_calls(program: Program) -> None:
    loaded = program.load(0x5000)
    program.store(0x6000, loaded)
    program.call(SYS.CLOSE, loaded)
    assert records(program)[:2] == [
        (WORD - 2, 0x5000, 0, 0, 0, 0, 0, 0, 0, 0),
        (WORD - 1, 0x6000, BASE + 72, 0, 0, 0, 0, 2, 0, 0),
    ]
    assert list(program.calls()) == [(SYS.CLOSE, (None, 0, 0, 0, 0, 0))]


def test_calls_tell_their_arguments_as_far_as_they_are_known(program: Program) -> None:
    pid = program.call(SYS.GETPID)
    program.call(SYS.KILL, pid, 9)
    assert list(program.calls()) == [
        (SYS.GETPID, (0, 0, 0, 0, 0, 0)),
        (SYS.KILL, (None, 9, 0, 0, 0, 0)),
    ]


def test_a_program_that_does_not_fit_is_refused() -> None:
    program = Program(BASE, 80 * 11)
    for _ in range(9):
        program.call(SYS.GETPID)
    assert program.room == 0
    assert len(program.assemble()) == 800
    program.call(SYS.GETPID)
    with pytest.raises(ValueError, match="a program of 10 calls does not fit its area"):
        program.assemble()


@pytest.mark.parametrize("length", range(1, 34))
def test_what_has_room_fits(length: int) -> None:
    program = Program(BASE, 400)
    program.address_of(b"x" * length)
    while program.room >= 80:
        program.call(SYS.GETPID)
    assert len(program.assemble()) <= 400


def test_results_and_buffers_are_taken_over(program: Program, memory: Memory) -> None:
    buffer = bytearray(4)
    got = program.call(SYS.READ, 0, buffer, 4)
    failed = program.may_fail(program.call(SYS.CLOSE, 9))
    memory.run(program, 4, -9, filled=b"frog")
    assert buffer == b"frog"
    assert program.results([got, failed]) == [4, -9]


def test_a_large_result_keeps_its_sign(program: Program, memory: Memory) -> None:
    address = program.call(SYS.MMAP)
    memory.run(program, 0x7FFF_FFFF_F000)
    assert program[address] == 0x7FFF_FFFF_F000


def test_a_failure_is_an_os_error_with_call_and_arguments(program: Program, memory: Memory) -> None:
    program.call(SYS.OPENAT, -100, b"/no/such", 0)
    program.call(SYS.CLOSE, 3)
    with pytest.raises(ProgramError) as failure:
        memory.fail(program, -errno.ENOENT)
    assert failure.value.errno == errno.ENOENT
    assert failure.value.strerror == "openat(-100, '/no/such', 0): No such file or directory"
    assert isinstance(failure.value, OSError)


def test_a_failure_shows_the_results_that_were_passed_in(program: Program, memory: Memory) -> None:
    fd = program.call(SYS.GETPID)
    program.call(SYS.DUP3, fd, 5, 0x80000)
    with pytest.raises(ProgramError, match=r"dup3\(42, 5, 0x80000\): Bad file descriptor"):
        memory.fail(program, 42, -errno.EBADF)


def test_a_failure_shows_data_that_is_no_text_by_its_address(
    program: Program, memory: Memory
) -> None:
    program.call(SYS.WRITE, 1, b"\x01\x02\xff", 3)
    with pytest.raises(ProgramError, match=rf"write\(1, {BASE:#x}, 3\): Input/output error"):
        memory.fail(program, -errno.EIO)


def test_an_unexpected_result_is_told_with_the_one_expected(
    program: Program, memory: Memory
) -> None:
    program.expect(program.call(SYS.MMAP, 0x5000, 4096), 0x5000)
    program.call(SYS.GETPID)
    with pytest.raises(ProgramError, match=r"mmap\(0x5000, 4096\) returned 0x9000, not 0x5000"):
        memory.fail(program, 0x9000)


def test_one_record_can_be_run_by_itself(program: Program, memory: Memory) -> None:
    for _ in range(3):
        program.call(SYS.GETPID)
    whole = program.assemble()
    os.pwrite(memory.fd, whole, BASE)
    second = program.records()[1]
    after = program.end_after(second, memory.fd)
    assert after == SYS.GETPID.to_bytes(8, "little")
    assert os.pread(memory.fd, 8, program.records()[2]) == b"\xff" * 8
    os.pwrite(memory.fd, after, second + 80)
    assert os.pread(memory.fd, len(whole), BASE) == whole


def test_the_loop_ends_where_the_way_back_begins_aligned() -> None:
    assert len(LOOP) % 16 == 0
    # It makes no call but those of its program, and exit_group where that says so.
    assert LOOP.count(b"\x0f\x05") == 2


@needs("command gcc", "command objcopy")
def test_the_loop_is_what_its_source_says(tmp_path: Path) -> None:
    built = tmp_path / "loop.bin"
    subprocess.run([str(CODE / "build"), str(built)], check=True, timeout=60)
    assert built.read_bytes() == (CODE / "loop_x86_64.bin").read_bytes() == LOOP
    assert not (CODE / "loop.o").exists()


def test_what_was_added_after_a_mark_can_be_cut_off(memory: Memory, program: Program) -> None:
    answer = bytearray(8)
    first = program.call(SYS.READ, 3, answer, 8)
    before = program.assemble()
    mark = program.mark()
    for _ in range(2):
        pid = program.call(SYS.GETPID)
        program.call(SYS.KILL, pid, program.address_of(b"more"), bytearray(8))
        program.call_each(SYS.CLOSE, [(4,), (5,)])
        assert len(program) == 5
        memory.run(program, 8, 77, 0, -9, -9, filled=b"an answe")
        assert (program[first], program[pid], answer) == (8, 77, b"an answe")
        program.cut(mark)
        program.move(BASE, 4096)
        assert program.assemble() == before
    memory.run(program, 4, filled=b"anew")
    assert (program[first], answer[:4]) == (4, b"anew")


def test_calls_of_a_kind_are_as_if_each_were_added(program: Program) -> None:
    other = Program(BASE, 4096)
    rows = [(1, 2, 3), (4,), (), (5, 6, 7, 8, 9, 10)]
    program.call_each(SYS.FCNTL, rows)
    for row in rows:
        other.may_fail(other.call(SYS.FCNTL, *row))
    program.call_each(SYS.FCNTL, rows, may_fail=False)
    for row in rows:
        other.call(SYS.FCNTL, *row)
    assert program.assemble() == other.assemble()
    assert len(program) == len(other)


def test_a_result_of_another_program_is_refused(program: Program) -> None:
    theirs = Program(BASE, 4096).call(SYS.GETPID)
    program.call(SYS.GETPID)
    uses = (
        lambda: program[theirs],
        lambda: program.expect(theirs, 0),
        lambda: program.may_fail(theirs),
        lambda: program.call(SYS.CLOSE, theirs),
    )
    for use in uses:
        with pytest.raises(ValueError, match="not the result of a call of this program"):
            use()
