"""Who has logged in, as the audit system notes it for a login's processes (/proc/PID/loginuid).

getlogin(3) tells it. A container gets it from who makes it; PAM sets it in logins inside.
"""

import os

from woodfrog.errors import ImageError
from woodfrog.image.record import Part
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.capability import CAP_AUDIT_CONTROL
from woodfrog.kernel.procfs.reading import read_file
from woodfrog.remote.program import Program

_NOBODY = (1 << 32) - 1


class Login(Part, frozen=True):
    """The user that a process belongs to, whoever it is now."""

    uid: int


def collect(path: str, first: str) -> Login | None:
    """Return whose a process is whose directory in /proc is `path`; None: whose the `first` is."""
    user = _read(path)
    return Login(uid=user) if user not in (_read(first), _NOBODY) else None


def _read(path: str) -> int:
    try:
        return int(read_file(f"{path}/loginuid"))
    except FileNotFoundError:
        return _NOBODY  # a kernel without audit


def check(login: Login | None) -> None:
    """Check one from an image."""
    if login and not 0 <= login.uid < _NOBODY:
        raise ImageError("a process in the image belongs to an impossible login")


def may_be_set(pid: int, bounding: int) -> bool:
    """Tell whether a stub, which is `pid` for us, can be another login's, as it could by itself."""
    path = f"/proc/{pid}"
    return os.path.exists(f"{path}/loginuid") and (
        _read(path) == _NOBODY or bool(bounding >> CAP_AUDIT_CONTROL & 1)
    )


def restore(program: Program, descriptor: int, user: int) -> None:
    """Set it: a process does so itself, by a descriptor of its file that we have opened."""
    text = b"%d" % user
    program.call(SYS.WRITE, descriptor, text, len(text))
