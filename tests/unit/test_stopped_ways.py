"""The way back of tasks in a group stop, which opens their mask, and what is read from it."""

import random
from pathlib import Path

import pytest
from test_registers import GENERAL, arbitrary, disassembled

from needs import needs
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.ptrace import NO_CALL, Registers
from woodfrog.remote import lender, registers
from woodfrog.remote.program import LOOP
from woodfrog.remote.stopped import way_back, where_it_was

MASK = 0x1234_5678_9ABC_DEF0


def read(code: bytes, now: Registers, tmp_path: Path) -> tuple[Registers, int | None] | None:
    path = tmp_path / "memory"
    path.write_bytes(code)
    with path.open("rb") as file:
        return where_it_was(file.fileno(), 0, now)


def values(found: Registers) -> dict[str, int]:
    return {name: getattr(found, name) for name in (*GENERAL, "rip", "orig_rax")}


@pytest.mark.parametrize("may_open", [True, False])
@pytest.mark.parametrize("with_flags", [True, False])
def test_it_tells_how_the_task_was(
    with_flags: bool, may_open: bool, chance: random.Random, tmp_path: Path
) -> None:
    for call, result in ((NO_CALL, 7), (SYS.PAUSE, -514), (SYS.NANOSLEEP, -516)):
        was, now = arbitrary(chance), arbitrary(chance)
        was.orig_rax, was.rax = call, result & NO_CALL
        was.eflags = 0x246
        length = len(way_back(was, 1, MASK, may_open=True))
        code = way_back(was, length if with_flags else None, MASK, may_open=may_open)
        code = code.ljust(length, b"\0") + was.eflags.to_bytes(8, "little")
        found = read(code, now, tmp_path)
        assert found is not None
        assert found[1] == MASK
        expected = values(was)
        if with_flags:
            assert found[0].eflags == was.eflags
        else:
            expected["rsp"] = now.rsp
        assert values(found[0]) == expected


def test_that_of_a_task_that_was_not_stopped_opens_nothing(
    chance: random.Random, tmp_path: Path
) -> None:
    was, now = arbitrary(chance), arbitrary(chance)
    was.orig_rax = NO_CALL
    found = read(registers.way_back(was) + bytes(100), now, tmp_path)
    assert found is not None
    assert found[1] is None
    assert found[0].rip == was.rip


def test_other_code_is_none(chance: random.Random, tmp_path: Path) -> None:
    code = way_back(arbitrary(chance), 0, MASK, may_open=True)
    for _ in range(300):
        at = chance.randrange(len(code))
        spoiled = code[:at] + bytes([code[at] ^ 1 << chance.randrange(8)]) + code[at + 1 :]
        read(spoiled, arbitrary(chance), tmp_path)  # and nothing is raised
        assert read(chance.randbytes(300), arbitrary(chance), tmp_path) is None
        assert read(code[:at], arbitrary(chance), tmp_path) is None


@needs("command objdump")
def test_it_opens_the_mask_by_a_call_that_spares_the_flags(tmp_path: Path) -> None:
    code = way_back(Registers(), None, MASK, may_open=True)
    found = disassembled(code[:30], tmp_path)
    assert found[:2] == [("mov", f"eax,{SYS.RT_SIGPROCMASK:#x}"), ("mov", "edi,0x2")]
    assert found[2][0] == "lea"
    assert f"# {code.index(MASK.to_bytes(8, 'little')):#x}" in found[2][1]
    assert found[3:] == [("mov", "edx,0x0"), ("mov", "r10d,0x8"), ("syscall", "")]


def test_it_has_room_behind_the_loop() -> None:
    room = lender.CODE_BYTES // 8 - len(LOOP)
    assert len(way_back(Registers(), 1, MASK, may_open=True)) <= room
