"""Remove what a runtime that was killed in the middle of a checkpoint left in a container."""

import os

from woodfrog.engine import memory_room, snapshots
from woodfrog.kernel import userfaultfd
from woodfrog.kernel.abi.x86_64 import PAGE, SYS
from woodfrog.kernel.procfs.fdinfo import parse_fdinfo
from woodfrog.kernel.procfs.maps import may_have_code_without_file, read_maps
from woodfrog.kernel.procfs.reading import read_file
from woodfrog.remote.held import Held
from woodfrog.remote.hold import Pause, held
from woodfrog.remote.program import LOOP
from woodfrog.remote.scratch import SCRATCH_BYTES, call_through_vdso
from woodfrog.remote.vdso import Vdso, own_vdso

_PROT_READ_EXEC = 5
_AREA = PAGE + SCRATCH_BYTES


def tidy(init: int, pause: Pause | None = None) -> int:
    """Remove what a killed checkpoint left in a container; returns how much there was.

    `pause` is given for a container that is paused.
    """
    with held(init, pause) as tree:
        return remove_leftovers(tree, own_vdso())


def remove_leftovers(tree: Held, vdso: Vdso) -> int:
    """Remove what earlier, killed checkpoints left, and return how much there was.

    Copies of processes, scratch areas, descriptors that a process made for us in such an area, and
    limits that were raised for it.
    """
    count = snapshots.reap(tree, vdso)
    for process in tree.processes:
        count += memory_room.put_back_leftover(process, vdso)
        if not may_have_code_without_file(process.pid):
            continue
        found = []
        mappings = read_maps(process.pid)
        for i, (start, end, protection, shared, _, _, inode, name) in enumerate(mappings):
            if protection != _PROT_READ_EXEC or shared or inode or name:
                continue
            first = os.pread(process.memory, len(LOOP), start)
            if first == LOOP and end - start == PAGE:
                # The page of code, and the data behind it.
                after = mappings[i + 1] if i + 1 < len(mappings) else None
                if after is not None and after[0] == end:
                    end = min(after[1], start + _AREA)
                found.append((start, end))
            elif end - start == _AREA and first in (LOOP, bytes(len(LOOP))):
                # As it was mapped, before its data became writable.
                found.append((start, end))
        # The areas last: without one nobody looks for descriptors.
        calls: list[tuple[int, tuple[int, ...]]] = []
        calls += [(SYS.CLOSE, (fd,)) for fd in _marked(process.path)] if found else []
        calls += [(SYS.MUNMAP, (start, end - start)) for start, end in found]
        for number, arguments in calls:
            call_through_vdso(
                process.leader.tracee,
                process.memory,
                process.vdso[0] + vdso.padding,
                vdso.room,
                number,
                arguments,
            )
        count += len(calls)
    return count


def _marked(path: str) -> list[int]:
    """Return the descriptors of a process, by its directory in /proc, that are ours."""
    found = []
    for name in os.listdir(f"{path}/fd"):
        link = os.readlink(f"{path}/fd/{name}")
        if link == userfaultfd.LINK:
            info, _ = parse_fdinfo(read_file(f"{path}/fdinfo/{name}").decode())
            if userfaultfd.is_marked(info):
                found.append(int(name))
    return found
