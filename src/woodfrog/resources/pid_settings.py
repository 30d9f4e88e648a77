"""Settings of the kernel (sysctl) that a pid namespace has for itself.

Only who is in it reads and writes its own ones: a child of ours that is born there.
"""

import os
import re
from collections.abc import Callable, Collection, Mapping

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.kernel.capability import CAP_SYS_ADMIN
from woodfrog.kernel.reading_elsewhere import read_by_child
from woodfrog.resources import namespaces

# Before Linux 6.14 there is but one kernel.pid_max, which is the machine's.
_PID_MAX, _NOEXEC = "kernel/pid_max", "vm/memfd_noexec"
# What a new namespace has (PID_MAX_LIMIT), whatever the one above has.
_NEW_PID_MAX = b"4194304"
_VALUE = rb"[0-9]{1,7}"
_MOST_BYTES = 4096

Settings = list[tuple[str, bytes]]


def collect(init: int, configured: Mapping[str, bytes]) -> Settings:
    """Compare the settings of a process's pid namespace with those of a new one."""
    usual = {_PID_MAX: _NEW_PID_MAX, _NOEXEC: _read(_NOEXEC), **configured}
    our = _inode(_PID_MAX)
    with namespaces.inside(init, "pid"):
        found = read_by_child([f"/proc/sys/{path}" for path in (_PID_MAX, _NOEXEC)])
    return [
        (path, value)
        for path, (inode, text) in zip((_PID_MAX, _NOEXEC), found, strict=True)
        if (value := text.strip()) and inode != our and value != usual[path]
    ]


def check(settings: Settings) -> None:
    """Check that an image sets nothing else."""
    for path, value in settings:
        if path not in (_PID_MAX, _NOEXEC) or not re.fullmatch(_VALUE, value):
            raise ImageError("the image sets what no image does (sysctl)")


def refuse_wider(settings: Settings, new: Collection[str], bounding: int) -> None:
    """Refuse settings that the new container could not make; `new` are its own namespaces."""
    if settings and "pid" not in new:
        raise UnsupportedResource(
            f"the image has settings of its own ({_named(settings[0][0])}), but the new container"
            " joins a namespace (pid)",
            hint='give it one of its own: "pid" without a path in linux.namespaces',
        )
    if _NOEXEC in dict(settings) and not bounding >> CAP_SYS_ADMIN & 1:
        raise UnsupportedResource(
            f"the image has set {_named(_NOEXEC)}, which the new container may not (CAP_SYS_ADMIN)",
            hint="add CAP_SYS_ADMIN to process.capabilities of config.json",
        )


def restore(init: int, settings: Settings) -> list[str]:
    """Change settings when all processes and memfds are made; returns what stays as it is."""
    our = _inode(_PID_MAX)

    def change() -> bytes:
        is_machines = _inode(_PID_MAX) == our
        left = [
            path
            for path, value in settings
            if (path == _PID_MAX and is_machines) or not _write(path, value)
        ]
        return "\n".join(left).encode()

    left = _inside(init, change).decode().splitlines()
    return [f"{_named(path)} is left as it is here" for path in left]


def _named(path: str) -> str:
    return path.replace("/", ".")


def _inode(path: str) -> int:
    try:
        return os.stat(f"/proc/sys/{path}").st_ino
    except FileNotFoundError:
        return 0


def _read(path: str) -> bytes:
    try:
        with open(f"/proc/sys/{path}", "rb", buffering=0) as file:
            return file.read(_MOST_BYTES).strip()
    except FileNotFoundError:
        return b""  # before Linux 6.3


def _write(path: str, value: bytes) -> bool:
    try:
        with open(f"/proc/sys/{path}", "wb", buffering=0) as file:
            file.write(value)
    except OSError:
        return False  # not in this kernel, or more than the namespace above allows
    return True


def _inside(init: int, work: Callable[[], bytes]) -> bytes:
    """Do something in a child of ours in a process's pid namespace; returns what it answers."""
    told, tell = os.pipe()
    try:
        with namespaces.inside(init, "pid"):
            child = os.fork()
            if child == 0:
                try:
                    os.write(tell, work())
                finally:
                    os._exit(0)
        os.close(tell)
        tell = -1
        answer = os.read(told, _MOST_BYTES)
        os.waitpid(child, 0)
        return answer
    finally:
        os.close(told)
        if tell >= 0:
            os.close(tell)
