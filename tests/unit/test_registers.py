"""What registers at a stop mean, and the code that puts them back."""

import random
import re
import struct
import subprocess
from pathlib import Path

import pytest

from needs import needs
from woodfrog.kernel import ptrace
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.ptrace import NO_CALL, Registers
from woodfrog.remote.registers import (
    CALLS_THAT_SEE_A_HOLD,
    for_our_code,
    has_exceptional_flags,
    in_call,
    issue_again,
    made_again,
    sees_the_hold,
    way_back,
    without_the_kernel,
)

WORD = (1 << 64) - 1
RESTARTS = [512, 513, 514, 516]
# All that a way back sets; the segments are the task's own all the time.
GENERAL = [
    name
    for name in ptrace._REGISTERS
    if name not in ("orig_rax", "rip", "cs", "eflags", "ss", "fs_base", "gs_base")
    and name not in ("ds", "es", "fs", "gs")
]


def stopped(number: int = NO_CALL, result: int = 0, **others: int) -> Registers:
    """Return registers of a task that stopped in, or outside of, a call."""
    found = Registers(orig_rax=number & WORD, rax=result & WORD, rip=0x401002, rsp=0x7FFD_0000)
    for name, value in others.items():
        setattr(found, name, value)
    return found


def arbitrary(chance: random.Random, **others: int) -> Registers:
    """Return registers, each of which has another value."""
    found = Registers(*(chance.getrandbits(64) for _ in ptrace._REGISTERS))
    found.orig_rax = NO_CALL
    for name, value in others.items():
        setattr(found, name, value & WORD)
    return found


def test_a_negative_result_is_read_as_such() -> None:
    assert stopped(0, -512).result == -512
    assert stopped(0, 1 << 62).result == 1 << 62


@pytest.mark.parametrize("error", RESTARTS)
def test_a_call_that_is_to_be_restarted_has_not_returned(error: int) -> None:
    assert in_call(stopped(SYS.READ, -error))
    # The same number outside of a call is a number.
    assert not in_call(stopped(NO_CALL, -error))


@pytest.mark.parametrize("result", [0, 7, -4, -11, -511, -515, -517, 512, 1 << 40])
def test_a_call_with_any_other_result_has_returned(result: int) -> None:
    assert not in_call(stopped(SYS.READ, result))


def test_a_call_made_again_is_made_by_the_kernel_or_ended_by_a_signal() -> None:
    before = stopped(SYS.NANOSLEEP, -516, rdi=3)
    again = made_again(before)
    assert in_call(again)
    assert again.result == -514
    assert (again.rip, again.orig_rax, again.rdi) == (0x401002, SYS.NANOSLEEP, 3)
    assert without_the_kernel(again).rip == 0x401000


def test_our_code_runs_without_flags_that_make_exceptions() -> None:
    before = stopped(SYS.READ, 7, eflags=0x40F47, rsi=5)
    ours = for_our_code(before, 0x7000)
    assert (ours.rip, ours.orig_rax, ours.rsi, ours.eflags) == (0x7000, NO_CALL, 5, 0xE47)
    assert before.eflags == 0x40F47
    assert has_exceptional_flags(before)
    assert not has_exceptional_flags(ours)


def test_a_call_issued_again_is_as_before_its_instruction() -> None:
    before = stopped(SYS.READ, -512, rdi=3, rsi=0x5000, rdx=9)
    again = issue_again(before)
    assert (again.rax, again.rip, again.orig_rax) == (SYS.READ, 0x401000, NO_CALL)
    assert (again.rdi, again.rsi, again.rdx, again.rsp) == (3, 0x5000, 9, 0x7FFD_0000)
    assert (before.rax, before.rip, before.orig_rax) == (-512 & WORD, 0x401002, SYS.READ)


@pytest.mark.parametrize("error", [512, 513, 514])
def test_without_the_kernel_a_call_is_issued_again(error: int) -> None:
    again = without_the_kernel(stopped(SYS.READ, -error))
    assert (again.rax, again.rip) == (SYS.READ, 0x401000)


