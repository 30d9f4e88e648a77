"""What a command needs of the machine and of the user, checked before anything else."""

from __future__ import annotations

import os

from woodfrog.errors import WoodfrogError

_NEED_NOTHING = (
    "spec",
    "features",
    "cpu-features",
    "inspect",
    "verify",
    "install",
    "uninstall",
    "docker",
    "criu",
)
_NEED_ADMIN = ("create", "run", "do", "restore", "checkpoint", "check", "exec", "tar")
_CAP_SYS_ADMIN = 21
_HINT = "in a container? start it with --privileged"


def check(command: str) -> None:
    """Raise an error that says what is missing and what to do."""
    if command in _NEED_NOTHING:
        return
    if os.geteuid() != 0:
        raise WoodfrogError(f"woodfrog {command} needs root", hint="run it with sudo")
    if not os.path.exists("/proc/self/stat"):
        raise WoodfrogError(
            "no procfs is mounted at /proc", hint="mount it: mount -t proc proc /proc"
        )
    if command in _NEED_ADMIN and not _effective_capabilities() >> _CAP_SYS_ADMIN & 1:
        raise WoodfrogError(f"woodfrog {command} needs CAP_SYS_ADMIN", hint=_HINT)


def _effective_capabilities() -> int:
    """Return ours, without capget(2): who has others do the work needn't import ctypes."""
    with open("/proc/self/status", "rb", buffering=0) as file:
        return int(file.readall().partition(b"\nCapEff:")[2].split(None, 1)[0], 16)
