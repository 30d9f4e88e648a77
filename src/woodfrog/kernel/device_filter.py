"""Which devices a v2 cgroup may use: a small eBPF program (v1 has files for it)."""

from __future__ import annotations

import ctypes
import os
import struct

from woodfrog.kernel.abi.x86_64 import SYS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from woodfrog.kernel.caller import Caller

TYPES = {"b": 1, "c": 2}
ACCESS = {"m": 1, "r": 2, "w": 4}

_BPF_PROG_LOAD, _BPF_PROG_ATTACH, _BPF_PROG_DETACH = 5, 8, 9
_BPF_PROG_GET_FD_BY_ID, _BPF_PROG_QUERY = 13, 16
_PROG_TYPE_CGROUP_DEVICE = 15
_ATTACH_CGROUP_DEVICE = 6
_F_ALLOW_MULTI = 2

# eBPF operations: 64-bit moves, arithmetic and jumps with a constant, and a 32-bit load.
_LOAD, _MOVE, _MOVE_CONSTANT, _AND, _SHIFT_RIGHT = 0x61, 0xBF, 0xB7, 0x57, 0x77
_JUMP_IF_EQUAL, _JUMP_UNLESS_EQUAL, _EXIT = 0x15, 0x55, 0x95
_ANSWER, _CONTEXT, _TYPE, _ASKED, _MAJOR, _MINOR = range(6)

# (allow, type or 0, major or None, minor or None, access bits)
Rule = tuple[bool, int, int | None, int | None, int]


def program(rules: list[Rule]) -> bytes:
    """Return the program in which the last rule that fits decides; without any, all is allowed."""
    code = [
        _instruction(_LOAD, _TYPE, _CONTEXT, 0, 0),
        _instruction(_MOVE, _ASKED, _TYPE, 0, 0),
        _instruction(_AND, _TYPE, 0, 0, 0xFFFF),
        _instruction(_SHIFT_RIGHT, _ASKED, 0, 0, 16),
        _instruction(_LOAD, _MAJOR, _CONTEXT, 4, 0),
        _instruction(_LOAD, _MINOR, _CONTEXT, 8, 0),
    ]
    for rule in reversed(rules):
        code += _one(rule)
        if rule[1:] == (0, None, None, 7):
            return b"".join(code)  # it decides everything; the verifier wants no dead code
    code += [_instruction(_MOVE_CONSTANT, _ANSWER, 0, 0, 1), _instruction(_EXIT, 0, 0, 0, 0)]
    return b"".join(code)


def _one(rule: Rule) -> list[bytes]:
    allow, kind, major, minor, access = rule
    tests: list[tuple[int, int, int]] = []  # operation, register, constant: leads on to the next
    if kind:
        tests.append((_JUMP_UNLESS_EQUAL, _TYPE, kind))
    tests += [
        (_JUMP_UNLESS_EQUAL, register, number)
        for register, number in ((_MAJOR, major), (_MINOR, minor))
        if number is not None
    ]
    before: list[bytes] = []
    if access != 7:
        # Allowing needs every right that is asked for, denying only one of them.
        mask = ~access & 7 if allow else access
        before = [
            _instruction(_MOVE, _ANSWER, _ASKED, 0, 0),
            _instruction(_AND, _ANSWER, 0, 0, mask),
        ]
        tests.insert(0, (_JUMP_UNLESS_EQUAL if allow else _JUMP_IF_EQUAL, _ANSWER, 0))
    end = [
        _instruction(_MOVE_CONSTANT, _ANSWER, 0, 0, int(allow)),
        _instruction(_EXIT, 0, 0, 0, 0),
    ]
    jumps = [
        _instruction(operation, register, 0, len(tests) - position - 1 + len(end), constant)
        for position, (operation, register, constant) in enumerate(tests)
    ]
    return [*before, *jumps, *end]


def _instruction(code: int, to: int, from_: int, offset: int, constant: int) -> bytes:
    return struct.pack("<BBhi", code, to | from_ << 4, offset, constant)


def attach(on: Caller, directory: str, code: bytes) -> None:
    """Load a program and attach it to a cgroup, in the place of those that it has.

    A device that both the old and the new program allow can be used all the time.
    """
    instructions = ctypes.create_string_buffer(code, len(code))
    license = ctypes.create_string_buffer(b"Apache-2.0")
    load = struct.pack(
        "<IIQQIIQII",
        _PROG_TYPE_CGROUP_DEVICE,
        len(code) // 8,
        ctypes.addressof(instructions),
        ctypes.addressof(license),
        0,
        0,
        0,
        0,
        0,
    )
    loaded = on.call(SYS.BPF, _BPF_PROG_LOAD, load, len(load))
    group = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        before = _attached(on, group)
        request = struct.pack("<4I", group, loaded, _ATTACH_CGROUP_DEVICE, _F_ALLOW_MULTI)
        on.call(SYS.BPF, _BPF_PROG_ATTACH, request, len(request))
        for program_id in before:
            _detach(on, group, program_id)
    finally:
        os.close(group)
        os.close(loaded)


def _attached(on: Caller, group: int) -> list[int]:
    """Return the ids of the programs that a cgroup itself has."""
    ids = (ctypes.c_uint32 * 64)()  # the kernel allows no more
    request = bytearray(
        struct.pack("<4IQII", group, _ATTACH_CGROUP_DEVICE, 0, 0, ctypes.addressof(ids), 64, 0)
    )
    on.call(SYS.BPF, _BPF_PROG_QUERY, request, len(request))
    count: int = struct.unpack_from("<I", request, 24)[0]
    return list(ids[:count])


def _detach(on: Caller, group: int, program_id: int) -> None:
    request = struct.pack("<3I", program_id, 0, 0)
    program = on.call(SYS.BPF, _BPF_PROG_GET_FD_BY_ID, request, len(request))
    try:
        request = struct.pack("<3I", group, program, _ATTACH_CGROUP_DEVICE)
        on.call(SYS.BPF, _BPF_PROG_DETACH, request, len(request))
    finally:
        os.close(program)
