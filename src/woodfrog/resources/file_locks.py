"""Locks on files: ranges of a process or an open file (fcntl(2)), and whole files (flock(2))."""

import fcntl
import struct

from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.remote.program import Program
from woodfrog.resources.process import Lock

_F_OFD_GETLK, _F_OFD_SETLK = 36, 37
_FLOCK = struct.Struct("<hhxxxxqqixxxx")  # l_type l_whence l_start l_len l_pid
_WHOLE = {fcntl.F_WRLCK: fcntl.LOCK_EX, fcntl.F_RDLCK: fcntl.LOCK_SH, fcntl.F_UNLCK: fcntl.LOCK_UN}


def kind(lock: Lock) -> int:
    """Return what it is called by fcntl(2)."""
    return fcntl.F_WRLCK if lock.write else fcntl.F_RDLCK


def put(program: Program, lock: Lock, how: int) -> None:
    """Have a process take a lock that is no lease, or with F_UNLCK give it up."""
    if lock.how == "flock":
        program.call(SYS.FLOCK, lock.descriptor, _WHOLE[how] | fcntl.LOCK_NB)
        return
    request = _FLOCK.pack(how, 0, lock.start, lock.length, 0)
    command = fcntl.F_SETLK if lock.how == "posix" else _F_OFD_SETLK
    program.call(SYS.FCNTL, lock.descriptor, command, request)


def holder(descriptor: int, lock: Lock) -> int:
    """Return whose lock is in the way of one of a range: a process, -1 for a file, 0 for nobody."""
    command = fcntl.F_GETLK if lock.how == "posix" else _F_OFD_GETLK
    request = _FLOCK.pack(kind(lock), 0, lock.start, lock.length, 0)
    found, *_, pid = _FLOCK.unpack(fcntl.fcntl(descriptor, command, request))
    return 0 if found == fcntl.F_UNLCK else int(pid)
