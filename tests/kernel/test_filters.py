"""What we think a seccomp filter says is what the kernel says."""

import errno
import json
import os
import random
import signal
import struct
import subprocess
import sys

import pytest

from entering import seized
from needs import needs
from woodfrog.kernel import ptrace
from woodfrog.remote import seccomp
from woodfrog.remote.seccomp import Filters

Instruction = tuple[int, int, int, int]

ALLOW, LOG, ERRNO, TRACE, KILL = 0x7FFF0000, 0x7FFC0000, 0x00050000, 0x7FF00000, 0
# Numbers that no call has: where a filter lets them pass, the kernel says ENOSYS.
FIRST = 1000
LD_NR: Instruction = (0x20, 0, 0, 0)
RET_A: Instruction = (0x16, 0, 0, 0)
OPERATIONS = [0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0xA0]

# Takes filters and calls from its input, installs the former and tells how each call went.
CHILD = """
import ctypes, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
filters, calls = json.load(sys.stdin)
libc.prctl(38, 1, 0, 0, 0)
for one in filters:
    code = bytes.fromhex(one)
    buffer = ctypes.create_string_buffer(code, len(code))
    class Fprog(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))
    fprog = Fprog(len(code) // 8, ctypes.addressof(buffer))
    if libc.prctl(22, 2, ctypes.byref(fprog), 0, 0):
        sys.exit(f"refused: {ctypes.get_errno()}")
results = []
for call in calls:
    ctypes.set_errno(0)
    result = libc.syscall(*map(ctypes.c_uint64, call))
    results.append(ctypes.get_errno() if result == -1 else result)
print(json.dumps(results))
"""


def packed(instructions: list[Instruction]) -> bytes:
    """Return a filter as the kernel takes it."""
    return b"".join(struct.pack("<HBBI", *one) for one in instructions)


def ret(verdict: int) -> Instruction:
    """Return the instruction that ends a filter."""
    return (0x06, 0, 0, verdict)


def for_calls_of_ours(instructions: list[Instruction]) -> list[Instruction]:
    """Let all calls pass that real programs make, and judge the others."""
    return [LD_NR, (0x35, 1, 0, FIRST), ret(ALLOW), *instructions]


def random_body(chance: random.Random, length: int) -> list[Instruction]:
    """Return instructions of all kinds, without an end; jumps stay inside."""
    body: list[Instruction] = [(0x02, 0, 0, slot) for slot in range(16)]
    body += [(0x01, 0, 0, chance.randrange(1, 1 << 32))]
    for at in range(length):
        left = length - at - 1
        number = chance.choice([0, 1, 31, 32, 0xFF, 1 << 31, chance.getrandbits(32)])
        operation = chance.choice(OPERATIONS)
        shifts = operation in (0x60, 0x70)
        yes, no = (chance.randrange(min(left, 5) + 1) for _ in range(2))
        body.append(
            chance.choice(
                [
                    (0x20, 0, 0, chance.choice([0, 4, *range(16, 64, 4)])),
                    (0x20, 0, 0, chance.choice([0, *range(16, 64, 4)])),
                    (chance.choice([0x00, 0x01]), 0, 0, number or 1),
                    (chance.choice([0x80, 0x81]), 0, 0, 0),
                    (chance.choice([0x60, 0x61]), 0, 0, chance.randrange(16)),
                    (chance.choice([0x02, 0x03]), 0, 0, chance.randrange(16)),
                    (chance.choice([0x07, 0x87]), 0, 0, 0),
                    (0x84, 0, 0, 0),
                    (0x04 | operation, 0, 0, number % 32 if shifts else number or 1),
                    (0x0C | chance.choice([o for o in OPERATIONS if o != 0x30]), 0, 0, 0),
                    (0x05, 0, 0, yes),
                    (0x05 | chance.choice([0x10, 0x20, 0x30, 0x40]), yes, no, number),
                    (0x0D | chance.choice([0x10, 0x20, 0x30, 0x40]), yes, no, 0),
                ]
            )
        )
    return body + folded()