def test_without_the_kernel_a_restart_block_is_gone_on_with() -> None:
    again = without_the_kernel(stopped(SYS.NANOSLEEP, -516))
    assert (again.rax, again.rip) == (SYS.RESTART_SYSCALL, 0x401000)


@pytest.mark.parametrize("number", [NO_CALL, SYS.READ])
def test_without_the_kernel_anything_else_goes_on_where_it_is(number: int) -> None:
    before = stopped(number, 5)
    assert bytes(without_the_kernel(before)) == bytes(before)


def test_only_some_calls_fail_because_they_are_held() -> None:
    assert sees_the_hold(stopped(SYS.EPOLL_WAIT, -4))
    assert not sees_the_hold(stopped(SYS.EPOLL_WAIT, -512))
    assert not sees_the_hold(stopped(SYS.EPOLL_WAIT, 0))
    assert not sees_the_hold(stopped(SYS.PAUSE, -4))
    assert not sees_the_hold(stopped(NO_CALL, -4))
    assert {SYS.RT_SIGTIMEDWAIT, SYS.SEMTIMEDOP, SYS.IO_GETEVENTS} <= CALLS_THAT_SEE_A_HOLD


def disassembled(code: bytes, directory: Path) -> list[tuple[str, str]]:
    """Return (instruction, operands) as objdump reads them."""
    path = directory / "code"
    path.write_bytes(code)
    command = ["objdump", "-D", "-b", "binary", "-m", "i386:x86-64", "-M", "intel"]
    done = subprocess.run([*command, str(path)], check=True, capture_output=True, text=True)
    lines = re.findall(r"^ +[0-9a-f]+:\t(?:[0-9a-f]{2} )+ *\t(.+)$", done.stdout, re.MULTILINE)
    return [(line.split()[0], " ".join(line.split()[1:])) for line in lines]


@needs("command objdump")
def test_the_way_back_sets_each_register_and_jumps(chance: random.Random, tmp_path: Path) -> None:
    registers = arbitrary(chance)
    code = way_back(registers)
    assert code[-8:] == struct.pack("<Q", registers.rip)
    jump = code[-14:-8]
    found = disassembled(code[:-8], tmp_path)
    assert found[-1][0] == "jmp"
    assert "QWORD PTR [rip+0x0]" in found[-1][1]
    assert jump == b"\xff\x25\0\0\0\0"
    moves = [(name, *operands.split(",")) for name, operands in found[:-1]]
    assert {name for name, _, _ in moves} == {"movabs"}
    assert {register: int(value, 16) for _, register, value in moves} == {
        name: getattr(registers, name) for name in GENERAL if name != "rsp"
    }


@needs("command objdump")
def test_the_way_back_takes_the_flags_and_the_stack_last(
    chance: random.Random, tmp_path: Path
) -> None:
    registers = arbitrary(chance)
    found = disassembled(way_back(registers, 0x1234_5678_9ABC)[:-8], tmp_path)
    assert found[-4:-1] == [
        ("movabs", "rsp,0x123456789abc"),
        ("popf", ""),
        ("movabs", f"rsp,{registers.rsp:#x}"),
    ]
    assert {name for name, _ in found} == {"movabs", "popf", "jmp"}


@pytest.mark.parametrize("flags_at", [None, 0x5000])
def test_the_way_back_makes_no_call_by_itself(flags_at: int | None) -> None:
    # A filter may forbid every call: none may stand between the program and the task's own code.
    code = way_back(stopped(rip=0x401000), flags_at)
    assert b"\x0f\x05" not in code
    assert b"\xcd\x80" not in code
    assert b"\x0f\x34" not in code


def test_the_way_back_of_a_call_makes_it_again() -> None:
    code = way_back(stopped(SYS.NANOSLEEP, -516))
    assert code[-8:] == struct.pack("<Q", 0x401000)
    assert code.startswith(b"\x48\xb8" + struct.pack("<Q", SYS.RESTART_SYSCALL))
