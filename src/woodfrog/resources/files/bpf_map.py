"""bpf(2): maps, which programs fill and read by descriptors; perhaps they are mapped, too."""

import fcntl
import os
from collections.abc import Iterator
from typing import ClassVar, Self

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.kernel import bpf_maps
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.bpf_maps import MapInfo
from woodfrog.kernel.capability import CAP_BPF, CAP_SYS_ADMIN
from woodfrog.resources.files.base import FileRecord, Row
from woodfrog.resources.files.making import Making
from woodfrog.resources.files.open_file import ACCESS_MODE, BPF_MAP, OpenFile
from woodfrog.resources.files.world import World

_KEPT = {
    bpf_maps.HASH: "hash",
    bpf_maps.ARRAY: "array",
    bpf_maps.PERCPU_HASH: "percpu_hash",
    bpf_maps.PERCPU_ARRAY: "percpu_array",
    bpf_maps.LRU_HASH: "lru_hash",
    bpf_maps.LRU_PERCPU_HASH: "lru_percpu_hash",
    bpf_maps.LPM_TRIE: "lpm_trie",
    bpf_maps.ARRAY_OF_MAPS: "array_of_maps",
    bpf_maps.HASH_OF_MAPS: "hash_of_maps",
}
_LARGEST = 1 << 29
_LONGEST_NAME = 15
_WORD = 1 << 32
_BTF_FD = 48  # within what MAP_CREATE takes


