"""Seccomp filters: rules, compiled into a classic BPF program, and installed."""

from __future__ import annotations

import ctypes
import struct

from woodfrog.kernel.abi.x86_64 import SYS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from woodfrog.kernel.caller import Caller

ACTIONS = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_NOTIFY": 0x7FC00000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
OPERATORS = (
    "SCMP_CMP_NE",
    "SCMP_CMP_LT",
    "SCMP_CMP_LE",
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_MASKED_EQ",
)
FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 1,
    "SECCOMP_FILTER_FLAG_LOG": 2,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": 32,
}
NEW_LISTENER = 8
ARCHITECTURES = ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32")

AUDIT_ARCH_X86_64 = 0xC000003E
AUDIT_ARCH_I386 = 0x40000003
X32_BIT = 0x40000000

_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_AND = 0x54  # BPF_ALU | BPF_AND | BPF_K
_JUMP = 0x05  # BPF_JMP | BPF_JA
_JEQ = 0x15
_JGT = 0x25
_JGE = 0x35
_RETURN = 0x06
_AT_NUMBER, _AT_ARCH, _AT_ARGUMENTS = 0, 4, 16
_MAX_INSTRUCTIONS = 4096
SET_MODE_FILTER = 1

# (code, jump if true, jump if false, operand)
Instruction = tuple[int, int, int, int]
# Argument index, operator, value, second value.
Condition = tuple[int, str, int, int]
# Conditions that must all hold, and what the kernel then does.
Rule = tuple[tuple[Condition, ...], int]
# The rules of each call number. A number without rules tells that the call is known.
Calls = dict[int, list[Rule]]


def program(tables: dict[int, Calls], default: int, newest: int) -> bytes:
    """Return a filter: architecture to call number to rules, the first that holds decides.

    Other architectures are killed. Calls that are newer than any the tables know get `newest`.
    """
    instructions: list[Instruction] = [(_LOAD, 0, 0, _AT_ARCH)]
    for architecture, calls in tables.items():
        body = [(_LOAD, 0, 0, _AT_NUMBER), *_search(_ranges(calls, default, newest))]
        instructions += [(_JEQ, 1, 0, architecture), (_JUMP, 0, 0, len(body)), *body]
    instructions.append((_RETURN, 0, 0, ACTIONS["SCMP_ACT_KILL_PROCESS"]))
    if len(instructions) > _MAX_INSTRUCTIONS:
        raise ValueError(f"the filter has {len(instructions)} instructions, and 4096 are allowed")
    return b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)


def _ranges(calls: Calls, default: int, newest: int) -> list[tuple[int, list[Instruction]]]:
    """Return (first number, what to do from it on), neighbours that do the same joined."""
    kill = ACTIONS["SCMP_ACT_KILL_PROCESS"]
    found: list[tuple[int, list[Instruction]]] = []

    def add(first: int, code: list[Instruction]) -> None:
        if not found or found[-1][1] != code:
            found.append((first, code))

    has_x32 = any(number >= X32_BIT for number in calls)
    for start, end in ((0, X32_BIT), (X32_BIT, 1 << 32)):
        if start and not has_x32:
            add(start, [(_RETURN, 0, 0, kill)])
            break
        position = start
        numbers = sorted(number for number in calls if start <= number < end)
        for number in numbers:
            if number > position:
                add(position, [(_RETURN, 0, 0, default)])
            add(number, _decide(calls[number], default))
            position = number + 1
        add(position, [(_RETURN, 0, 0, newest if numbers else default)])
    return found


def _search(ranges: list[tuple[int, list[Instruction]]]) -> list[Instruction]:
    """Return code that finds the range of the loaded number by halving."""
    if len(ranges) == 1:
        return ranges[0][1]
    middle = len(ranges) // 2
    low, high = _search(ranges[:middle]), _search(ranges[middle:])
    pivot = ranges[middle][0]
    if len(low) <= 255:
        return [(_JGE, len(low), 0, pivot), *low, *high]
    return [(_JGE, 0, 1, pivot), (_JUMP, 0, 0, len(low)), *low, *high]


def _decide(rules: list[Rule], default: int) -> list[Instruction]:
    code: list[Instruction] = []
    for conditions, action in rules:
        test = [_check(condition) for condition in conditions]
        rest = sum(map(len, test)) + 1  # up to and with the return
        for part in test:
            rest -= len(part)
            # In a condition -1 means "doesn't hold": on to the next rule; -2: the next condition.
            for position, (op, true, false, operand) in enumerate(part):
                left = len(part) - position - 1
                offsets = {-1: left + rest, -2: left}
                code.append((op, offsets.get(true, true), offsets.get(false, false), operand))
        code.append((_RETURN, 0, 0, action))
        if not conditions:
            return code
    return [*code, (_RETURN, 0, 0, default)]


def _check(condition: Condition) -> list[Instruction]:
    """Return the code of one condition on a 64-bit argument, which BPF sees as two halves."""
    index, operator, value, second = condition
    at = _AT_ARGUMENTS + 8 * index
    low, high = value & 0xFFFFFFFF, value >> 32
    load_low, load_high = (_LOAD, 0, 0, at), (_LOAD, 0, 0, at + 4)
    no, yes = -1, -2
    if operator == "SCMP_CMP_MASKED_EQ":
        return [
            load_high,
            (_AND, 0, 0, high),
            (_JEQ, 0, no, second >> 32),
            load_low,
            (_AND, 0, 0, low),
            (_JEQ, yes, no, second & 0xFFFFFFFF),
        ]
    if operator == "SCMP_CMP_EQ":
        return [load_high, (_JEQ, 0, no, high), load_low, (_JEQ, yes, no, low)]
    if operator == "SCMP_CMP_NE":
        return [load_high, (_JEQ, 0, yes, high), load_low, (_JEQ, no, yes, low)]
    if operator in ("SCMP_CMP_LT", "SCMP_CMP_LE"):
        no, yes = yes, no  # less is not greater or equal
    last = _JGE if operator in ("SCMP_CMP_GE", "SCMP_CMP_LT") else _JGT
    return [load_high, (_JGT, yes, 0, high), (_JEQ, 0, no, high), load_low, (last, yes, no, low)]


def install(on: Caller, filter: bytes, flags: int) -> int:
    """Put a filter over the calling thread, for good; returns the listener if flags ask for one."""
    buffer = ctypes.create_string_buffer(filter, len(filter))
    header = struct.pack("H6xQ", len(filter) // 8, ctypes.addressof(buffer))
    return on.call(SYS.SECCOMP, SET_MODE_FILTER, flags, header)
