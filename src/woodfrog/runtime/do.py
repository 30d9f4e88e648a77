"""`do`: a sandbox without a bundle: the host's files under a layer that is thrown away."""

from __future__ import annotations

import os

from woodfrog.errors import UsageError
from woodfrog.runtime import jsontext
from woodfrog.runtime.create import Request
from woodfrog.runtime.spec_default import MASKED_PATHS, READONLY_PATHS, mounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# What docker gives: root inside can do what ordinary programs expect of root.
_RIGHTS = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
]

# File systems that are the kernel's own view of things, or that the sandbox has its own of.
_NOT_SHOWN = {
    "proc",
    "sysfs",
    "devtmpfs",
    "devpts",
    "mqueue",
    "cgroup",
    "cgroup2",
    "tmpfs",
    "securityfs",
    "debugfs",
    "tracefs",
    "configfs",
    "bpf",
    "pstore",
    "efivarfs",
    "hugetlbfs",
    "autofs",
    "binfmt_misc",
    "fusectl",
    "nsfs",
    "rpc_pipefs",
    "ramfs",
}


class Sandbox:
    """What `do` is asked for, turned into a config of its own."""

    def __init__(self, root: str = "/", cwd: str = "/", volumes: list[str] | None = None) -> None:
        self._root = os.path.realpath(root)
        self._cwd = cwd
        self._volumes = volumes or []
        self.terminal = False

    def request(self, state_root: str, id: str, command: list[str]) -> Request:
        """Return the request for this sandbox; it has no bundle but the state directory."""
        if not os.path.isdir(self._root):
            raise UsageError(f"--root={self._root} is not a directory")
        config = jsontext.write(self._config(command)).encode()
        wanted = Request(state_root, id, os.path.join(state_root, id), config)
        wanted.scratch_over = self._root
        return wanted

    def _config(self, command: list[str]) -> dict[str, Any]:
        rights = [f"CAP_{name}" for name in _RIGHTS]
        kinds = ("pid", "network", "ipc", "uts", "mount", "cgroup")
        keep = ("PATH", "TERM", "LANG", "LC_ALL", "HOME", "USER", "SHELL", "TZ")
        return {
            "ociVersion": "1.2.0",
            "process": {
                "terminal": self.terminal,
                "user": {"uid": 0, "gid": 0},
                "args": command,
                "env": [f"{name}={os.environ[name]}" for name in keep if name in os.environ],
                "cwd": self._cwd,
                "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), rights),
                "noNewPrivileges": False,
            },
            "root": {"path": "rootfs", "readonly": False},
            "hostname": "woodfrog",
            "mounts": [*self._host_mounts(), *mounts(), *self._volume_mounts()],
            "linux": {
                "resources": {"devices": [{"allow": False, "access": "rwm"}]},
                "namespaces": [{"type": kind} for kind in kinds],
                "maskedPaths": MASKED_PATHS,
                "readonlyPaths": READONLY_PATHS,
            },
        }

    def _host_mounts(self) -> list[dict[str, Any]]:
        """Show, read-only, the other file systems of disks that the host has mounted."""
        found = []
        with open("/proc/self/mountinfo", "rb", buffering=0) as file:
            lines = os.fsdecode(file.readall()).splitlines()
        prefix = self._root.rstrip("/") + "/"
        for line in lines:
            left, _, right = line.partition(" - ")
            point = left.split()[4].encode().decode("unicode_escape")
            kind = right.split()[0]
            inside = "/" + point[len(prefix) :]
            if (
                not point.startswith(prefix)
                or inside == "/"
                or kind in _NOT_SHOWN
                or not os.path.exists(point)
            ):
                continue
            if inside.startswith(("/proc/", "/sys/", "/dev/")):
                continue
            options = ["bind", "ro", "nosuid", "nodev", "rprivate"]
            found.append(
                {"destination": inside, "type": "bind", "source": point, "options": options}
            )
        return found

    def _volume_mounts(self) -> list[dict[str, Any]]:
        found = []
        for volume in self._volumes:
            source, _, destination = volume.partition(":")
            source = os.path.abspath(source)
            if not os.path.exists(source):
                raise UsageError(f"--volume={volume}: {source} does not exist")
            found.append(
                {
                    "destination": destination or source,
                    "type": "bind",
                    "source": source,
                    "options": ["rbind", "rw", "rprivate"],
                }
            )
        return found