def folded() -> list[Instruction]:
    """Return instructions that fold all of A into the twelve bits that an error number has."""
    fold: list[Instruction] = [(0x07, 0, 0, 0)]
    for shift in (12, 24):
        fold += [(0x02, 0, 0, 0), (0x74, 0, 0, shift), (0xAC, 0, 0, 0), (0x07, 0, 0, 0)]
        fold += [(0x87, 0, 0, 0)]
    return fold


def random_calls(chance: random.Random, count: int) -> list[tuple[int, ...]]:
    """Return calls with arguments of all sizes."""
    values = [0, 1, 2, 0xFFFF, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 63, (1 << 64) - 1]
    return [
        (
            chance.randrange(FIRST, FIRST + 3000),
            *(chance.choice([*values, chance.getrandbits(64)]) for _ in range(6)),
        )
        for _ in range(count)
    ]


def as_the_kernel_has_it(
    filters: list[list[Instruction]], calls: list[tuple[int, ...]]
) -> list[int]:
    """Return what each call returned, errors as positive numbers, oldest filter first."""
    given = json.dumps([[packed(one).hex() for one in filters], calls])
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", CHILD],
        input=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found: list[int] = json.loads(done.stdout)
    return found


EDGES = [0, 1, 2, 31, 32, 33, 63, 64, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFE, 0xFFFF_FFFF]


@pytest.mark.parametrize("code", [*(0x0C | o for o in [*OPERATIONS, 0x80]), 0x1D, 0x2D, 0x3D, 0x4D])
def test_each_operation_does_at_its_edges_what_the_kernel_does(code: int) -> None:
    # A is the first argument, X the second.
    program: list[Instruction] = [(0x20, 0, 0, 24), (0x07, 0, 0, 0), (0x20, 0, 0, 16)]
    if code & 7 == 5:
        program += [(code, 0, 1, 0), ret(ERRNO | 1), ret(ERRNO | 2)]
    else:
        operation: Instruction = (code if code != 0x8C else 0x84, 0, 0, 0)
        program += [operation, *folded(), (0x54, 0, 0, 0xFFF), (0x44, 0, 0, ERRNO), RET_A]
    program = for_calls_of_ours(program)
    calls: list[tuple[int, ...]] = [
        (FIRST, a, x, 0, 0, 0, 0) for a in EDGES for x in EDGES if code != 0x3C or x
    ]
    ours = [
        seccomp._run(program, seccomp._Data(number, arguments)) & 0xFFFF
        for number, *arguments in calls
    ]
    assert as_the_kernel_has_it([program], calls) == ours


@pytest.mark.parametrize("seed", range(12))
def test_a_filter_computes_as_in_the_kernel(chance: random.Random, seed: int) -> None:
    body = random_body(chance, chance.choice([5, 20, 60]))
    end: list[Instruction] = [(0x54, 0, 0, 0xFFF), (0x44, 0, 0, ERRNO), RET_A]
    program = for_calls_of_ours([*body, *end])
    calls = random_calls(chance, 60)
    ours = [
        seccomp._run(program, seccomp._Data(number, arguments)) & 0xFFFF
        for number, *arguments in calls
    ]
    # The C library takes a result for an error up to 4095, as the kernel does.
    assert as_the_kernel_has_it([program], calls) == ours


@pytest.mark.parametrize("seed", range(6))
def test_a_call_passes_if_all_filters_let_it_pass(chance: random.Random, seed: int) -> None:
    chain = []
    for _ in range(chance.randrange(1, 5)):
        body = random_body(chance, 15)
        verdicts: list[Instruction] = [(0x45, 0, 1, 3), ret(ALLOW)]
        verdicts += [(0x45, 0, 1, 4), ret(chance.choice([ALLOW, TRACE])), ret(ERRNO | errno.EPERM)]
        chain.append(for_calls_of_ours([*body, *verdicts]))
    calls = random_calls(chance, 100)
    filters = Filters([packed(one) for one in chain], strict=False)
    ours = [filters.allow(number, arguments) for number, *arguments in calls]
    # TRACE, where nobody traces, is ENOSYS, too: look only at calls that it says nothing of.
    theirs = as_the_kernel_has_it(
        [
            [(c, t, f, ERRNO | 1 if (c, k) == (6, TRACE) else k) for c, t, f, k in one]
            for one in chain
        ],
        calls,
    )
    assert [result == errno.ENOSYS for result in theirs] == ours
    assert {True, False} >= set(ours)