class BpfMap(FileRecord, frozen=True, tag="bpf-map"):
    """A map: its struct bpf_map_info, its types (BTF), and what is in it.

    `keys` and `values` stand one after the other; a value per CPU has those of `cpus` CPUs. The
    values of a map of maps are `inner`: the ids of their files. If another file is the `same` map,
    that has what is in it.
    """

    has_memory: ClassVar[bool] = True
    row: ClassVar[Row] = Row(
        called="BPF maps",
        kept=(
            "arrays, hashes and tries, per CPU and LRU ones, too, and those of maps",
            "contents, types, mappings; for reading or writing only; who has the same",
        ),
        refused=("maps of other types", "programs, links"),
    )
    map_type: int
    key_size: int
    value_size: int
    max_entries: int
    map_flags: int
    map_extra: int
    name: bytes
    frozen: bool
    btf: bytes
    btf_key: int
    btf_value: int
    cpus: int
    keys: bytes
    values: bytes
    inner: list[int] = []
    same: int = 0

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        return file.target == BPF_MAP

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        info = bpf_maps.map_info(file.descriptor)
        name = info.name.rstrip(b"\0")
        what = f'is the BPF map "{os.fsdecode(name)}" (id {info.number})'
        _refuse(what, info)
        first = world.bpf_map(info.number)
        same = first if first != number else 0
        cpus = bpf_maps.possible_cpus() if info.type in bpf_maps.PER_CPU else 1
        length = bpf_maps.value_bytes(info.type, info.value_size, cpus)
        # In the order of a hash, who knows which; so by their keys.
        found: list[tuple[bytes, bytes]] = []
        if not same:
            found = sorted(_elements(file.descriptor, info, cpus, length))
        inner: list[int] = []
        if info.type in bpf_maps.OF_MAPS and not same:
            # An array shows its empty places as map 0.
            found = [(key, value) for key, value in found if any(value)]
            inner = [_inner(what, value, world) for _, value in found]
            if not inner:
                raise UnsupportedResource(f"{what}, which has no map in it to show of which kind")
        return cls(
            id=number,
            flags=file.flags,
            map_type=info.type,
            key_size=info.key_size,
            value_size=info.value_size,
            max_entries=info.max_entries,
            map_flags=info.flags & ~bpf_maps.F_NUMA_NODE,
            map_extra=info.extra,
            name=name,
            frozen=file.fdinfo.get("frozen", "0") != "0",
            btf=bpf_maps.btf_data(info.btf) if info.btf else b"",
            btf_key=info.btf_key,
            btf_value=info.btf_value,
            cpus=cpus,
            keys=b"".join(key for key, _ in found),
            values=b"" if inner else b"".join(value for _, value in found),
            inner=inner,
            same=same,
        )

    def turn(self) -> int:
        if self.same:
            return 2  # when that one stands
        # Maps of maps come after what is in them.
        return 1 if self.inner else 0

    def refuse_wider(self, bounding: int) -> None:
        if self.map_type not in _KEPT or not 0 < self.key_size * self.value_size < _LARGEST:
            raise ImageError("the image has a BPF map of an unknown type")
        words = self.max_entries, self.map_flags, self.btf_key, self.btf_value
        if any(not 0 <= word < _WORD for word in words) or not 0 <= self.map_extra < _WORD**2:
            raise ImageError("the image has an impossible BPF map")
        count, rest = divmod(len(self.keys), self.key_size)
        length = bpf_maps.value_bytes(self.map_type, self.value_size, self.cpus)
        if self.map_type in bpf_maps.OF_MAPS:
            length = 0
            rest = rest or len(self.inner) != count or bool(count) == bool(self.same)
        elif self.inner:
            raise ImageError("the image has maps in a BPF map that can't have any")
        if rest or not self.cpus > 0 or len(self.values) != count * length:
            raise ImageError("the image has a BPF map whose elements are incomplete")
        if count > self.max_entries or len(self.name) > _LONGEST_NAME:
            raise ImageError("the image has a BPF map with too many elements")
        if self.same and count:
            raise ImageError("the image has what is in a BPF map twice")
        if not bounding & (1 << CAP_BPF | 1 << CAP_SYS_ADMIN):
            raise UnsupportedResource(
                "the image has a BPF map, which needs CAP_BPF in the new container",
                hint="add it to process.capabilities.bounding in the bundle's config.json",
            )
        if self.map_type in bpf_maps.PER_CPU and self.cpus > bpf_maps.possible_cpus():
            raise UnsupportedResource(
                f"the image has a BPF map with values of {self.cpus} CPUs, more than this machine"
                " can have"
            )

    def restore(self, making: Making) -> int:
        if self.same:
            if making.shared(("BPF map", self.same)) is None:
                raise ImageError("the image lacks a BPF map that is open twice")
            return self._opened_again(making, making.shared(("BPF map", self.same)))
        if not all(number in making.files for number in self.inner):
            raise ImageError("the image lacks a BPF map that is in another")
        inner = [making.settle(making.files[number]) for number in self.inner]
        program = making.program
        request = bpf_maps.CREATE.pack(
            self.map_type,
            self.key_size,
            self.value_size,
            self.max_entries,
            self.map_flags,
            inner[0] if inner else 0,
            0,
            self.name,
            0,
            0,
            self.btf_key if self.btf else 0,
            self.btf_value if self.btf else 0,
            0,
            self.map_extra,
        )
        address = program.address_of(request)
        if self.btf:
            types = program.address_of(self.btf)
            load = bpf_maps.LOAD.pack(types, 0, len(self.btf), 0, 0)
            btf = program.call(SYS.BPF, bpf_maps.BTF_LOAD, load, len(load))
            program.store(address + _BTF_FD, btf)
            making.spare(btf)
        fd = making.settle(program.call(SYS.BPF, bpf_maps.MAP_CREATE, address, len(request)))
        ours = making.ours(fd)
        making.share(("BPF map", self.id), ours)
        count = len(self.keys) // self.key_size
        values = self._values_here(count)
        if inner:
            values = b"".join(making.ours(one).to_bytes(4, "little") for one in inner)
        both = bpf_maps.open_again(ours)  # however it was made
        try:
            if count:
                bpf_maps.fill(both, self.keys, values, count)
            if self.frozen:
                bpf_maps.freeze(both)
        finally:
            os.close(both)
        return self._opened_again(making, ours, fd)

    def _opened_again(self, making: Making, ours: int, fd: int = -1) -> int:
        """Return a descriptor of the stub that may do what this one may; perhaps it is `fd`."""
        access = self.flags & ACCESS_MODE
        if fd >= 0 and fcntl.fcntl(ours, fcntl.F_GETFL) & ACCESS_MODE == access:
            return fd
        again = bpf_maps.open_again(ours, access)
        try:
            if fd >= 0:
                making.spare(fd)
            return making.send(again)
        finally:
            os.close(again)

    def _values_here(self, count: int) -> bytes:
        """Return the values for as many CPUs as this machine can have."""
        here = bpf_maps.possible_cpus()
        if self.map_type not in bpf_maps.PER_CPU or here == self.cpus:
            return self.values
        length = len(self.values) // count
        more = bytes(length // self.cpus * (here - self.cpus))
        return b"".join(value + more for value in _pieces(self.values, length))


def _inner(what: str, number: bytes, world: World) -> int:
    """Return the id of the file of a map in a map."""
    found = world.bpf_map(int.from_bytes(number, "little"))
    if not found:
        raise UnsupportedResource(f"{what} with a map in it that no process has open")
    return found


def _pieces(data: bytes, length: int) -> list[bytes]:
    return [data[start : start + length] for start in range(0, len(data), length)]


def _elements(
    descriptor: int, info: MapInfo, cpus: int, length: int
) -> Iterator[tuple[bytes, bytes]]:
    """Read all elements, though the map be open for writing only."""
    both = bpf_maps.open_again(descriptor)
    try:
        for keys, values in bpf_maps.elements(both, info, cpus):
            yield from zip(_pieces(keys, info.key_size), _pieces(values, length), strict=True)
    finally:
        os.close(both)


def _refuse(what: str, info: MapInfo) -> None:
    if info.type not in _KEPT:
        raise UnsupportedResource(
            f"{what} of type {info.type} (enum bpf_map_type), which cannot be saved yet;"
            f" kept are {', '.join(_KEPT.values())}"
        )
    if info.kernel_value_type or info.device:
        raise UnsupportedResource(f"{what}, which belongs to the kernel's own structures")
    if info.max_entries * info.value_size > _LARGEST:
        raise UnsupportedResource(f"{what}, of more than 512 MiB")
