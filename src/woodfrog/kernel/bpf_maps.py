"""bpf(2): maps, as far as a descriptor gives them away (linux/bpf.h, union bpf_attr)."""

import ctypes
import errno
import os
import struct
from collections.abc import Iterator

import msgspec

from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE

MAP_CREATE, BTF_LOAD = 0, 18
_MAP_LOOKUP_ELEM, _MAP_UPDATE_ELEM, _MAP_GET_NEXT_KEY = 1, 2, 4
_MAP_GET_FD_BY_ID, _OBJ_GET_INFO_BY_FD, _BTF_GET_FD_BY_ID, _MAP_FREEZE = 14, 15, 19, 22
_MAP_LOOKUP_BATCH, _MAP_UPDATE_BATCH = 24, 26
_ENOTSUPP = 524  # of the kernel's own, which no header has

HASH, ARRAY, PERCPU_HASH, PERCPU_ARRAY = 1, 2, 5, 6
LRU_HASH, LRU_PERCPU_HASH, LPM_TRIE = 9, 10, 11
ARRAY_OF_MAPS, HASH_OF_MAPS = 12, 13
OF_MAPS = (ARRAY_OF_MAPS, HASH_OF_MAPS)
PER_CPU = (PERCPU_HASH, PERCPU_ARRAY, LRU_PERCPU_HASH)
F_NUMA_NODE, F_MMAPABLE = 1 << 2, 1 << 10
_F_RDONLY, _F_WRONLY = 1 << 3, 1 << 4

_INFO = struct.Struct("<6I16s2I2Q4IQ")  # struct bpf_map_info
_ELEMENT = struct.Struct("<I4x3Q")
_BATCH = struct.Struct("<4Q2I2Q")
CREATE = struct.Struct("<7I16s5IQ")
LOAD = struct.Struct("<2Q3I4x")
_AT_ONCE = 1 << 12
_POSSIBLE = "/sys/devices/system/cpu/possible"


class MapInfo(msgspec.Struct, frozen=True):
    """What a map is: struct bpf_map_info."""

    type: int
    number: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: bytes
    device: int
    kernel_value_type: int
    namespace_device: int
    namespace_inode: int
    btf: int
    btf_key: int
    btf_value: int
    kernel_btf: int
    extra: int


def possible_cpus() -> int:
    """Return of how many CPUs a map per CPU has values."""
    with open(_POSSIBLE, encoding="ascii") as file:
        return int(file.read().strip().rpartition("-")[2]) + 1


def value_bytes(kind: int, value_size: int, cpus: int) -> int:
    """Return how long the value of an element is for programs, all CPUs' together."""
    return (value_size + 7 & ~7) * cpus if kind in PER_CPU else value_size


def _bpf(command: int, attribute: bytearray) -> int:
    return HERE.call(SYS.BPF, command, attribute, len(attribute))


def _describe(fd: int, buffer: object) -> None:
    address, length = ctypes.addressof(buffer), ctypes.sizeof(buffer)  # type: ignore[arg-type]
    _bpf(_OBJ_GET_INFO_BY_FD, bytearray(struct.pack("<2IQ", fd, length, address)))


def map_info(fd: int) -> MapInfo:
    """Return what a map is."""
    buffer = ctypes.create_string_buffer(_INFO.size)
    _describe(fd, buffer)
    return MapInfo(*_INFO.unpack(buffer.raw))


def open_again(fd: int, access: int = os.O_RDWR) -> int:
    """Open a map once more, by its number, for reading or writing only or for both."""
    flags = {os.O_RDONLY: _F_RDONLY, os.O_WRONLY: _F_WRONLY}.get(access, 0)
    number = map_info(fd).number
    return _bpf(_MAP_GET_FD_BY_ID, bytearray(struct.pack("<3I", number, 0, flags)))


def btf_data(number: int) -> bytes:
    """Return the types (BTF) with an id."""
    fd = _bpf(_BTF_GET_FD_BY_ID, bytearray(struct.pack("<3I", number, 0, 0)))
    try:
        head = ctypes.create_string_buffer(16)  # struct bpf_btf_info: where, how much
        _describe(fd, head)
        (size,) = struct.unpack_from("<I", head.raw, 8)
        data = ctypes.create_string_buffer(size)
        struct.pack_into("<QI", head, 0, ctypes.addressof(data), size)
        _describe(fd, head)
        return data.raw
    finally:
        os.close(fd)


def elements(fd: int, info: MapInfo, cpus: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield keys and values, of many elements each."""
    length = value_bytes(info.type, info.value_size, cpus)
    count = min(info.max_entries, _AT_ONCE)
    position = ctypes.create_string_buffer(max(info.key_size, 4))
    first = True
    while True:
        keys = ctypes.create_string_buffer(count * info.key_size)
        values = ctypes.create_string_buffer(count * length)
        at = ctypes.addressof(position)
        places = (0 if first else at, at, ctypes.addressof(keys), ctypes.addressof(values))
        attribute = bytearray(_BATCH.pack(*places, count, fd, 0, 0))
        ended = False
        try:
            _bpf(_MAP_LOOKUP_BATCH, attribute)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                count *= 2  # all that share a bucket come at once
                continue
            if error.errno in (errno.EINVAL, errno.EOPNOTSUPP, _ENOTSUPP) and first:
                yield from _one_by_one(fd, info.key_size, length)
                return
            if error.errno != errno.ENOENT:
                raise
            ended = True
        (got,) = struct.unpack_from("<I", attribute, 32)
        if got:
            yield keys.raw[: got * info.key_size], values.raw[: got * length]
        if ended or not got:
            return
        first = False


def _one_by_one(fd: int, key_size: int, length: int) -> Iterator[tuple[bytes, bytes]]:
    key, value = ctypes.create_string_buffer(key_size), ctypes.create_string_buffer(length)
    following = ctypes.create_string_buffer(key_size)
    place = 0
    while True:
        step = (fd, place, ctypes.addressof(following), 0)
        try:
            _bpf(_MAP_GET_NEXT_KEY, bytearray(_ELEMENT.pack(*step)))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return
            raise
        key.raw, place = following.raw, ctypes.addressof(key)
        found = (fd, place, ctypes.addressof(value), 0)
        _bpf(_MAP_LOOKUP_ELEM, bytearray(_ELEMENT.pack(*found)))
        yield key.raw, value.raw


def fill(fd: int, keys: bytes, values: bytes, count: int) -> None:
    """Put elements into a map."""
    all_keys, all_values = ctypes.create_string_buffer(keys), ctypes.create_string_buffer(values)
    places = (0, 0, ctypes.addressof(all_keys), ctypes.addressof(all_values))
    try:
        _bpf(_MAP_UPDATE_BATCH, bytearray(_BATCH.pack(*places, count, fd, 0, 0)))
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, _ENOTSUPP):
            raise
        for number in range(count):
            key = places[2] + number * (len(keys) // count)
            value = places[3] + number * (len(values) // count)
            _bpf(_MAP_UPDATE_ELEM, bytearray(_ELEMENT.pack(fd, key, value, 0)))


def freeze(fd: int) -> None:
    """Have nobody change a map by bpf(2) any more."""
    _bpf(_MAP_FREEZE, bytearray(fd.to_bytes(4, "little")))
