"""ELF files: the build id, by which linkers name what they have made, and dynamic symbols."""

import os
import struct
from collections.abc import Iterator

import msgspec

# ident, then type, machine, version, entry, phoff, shoff, flags, ehsize, phentsize, phnum
_HEADER = struct.Struct("<16s2HI3QI3H")
_LITTLE_64 = b"\x7fELF\2\1"
# type, flags, offset, vaddr, paddr, filesz, memsz, align
_SEGMENT = struct.Struct("<2I6Q")
_NOTE = struct.Struct("<3I")
_PT_DYNAMIC, _PT_NOTE, _NT_GNU_BUILD_ID = 2, 4, 3
# name, info, other, section, value, size
_SYMBOL = struct.Struct("<I2BH2Q")
_DYNAMIC = struct.Struct("<2Q")
_DT_STRTAB, _DT_SYMTAB = 5, 6
_STT_FUNC = 2
_MOST_SEGMENTS, _MOST_NOTE_BYTES = 128, 1 << 16


def build_id(file: int) -> bytes:
    """Return the build id of an open file, or nothing if it has none or is no ELF file."""
    header = os.pread(file, _HEADER.size, 0)
    if len(header) < _HEADER.size or not header.startswith(_LITTLE_64):
        return b""
    *_, at, _, _, _, entry_bytes, count = _HEADER.unpack(header)
    if entry_bytes != _SEGMENT.size or count > _MOST_SEGMENTS or at >> 63:
        return b""
    table = os.pread(file, count * _SEGMENT.size, at)
    for position in range(0, len(table) - _SEGMENT.size + 1, _SEGMENT.size):
        kind, _, offset, _, _, length, _, align = _SEGMENT.unpack_from(table, position)
        if kind == _PT_NOTE and length <= _MOST_NOTE_BYTES and not offset >> 63:
            found = _in_notes(os.pread(file, length, offset), 8 if align == 8 else 4)
            if found:
                return found
    return b""


def _in_notes(notes: bytes, align: int) -> bytes:
    at = 0
    while at + _NOTE.size <= len(notes):
        name_bytes, value_bytes, kind = _NOTE.unpack_from(notes, at)
        name = at + _NOTE.size
        value = name + -(-name_bytes // align) * align
        if kind == _NT_GNU_BUILD_ID and notes[name : name + name_bytes] == b"GNU\0":
            return notes[value : value + value_bytes]
        at = value + -(-value_bytes // align) * align
    return b""


class Function(msgspec.Struct, frozen=True):
    """Where a function begins in an image that is loaded at 0, and its length."""

    start: int
    length: int


def functions(image: bytes) -> dict[bytes, Function]:
    """Return the functions that a small loaded image exports; nothing of one that is damaged.

    As the link editors of kernels write it, its table of symbols ends where that of names begins.
    """
    try:
        dynamic = dict(_dynamic(image))
        symbols, names = dynamic[_DT_SYMTAB], dynamic[_DT_STRTAB]
        found = {}
        for at in range(symbols, names - _SYMBOL.size + 1, _SYMBOL.size):
            name, info, _, section, start, length = _SYMBOL.unpack_from(image, at)
            end = start + length
            if info & 0xF == _STT_FUNC and section and start < end <= len(image):
                text = image[names + name : image.index(0, names + name)]
                found[text] = Function(start, length)
        return found
    except (struct.error, KeyError, ValueError):
        return {}


def _dynamic(image: bytes) -> Iterator[tuple[int, int]]:
    *_, at, _, _, _, _, count = _HEADER.unpack_from(image)
    for number in range(min(count, _MOST_SEGMENTS)):
        kind, _, offset, _, _, length, _, _ = _SEGMENT.unpack_from(
            image, at + number * _SEGMENT.size
        )
        if kind == _PT_DYNAMIC:
            yield from _DYNAMIC.iter_unpack(image[offset : offset + length // 16 * 16])
