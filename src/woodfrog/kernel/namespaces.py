"""Namespaces: unshare(2), setns(2), ioctl_ns(2), and the names that UTS namespaces hold."""

from __future__ import annotations

import os
import time

from woodfrog.kernel.abi.x86_64 import SYS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from woodfrog.kernel.caller import Caller

CLONE_NEWTIME = 0x80
CLONE_FS = 0x200
CLONE_FILES = 0x400
CLONE_NEWNS = 0x20000
CLONE_SYSVSEM = 0x40000
CLONE_NEWCGROUP = 0x2000000
CLONE_NEWUTS = 0x4000000
CLONE_NEWIPC = 0x8000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# By the names that /proc/PID/ns has for them.
FLAGS = {
    "cgroup": CLONE_NEWCGROUP,
    "ipc": CLONE_NEWIPC,
    "mnt": CLONE_NEWNS,
    "net": CLONE_NEWNET,
    "pid": CLONE_NEWPID,
    "time": CLONE_NEWTIME,
    "user": CLONE_NEWUSER,
    "uts": CLONE_NEWUTS,
}
_SOON_S = 0.05
_NS_GET_USERNS, _NS_GET_PARENT, _NS_GET_OWNER_UID = 0xB701, 0xB702, 0xB704
_NS_GET_TGID_FROM_PIDNS = 0x8004B707  # since Linux 6.12


def unshare(on: Caller, flags: int) -> None:
    """Leave named namespaces for new ones (of pids: for future children), or what is shared."""
    on.call(SYS.UNSHARE, flags)


def setns(on: Caller, descriptor: int, flags: int) -> None:
    """Enter the namespace of a /proc/PID/ns file, or those of a pidfd's process."""
    on.call(SYS.SETNS, descriptor, flags)


def owner_of(on: Caller, descriptor: int) -> int:
    """Return a descriptor of the user namespace that owns a namespace.

    Raises PermissionError if that is none of ours, nor below it.
    """
    return on.call(SYS.IOCTL, descriptor, _NS_GET_USERNS, 0)


def parent_of(on: Caller, descriptor: int) -> int:
    """Return a descriptor of the namespace above a pid or user namespace; raises likewise."""
    return on.call(SYS.IOCTL, descriptor, _NS_GET_PARENT, 0)


def is_nested(on: Caller, path: str, outer: str) -> bool:
    """Tell whether the pid or user namespace that a path leads to is nested in another one.

    That is given as /proc/PID/ns reads.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    while True:
        try:
            above = parent_of(on, descriptor)
        except PermissionError:
            return False  # it is ours
        finally:
            os.close(descriptor)
        if os.readlink(f"/proc/self/fd/{above}") == outer:
            os.close(above)
            return True
        descriptor = above


def maker_of(on: Caller, descriptor: int) -> int:
    """Return the user, by our ids, who made a user namespace and has all rights in it."""
    uid = bytearray(4)
    on.call(SYS.IOCTL, descriptor, _NS_GET_OWNER_UID, uid)
    return int.from_bytes(uid, "little")


def sethostname(on: Caller, name: str) -> None:
    """Set the host name of this UTS namespace."""
    text = name.encode()
    on.call(SYS.SETHOSTNAME, text, len(text))


def setdomainname(on: Caller, name: str) -> None:
    """Set the NIS domain name of this UTS namespace."""
    text = name.encode()
    on.call(SYS.SETDOMAINNAME, text, len(text))


class Inhabitants:
    """The processes of a pid namespace and of all that are nested in it, looked for repeatedly.

    Where the kernel shows just those (see `_procfs_of`), it doesn't matter how many others there
    are. Used with `with`.
    """

    def __init__(self, on: Caller, init: int) -> None:
        """`init` is a process in that namespace."""
        from woodfrog.kernel import features

        self._on = on
        path = f"/proc/{init}/ns/pid"
        self._pid_namespace = os.readlink(path)
        self._links = {self._pid_namespace: True}
        self._known: dict[str, bool] = {}
        self._looked = 0.0
        # Whether processes had ended before they were looked at: they may have had children.
        self.has_missed = False
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._procfs = -1
        try:
            if features.wanted(features.PROCFS_OF_PIDS):
                self._procfs = _procfs_of(on, self._descriptor)
                self._translated("1")  # whether that is known, too
        except OSError:
            self._close_procfs()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Inhabitants:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what is open."""
        self._close_procfs()
        os.close(self._descriptor)

    def _close_procfs(self) -> None:
        if self._procfs >= 0:
            os.close(self._procfs)
            self._procfs = -1

    def now(self) -> list[int]:
        """Return those that there are now, by their ids on the host."""
        if self._procfs >= 0:
            self.has_missed = False
            names = os.listdir(self._procfs)
            return sorted(pid for pid in map(self._translated, names) if pid)
        now = time.monotonic()
        if now - self._looked > _SOON_S:
            self._known.clear()
        self._looked = now
        self.has_missed = False
        names = [name for name in os.listdir("/proc") if name.isdecimal()]
        return sorted(int(name) for name in names if self._is_inside(name))

    def may_include(self, pid: int) -> bool:
        """Tell whether a process is one of them; one that is gone may have been."""
        try:
            return self._look(f"/proc/{pid}/ns/pid")
        except (FileNotFoundError, ProcessLookupError):
            return True

    def _translated(self, name: str) -> int:
        """Return the id on the host of what has a name in the namespace's procfs; 0 if none."""
        if not name.isdecimal():
            return 0
        try:
            return self._on.call(SYS.IOCTL, self._descriptor, _NS_GET_TGID_FROM_PIDNS, int(name))
        except ProcessLookupError:
            self.has_missed = True
            return 0

    def _is_inside(self, name: str) -> bool:
        # Nobody leaves a pid namespace, and no id is used again so soon.
        known = self._known.get(name)
        if known is None:
            try:
                known = self._known[name] = self._look(f"/proc/{name}/ns/pid")
            except (FileNotFoundError, ProcessLookupError):
                self.has_missed = True
                return False
            except OSError:
                return False
        return known

    def _look(self, path: str) -> bool:
        link = os.readlink(path)
        if link not in self._links:
            self._links[link] = is_nested(self._on, path, self._pid_namespace)
        return self._links[link]


def _procfs_of(on: Caller, pid_namespace: int) -> int:
    """Return a descriptor of the root of a procfs of our own that shows a pid namespace.

    Raises OSError before Linux 6.17 (the option `pidns`).
    """
    from woodfrog.kernel import mounts

    root = mounts.new_mount(on, "proc", 0, descriptors=((b"pidns", pid_namespace),))
    try:
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
    finally:
        os.close(root)


def processes_in(on: Caller, init: int) -> list[int]:
    """Return the processes of the pid namespace that `init` is in, and of all nested in it."""
    with Inhabitants(on, init) as inhabitants:
        return inhabitants.now()
