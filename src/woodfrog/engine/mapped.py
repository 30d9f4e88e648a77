"""What mappings show that has no name: memory of open files, shared memory, deleted files."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from woodfrog.errors import UnsupportedResource
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import PAGE
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.pagemap import page_frame
from woodfrog.kernel.procfs.maps import Mapping
from woodfrog.resources import memory_flags
from woodfrog.resources.files.open_file import ACCESS_MODE, BPF_MAP
from woodfrog.resources.memory import MAP_SHARED

if TYPE_CHECKING:
    from woodfrog.engine.world import World

_PROT_READ, _MAP_POPULATE = 1, 0x8000


def object_of(world: World, pid: int, mapping: Mapping) -> int:
    """Return the id of what a mapping shows.

    Raises UnsupportedResource if nobody has it open, or it is another namespace's.
    """
    if mapping.name == memory_flags.IO_URING:
        return _ring(world, mapping)
    if mapping.name.startswith(memory_flags.OPENED):
        return _open_file(world, pid, mapping)
    path = f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}"
    if not mapping.name.startswith(b"/SYSV"):
        return world.links.without_name(path, mapping.name, world.place_of(pid))
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _refuse_other_segment(world, pid, fd, mapping.name)
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)


def _ring(world: World, mapping: Mapping) -> int:
    """Return the id of the io_uring that a mapping shows."""
    if world.rings is None:
        raise UnsupportedResource(
            "maps an io_uring of which no process of the container has a descriptor,"
            " which cannot be saved yet"
        )
    return world.rings.number_of(mapping.inode, mapping.offset)


def _open_file(world: World, pid: int, mapping: Mapping) -> int:
    """Return the id of the open file whose memory a mapping shows."""
    if mapping.name == BPF_MAP:
        # All have the same inode; but not the same page frames.
        frame = page_frame(pid, mapping.start)
        for file in sorted(world.bpf_maps, key=lambda one: one.flags & ACCESS_MODE != os.O_RDWR):
            if frame and frame == _frame_of(file.descriptor, mapping.offset):
                return file.number
    elif shown := world.open_socket(mapping.inode):
        if shown.socket_family == socket.AF_PACKET:
            return shown.number
        raise UnsupportedResource(
            f"the mapping at {mapping.start:#x} shows what a TCP socket has received"
            " (TCP_ZEROCOPY_RECEIVE), which cannot be saved"
        )
    name = os.fsdecode(mapping.name)
    raise UnsupportedResource(
        f"the mapping at {mapping.start:#x} ({name}) shows what no process has open"
    )


def _frame_of(descriptor: int, offset: int) -> int:
    """Return the page frame at an offset of what a descriptor of ours names; 0 if it has none."""
    try:
        how = _PROT_READ, MAP_SHARED | _MAP_POPULATE, descriptor, offset
        address = syscalls.mmap(HERE, 0, PAGE, *how)
    except OSError:
        return 0
    try:
        return page_frame(os.getpid(), address)
    finally:
        syscalls.munmap(HERE, address, PAGE)


def _refuse_other_segment(world: World, pid: int, fd: int, name: bytes) -> None:
    """Refuse a mapping that doesn't show a segment of its process's ipc namespace."""
    found = world.ipc.sysv.get(world.ipc_of(pid))
    segment = found.segments.get(os.fstat(fd).st_ino) if found else None
    if segment is None or not segment.is_shown_by(fd, name):
        raise UnsupportedResource(
            f"a mapping, {os.fsdecode(name)}, shows System V memory of another ipc namespace"
            " than the process's, or a deleted file, which cannot be saved yet"
        )
