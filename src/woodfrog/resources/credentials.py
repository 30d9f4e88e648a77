"""Who a task is: ids, groups, capabilities, securebits, no_new_privs (credentials(7))."""

import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Protocol

from woodfrog.errors import UnsupportedResource
from woodfrog.image.record import Part
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.capability import (
    CAP_SETPCAP,
    NAMES,
    PR_CAP_AMBIENT,
    PR_CAP_AMBIENT_CLEAR_ALL,
    PR_CAP_AMBIENT_RAISE,
    PR_CAPBSET_DROP,
)
from woodfrog.kernel.process import PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_SET_NO_NEW_PRIVS
from woodfrog.kernel.procfs.status import Status
from woodfrog.remote.program import Program
from woodfrog.remote.stub import Stub

_PR_GET_SECUREBITS, _PR_SET_SECUREBITS = 27, 28
_SECBIT_KEEP_CAPS = 1 << 4
# SECBIT_NOROOT, SECBIT_NO_SETUID_FIXUP; others forbid changes, or to raise ambient capabilities.
_SECBITS_FORBIDDING_NOTHING = _SECBIT_KEEP_CAPS | 1 | 1 << 2
_CAPABILITY_VERSION_3 = 0x20080522
CAPABILITIES = range(64)


class Credentials(Part, frozen=True):
    """A task's credentials; uids and gids are real, effective, saved, file system."""

    uids: tuple[int, int, int, int]
    gids: tuple[int, int, int, int]
    groups: list[int]
    inheritable: int
    permitted: int
    effective: int
    bounding: int
    ambient: int
    securebits: int
    no_new_privs: bool


def ask(program: Program) -> Callable[[Status], Credentials]:
    """Add the call that tells what /proc/PID/task/TID/status, given for the answer, doesn't."""
    securebits = syscalls.prctl(program, _PR_GET_SECUREBITS)

    return lambda status: shown(status, securebits=program[securebits])


def shown(status: Status, *, securebits: int) -> Credentials:
    """Return the credentials that /proc/PID/task/TID/status shows; it lacks the securebits."""
    return _of_lines(
        status.between("Uid", "Groups") + status.between("CapInh", "NoNewPrivs"), securebits
    )


@lru_cache
def _of_lines(lines: str, securebits: int) -> Credentials:
    """Return the credentials that some lines show: those of threads are mostly the same."""
    status = Status(lines.encode())
    uids, gids = (tuple(map(int, status[name].split())) for name in ("Uid", "Gid"))
    return Credentials(
        uids=(uids[0], uids[1], uids[2], uids[3]),
        gids=(gids[0], gids[1], gids[2], gids[3]),
        groups=[int(group) for group in status["Groups"].split()],
        inheritable=int(status["CapInh"], 16),
        permitted=int(status["CapPrm"], 16),
        effective=int(status["CapEff"], 16),
        bounding=int(status["CapBnd"], 16),
        ambient=int(status["CapAmb"], 16),
        securebits=securebits,
        no_new_privs=status["NoNewPrivs"] == "1",
    )


def bounding_set(pid: int) -> int:
    """Return the capability bounding set that a stub has."""
    return _capabilities(pid, b"\nCapBnd:")


def permitted_set(pid: int) -> int:
    """Return the capabilities that a stub is permitted."""
    return _capabilities(pid, b"\nCapPrm:")


def _capabilities(pid: int, name: bytes) -> int:
    with open(f"/proc/{pid}/status", "rb", buffering=0) as file:
        return int(file.readall().partition(name)[2].split(None, 1)[0], 16)


def set_effective(program: Program, effective: int, permitted: int) -> None:
    """Set the effective capabilities of a stub, which keeps its permitted ones."""
    header = struct.pack("<Ii", _CAPABILITY_VERSION_3, 0)
    words = []
    for shift in (0, 32):
        words += [field >> shift & 0xFFFFFFFF for field in (effective & permitted, permitted, 0)]
    program.call(SYS.CAPSET, header, struct.pack("<6I", *words))


class Identity(Protocol):
    """Who is to be seen as the maker of something."""

    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def groups(self) -> list[int]: ...


def become(program: Program, who: Identity, effective: int, permitted: int) -> None:
    """Have a stub, which is root, be seen as another user; files it makes are root's still.

    A change of the effective user from root takes the effective capabilities away, but not the
    permitted ones, which bring those back.
    """
    set_effective(program, permitted, permitted)
    groups = struct.pack(f"<{len(who.groups)}I", *who.groups)
    # Not in a user namespace that has none.
    program.may_fail(program.call(SYS.SETGROUPS, len(who.groups), groups))
    program.call(SYS.SETRESGID, -1, who.gid, -1)
    program.call(SYS.SETRESUID, -1, who.uid, -1)
    set_effective(program, permitted, permitted)
    program.call(SYS.SETFSGID, 0)
    program.call(SYS.SETFSUID, 0)
    set_effective(program, effective, permitted)


