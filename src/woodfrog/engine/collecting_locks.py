"""Locks and leases that the processes of a held container have on files."""

import os

import msgspec

from woodfrog.engine.collecting_files import Files
from woodfrog.engine.world import World
from woodfrog.errors import UnsupportedResource
from woodfrog.remote.held import HeldProcess
from woodfrog.resources.files.open_file import ACCESS_MODE, OpenFile
from woodfrog.resources.process import Lock

_BREAKING = {"READ": "downgrade", "UNLCK": "end"}


def locks(process: HeldProcess, files: Files, world: World) -> list[Lock]:
    """Return the locks that a process holds on its files, each once."""
    found: dict[tuple[object, ...], Lock] = {}
    for number, file, _ in files.table(process):
        lines = file.lines
        if (process.pid, number) != file.holders[0]:
            lines = OpenFile(process.pid, number, file.target).lines
        for line in lines:
            if line.startswith("lock:"):
                lock = _parse_lock(number, line)
                if lock.how == "lease":
                    lock = _refuse_lease(lock, file, world)
                found.setdefault((id(file), lock.how, lock.start, lock.length), lock)
    return list(found.values())


def _parse_lock(number: int, line: str) -> Lock:
    # lock:	1: POSIX  ADVISORY  WRITE 712 fe:00:1317 0 EOF
    words = line.split()
    # lock:	1: LEASE  ACTIVE    READ  712 fe:00:1317 0 EOF
    kinds = {"POSIX": "posix", "FLOCK": "flock", "OFDLCK": "ofd", "LEASE": "lease"}
    if words[2] not in kinds:
        raise UnsupportedResource(f"has a lock of an unknown kind ({words[2]}) on its file")
    start = int(words[7])
    # Of one that is being broken the kernel shows what is to be left of it: a reader's is to go.
    breaking = _BREAKING[words[4]] if words[3] == "BREAKING" else ""
    return Lock(
        how=kinds[words[2]],
        descriptor=number,
        write=words[4] == "WRITE" or breaking == "downgrade",
        breaking=breaking,
        start=start,
        length=0 if words[8] == "EOF" else int(words[8]) - start + 1,
    )


def _refuse_lease(lock: Lock, file: OpenFile, world: World) -> Lock:
    """Complete a lease, or refuse one on a file that can't be read for the image without it."""
    access = file.flags & ACCESS_MODE
    if lock.breaking == "end" and access != os.O_RDONLY:
        # There are no leases for reading on what is open for writing.
        lock = msgspec.structs.replace(lock, write=True)
    if lock.write and access == os.O_WRONLY and world.is_copied(file.mnt_id):
        raise UnsupportedResource(
            f"has a lease on {os.fsdecode(file.target)}, which is open for writing only: reading it"
            " would break that"
        )
    return lock