@pytest.mark.parametrize("verdict", [TRACE, ERRNO, 0x7FC00000, 0x00030000, KILL, 0x80000000])
def test_only_allow_and_log_let_a_call_pass(verdict: int) -> None:
    assert not Filters([packed([ret(verdict)])], strict=False).allow(39, [0] * 6)
    assert not Filters([packed([ret(v)]) for v in (ALLOW, verdict, LOG)], strict=False).allow(
        39, [0] * 6
    )


def test_allow_and_log_let_a_call_pass() -> None:
    chain = [packed([ret(ALLOW)]), packed([ret(LOG)]), packed([ret(ALLOW | 0xFFFF)])]
    assert Filters(chain, strict=False).allow(39, [0] * 6)
    assert Filters([], strict=False).allow(39, [0] * 6)


def test_strict_mode_lets_nothing_pass() -> None:
    assert not Filters([], strict=True).allow(39, [0] * 6)


def test_what_is_not_known_does_not_pass() -> None:
    if_argument_is_zero = packed([(0x20, 0, 0, 24), (0x15, 0, 1, 0), ret(ALLOW), ret(KILL)])
    filters = Filters([if_argument_is_zero], strict=False)
    assert filters.allow(39, [7, 0])
    assert not filters.allow(39, [7, None])
    assert not filters.allow(39, [7])
    assert filters.allow(39, [None, 0])
    by_instruction = packed([(0x20, 0, 0, 8), (0x15, 0, 1, 0), ret(ALLOW), ret(KILL)])
    assert not Filters([by_instruction], strict=False).allow(39, [0] * 6)


def test_a_verdict_by_number_alone_is_remembered_and_others_are_not() -> None:
    if_argument_is_zero = packed([(0x20, 0, 0, 16), (0x15, 0, 1, 0), ret(ALLOW), ret(KILL)])
    filters = Filters([if_argument_is_zero], strict=False)
    assert [filters.allow(39, [n]) for n in (0, 1, 0)] == [True, False, True]
    by_number = Filters([packed([LD_NR, (0x15, 0, 1, 39), ret(ALLOW), ret(KILL)])], strict=False)
    assert [by_number.allow(n, [0]) for n in (39, 40, 39, 40)] == [True, False, True, False]


def test_a_division_by_zero_kills() -> None:
    # X is 0; afterwards the filter would let the call pass.
    program = for_calls_of_ours([(0x3C, 0, 0, 0), ret(ALLOW)])
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", CHILD],
        input=json.dumps([[packed(program).hex()], [(FIRST, 0, 0, 0, 0, 0, 0)]]),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == -signal.SIGSYS
    assert not Filters([packed(program)], strict=False).allow(FIRST, [0] * 6)


@needs("root")
def test_filters_are_read_oldest_first() -> None:
    chain = [[ret(ALLOW | number)] for number in (1, 2, 3)]
    script = CHILD.replace("results = []", "print('ready', flush=True); input()\nresults = []")
    script = script.replace("json.load(sys.stdin)", "json.loads(input())")
    pipe = subprocess.PIPE
    command = [sys.executable, "-I", "-S", "-c", script]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        print(
            json.dumps([[packed(one).hex() for one in chain], []]), file=process.stdin, flush=True
        )
        assert process.stdout.readline() == "ready\n"
        with seized(process.pid):
            found = [ptrace.seccomp_filter(process.pid, index) for index in range(4)]
            assert [ptrace.seccomp_filter_flags(process.pid, index) for index in range(3)] == [
                0
            ] * 3
        os.kill(process.pid, signal.SIGKILL)
    assert found == [*(packed(one) for one in chain), None]