def become_root_again(program: Program, effective: int, permitted: int) -> None:
    """Take `become` back."""
    set_effective(program, permitted, permitted)
    program.call(SYS.SETRESUID, -1, 0, -1)
    program.call(SYS.SETRESGID, -1, 0, -1)
    program.may_fail(program.call(SYS.SETGROUPS, 0, 0))
    # That made it undumpable, and its files in /proc another's.
    syscalls.prctl(program, PR_SET_DUMPABLE, 1)
    set_effective(program, effective, permitted)


def leave_root(program: Program, credentials: Credentials, permitted: int) -> None:
    """Take ids, and keep the capabilities of a stub, which is root."""
    groups = struct.pack(f"<{len(credentials.groups)}I", *credentials.groups)
    program.call(SYS.SETGROUPS, len(credentials.groups), groups)
    syscalls.prctl(program, PR_SET_KEEPCAPS, 1)
    _take_ids(program, credentials)
    set_effective(program, permitted, permitted)


def _take_ids(program: Program, credentials: Credentials) -> None:
    program.call(SYS.SETRESGID, *credentials.gids[:3])
    program.call(SYS.SETFSGID, credentials.gids[3])
    program.call(SYS.SETRESUID, *credentials.uids[:3])
    program.call(SYS.SETFSUID, credentials.uids[3])


def refuse_wider(who: str, credentials: Credentials, allowed: int) -> None:
    """Refuse capabilities that the new container's bounding set lacks (design law 5)."""
    wider = (
        credentials.permitted
        | credentials.effective
        | credentials.inheritable
        | credentials.ambient
        | credentials.bounding
    ) & ~allowed
    if wider:
        names = ", ".join(
            NAMES[number] if number < len(NAMES) else f"capability {number}"
            for number in CAPABILITIES
            if wider >> number & 1
        )
        raise UnsupportedResource(
            f"{who} had capabilities that the new container does not allow ({names})",
            hint="add them to process.capabilities.bounding of the bundle's config.json",
        )


def narrow(program: Program, everyone: Iterable[Credentials], present: int) -> None:
    """Drop from a stub's bounding set what nobody of those to come from it will have in theirs.

    A capability that may be inherited without being there could only be given while it is there.
    """
    kept = 0
    for one in everyone:
        kept |= one.bounding | one.inheritable
    _drop(program, present & ~kept)


def _drop(program: Program, unwanted: int) -> None:
    """Drop capabilities from a task's bounding set, which has them."""
    rows = [(PR_CAPBSET_DROP, number, 0, 0, 0) for number in CAPABILITIES if unwanted >> number & 1]
    program.call_each(SYS.PRCTL, rows, may_fail=False)


def restore(
    program: Program,
    credentials: Credentials,
    *,
    present: int,
    no_new_privs: bool,
    ids: Credentials | None,
) -> None:
    """Become the recorded user; `present` is the bounding set that the task has now.

    `ids` has those that it is to take, None if it has them already.

    Sets the bounding set first and the capabilities last: each step needs rights that a later one
    takes away. Setting ids resets dumpable and the pdeath signal, which come after.
    """
    _drop(program, present & ~credentials.bounding)
    if ids:
        groups = struct.pack(f"<{len(ids.groups)}I", *ids.groups)
        program.call(SYS.SETGROUPS, len(ids.groups), groups)
    # A flag that keeps the permitted set over the change of ids, and is taken back below.
    bits = credentials.securebits & _SECBITS_FORBIDDING_NOTHING
    syscalls.prctl(program, _PR_SET_SECUREBITS, bits | _SECBIT_KEEP_CAPS)
    if ids:
        _take_ids(program, ids)
    later = 0 if bits == credentials.securebits else 1 << CAP_SETPCAP
    _take_capabilities(program, credentials, later)
    syscalls.prctl(program, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    for number in CAPABILITIES:
        if credentials.ambient >> number & 1:
            syscalls.prctl(program, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number)
    if later:
        syscalls.prctl(program, _PR_SET_SECUREBITS, credentials.securebits)
        _take_capabilities(program, credentials, 0)
    elif not credentials.securebits & _SECBIT_KEEP_CAPS:
        syscalls.prctl(program, PR_SET_KEEPCAPS, 0)
    if no_new_privs:
        syscalls.prctl(program, PR_SET_NO_NEW_PRIVS, 1)


def _take_capabilities(program: Program, credentials: Credentials, more: int) -> None:
    """Take the recorded sets, and for a while some more capabilities."""
    header = struct.pack("<Ii", _CAPABILITY_VERSION_3, 0)
    effective, permitted = credentials.effective | more, credentials.permitted | more
    words = []
    for shift in (0, 32):
        words += [
            field >> shift & 0xFFFFFFFF for field in (effective, permitted, credentials.inheritable)
        ]
    program.call(SYS.CAPSET, header, struct.pack("<6I", *words))


@contextmanager
def with_capabilities(stub: Stub, effective: int, permitted: int) -> Iterator[None]:
    """Have a stub use only some of the rights that are `permitted`, for as long."""
    for now in (effective, permitted):
        program = stub.program()
        set_effective(program, now, permitted)
        stub.run(program)
        if now == effective:
            yield
