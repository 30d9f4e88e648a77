"""What the three kinds of System V IPC objects have in common: ids, keys, owners."""

import struct
from typing import Any

from woodfrog.image.record import Record
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.process import PR_SET_DUMPABLE
from woodfrog.remote.program import Program

IPC_RMID, IPC_SET, IPC_STAT = 0, 1, 2
PERMISSIONS = 0o777
_IPC_CREAT, _IPC_EXCL = 0o1000, 0o2000
# struct ipc64_perm: key, uid, gid, cuid, cgid, mode, seq
_PERMISSION = struct.Struct("<i5IHHxxxx2Q")


class Object(Record, frozen=True):
    """What all three kinds have: an id, a key (0: IPC_PRIVATE), an owner and a creator."""

    id: int
    key: int
    mode: int
    uid: int
    gid: int
    cuid: int
    cgid: int


def rows(kind: str) -> list[dict[str, str]]:
    """Read /proc/sysvipc/sem, msg or shm by its columns."""
    # It shows the namespace of who opens it, wherever this /proc comes from.
    with open(f"/proc/sysvipc/{kind}", encoding="ascii") as file:
        names, *lines = (line.split() for line in file)
    return [dict(zip(names, line, strict=True)) for line in lines]


def common(row: dict[str, str], identifier: str) -> dict[str, Any]:
    """Return the fields that all kinds have."""
    names = ("key", "uid", "gid", "cuid", "cgid")
    fields: dict[str, Any] = {name: int(row[name]) for name in names}
    fields["id"] = int(row[identifier])
    fields["mode"] = int(row["perms"], 8) & PERMISSIONS
    return fields


def setting(name: str) -> int:
    """Read a number in /proc/sys/kernel, for the ipc namespace that we are in."""
    return settings(name)[0]


def settings(name: str) -> list[int]:
    """Read all numbers of such a file."""
    with open(f"/proc/sys/kernel/{name}", encoding="ascii") as file:
        return [int(word) for word in file.read().split()]


def set_setting(name: str, value: int) -> None:
    """Set a number in /proc/sys/kernel, for the ipc namespace that we are in."""
    with open(f"/proc/sys/kernel/{name}", "w", encoding="ascii") as file:
        file.write(str(value))


def make(
    program: Program, one: Object, next_id: int, get: int, key: int, *size: int, flags: int = 0
) -> None:
    """Make an object by its creator, for whoever makes it is that for good."""
    text = str(one.id).encode()
    program.expect(program.call(SYS.PWRITE64, next_id, text, len(text), 0), len(text))
    for number, who in ((SYS.SETRESGID, one.cgid), (SYS.SETRESUID, one.cuid)):
        if who:
            program.call(number, -1, who, -1)
    made = program.call(get, key, *size, one.mode | _IPC_CREAT | _IPC_EXCL | flags)
    program.expect(made, one.id)
    for number, who in ((SYS.SETRESUID, one.cuid), (SYS.SETRESGID, one.cgid)):
        if who:
            program.call(number, -1, 0, -1)
    if one.cgid or one.cuid:
        syscalls.prctl(program, PR_SET_DUMPABLE, 1)  # another id resets it


def owned(one: Object, size: int) -> bytes:
    """Return a struct ..id64_ds for IPC_SET."""
    head = _PERMISSION.pack(one.key, one.uid, one.gid, one.cuid, one.cgid, one.mode, 0, 0, 0, 0)
    return head.ljust(size, b"\0")
