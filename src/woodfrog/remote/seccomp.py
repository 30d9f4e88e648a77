"""What a task's seccomp filters would say to a call of ours, should we die while it runs."""

import struct
from collections.abc import Iterable, Sequence

from woodfrog.kernel.bpf import AUDIT_ARCH_X86_64

_ALLOW = 0x7FFF0000
_LOG = 0x7FFC0000
_WORD = 0xFFFFFFFF

# linux/bpf_common.h, linux/filter.h
_CLASS, _LD, _LDX, _ST, _STX, _ALU, _JMP, _RET, _MISC = 0x07, 0, 1, 2, 3, 4, 5, 6, 7
_INSTRUCTION = struct.Struct("<HBBI")

Program = Sequence[tuple[int, int, int, int]]


class Filters:
    """A task's filters (struct sock_filter, 8 bytes each); strict mode is none that lets pass."""

    def __init__(self, chain: Iterable[bytes], *, strict: bool) -> None:
        self._programs = [list(_INSTRUCTION.iter_unpack(one)) for one in chain]
        self._strict = strict
        # Verdicts that don't depend on arguments, by number: filters can be thousands of steps.
        self._known: dict[int, bool] = {}

    def allow(self, number: int, arguments: Sequence[int | None]) -> bool:
        """Tell whether every filter surely lets a call pass; None is an argument not yet known."""
        if self._strict:
            return False
        if number in self._known:
            return self._known[number]
        data = _Data(number, arguments)
        verdict = all(_run(one, data) & 0xFFFF0000 in (_ALLOW, _LOG) for one in self._programs)
        verdict = verdict and not data.unknown_read
        if not data.arguments_read:
            self._known[number] = verdict
        return verdict


class _Data:
    """struct seccomp_data, by 32-bit words."""

    def __init__(self, number: int, arguments: Sequence[int | None]) -> None:
        # Nobody can say where the instruction is that filters might ask for.
        self._words: list[int | None] = [number, AUDIT_ARCH_X86_64, None, None]
        for argument in arguments:
            if argument is None:
                self._words += [None, None]
            else:
                self._words += [argument & _WORD, argument >> 32 & _WORD]
        # What stands in the registers of arguments that the call doesn't have, nobody knows either.
        self._words += [None] * (16 - len(self._words))
        self.arguments_read = False
        self.unknown_read = False

    def word(self, offset: int) -> int:
        """Return the word at an offset in bytes."""
        if offset >= 8:
            self.arguments_read = True
        word = self._words[offset // 4]
        if word is None:
            self.unknown_read = True
            return 0
        return word


def _run(program: Program, data: _Data) -> int:
    """Run one filter; returns its verdict."""
    a = x = 0
    memory = [0] * 16
    at = 0
    while True:
        code, jump_true, jump_false, k = program[at]
        at += 1
        kind = code & _CLASS
        if kind == _RET:
            return k if code & 0x18 == 0 else a
        if kind in (_LD, _LDX):
            mode = code & 0xE0
            value = {0x00: k, 0x60: memory[k & 15], 0x80: 64}.get(mode)
            if value is None:
                value = data.word(k)  # BPF_ABS, checked by the kernel when it took the filter
            a, x = (value, x) if kind == _LD else (a, value)
        elif kind == _ST:
            memory[k] = a
        elif kind == _STX:
            memory[k] = x
        elif kind == _ALU:
            operand = x if code & 0x08 else k
            if code & 0xF0 in (0x30, 0x90) and not operand:
                return 0  # division by zero ends a filter with SECCOMP_RET_KILL_THREAD
            a = _compute(code & 0xF0, a, operand)
        elif kind == _JMP:
            operand = x if code & 0x08 else k
            operation = code & 0xF0
            if operation == 0x00:
                at += k
                continue
            holds = {
                0x10: a == operand,
                0x20: a > operand,
                0x30: a >= operand,
                0x40: bool(a & operand),
            }[operation]
            at += jump_true if holds else jump_false
        else:
            a, x = (a, a) if code & 0xF8 == 0x00 else (x, x)


def _compute(operation: int, a: int, operand: int) -> int:
    match operation:
        case 0x00:
            a += operand
        case 0x10:
            a -= operand
        case 0x20:
            a *= operand
        case 0x30:
            a //= operand
        case 0x40:
            a |= operand
        case 0x50:
            a &= operand
        case 0x60:
            a <<= operand & 31
        case 0x70:
            a >>= operand & 31
        case 0x80:
            a = -a
        case 0x90:
            a %= operand
        case 0xA0:
            a ^= operand
    return a & _WORD
