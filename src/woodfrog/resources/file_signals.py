"""Who gets a signal when something happens at a file (fcntl(2), F_SETOWN, F_SETSIG, O_ASYNC)."""

import fcntl
import struct
from collections.abc import Callable

from woodfrog.errors import UnsupportedResource
from woodfrog.image.record import Part
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.remote.program import Program

F_SETOWN_EX = 15
_F_GETSIG, _F_SETSIG, _F_GETOWN_EX, _F_GETOWNER_UIDS = 11, 10, 16, 17
_F_OWNER_PGRP = 2
O_ASYNC = 0o20000


class FileSignals(Part, frozen=True):
    """The owner of the file behind a descriptor, and who made it that (uid, euid).

    `kind` is F_OWNER_*; owner 0: none, or one that has ended, of which the kind is left. Signal 0:
    SIGIO.
    """

    descriptor: int
    kind: int
    owner: int
    signal: int
    uid: int
    euid: int

    @property
    def unowned(self) -> frozenset[str]:
        """Return which fields name nobody: nobody gets the signals."""
        return frozenset() if self.owner else frozenset(("uid", "euid"))


def collect(
    number: int,
    ours: int,
    flags: int,
    identify: Callable[[int], int],
    identify_group: Callable[[int], int],
) -> FileSignals | None:
    """Ask the file behind `ours`, a descriptor of ours; None if nobody gets signals from it."""
    kind, owner = struct.unpack("<2i", fcntl.fcntl(ours, _F_GETOWN_EX, bytes(8)))
    signal = fcntl.fcntl(ours, _F_GETSIG)
    if not (owner or signal or flags & O_ASYNC):
        return None
    uid, euid = struct.unpack("<2I", fcntl.fcntl(ours, _F_GETOWNER_UIDS, bytes(8)))
    inside = (identify_group if kind == _F_OWNER_PGRP else identify)(owner) if owner else 0
    if owner and not inside:
        raise UnsupportedResource(
            f"sends signals to an owner outside the container (F_SETOWN, {owner} on the host)"
        )
    return FileSignals(
        descriptor=number, kind=kind, owner=inside, signal=signal, uid=uid, euid=euid
    )


def restore(program: Program, one: FileSignals, owner: int, flags: int) -> None:
    """Set it again, in a process that has the descriptor and may still be anybody.

    `owner` is what that process calls the owner. O_ASYNC comes last, and by the right number: the
    signal tells it.
    """
    if one.signal:
        program.call(SYS.FCNTL, one.descriptor, _F_SETSIG, one.signal)
    who = struct.pack("<2i", one.kind, owner)
    if owner:
        # Saved id 0 is the way back.
        program.call(SYS.SETRESUID, one.uid, one.euid, 0)
        program.call(SYS.FCNTL, one.descriptor, F_SETOWN_EX, who)
        program.call(SYS.SETRESUID, 0, 0, 0)
    elif one.kind:
        program.call(SYS.FCNTL, one.descriptor, F_SETOWN_EX, who)
    if flags & O_ASYNC:
        syscalls.set_status_flags(program, one.descriptor, flags)
