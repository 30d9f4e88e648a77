"""Bundles for tests: start from a base configuration and change one thing."""

import json
import os
from pathlib import Path
from typing import Any

# What docker gives its containers.
CAPABILITIES = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
]
NAMESPACES = ("pid", "network", "ipc", "uts", "mount", "cgroup")
ENVIRONMENT = ("PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/work", "LANG=C.UTF-8")
HOST_DIRECTORIES = ("/usr", "/etc", "/bin", "/sbin", "/lib", "/lib64", "/opt")


def mount(
    destination: str, kind: str, source: str = "", options: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return one entry of a configuration's `mounts`."""
    return {
        "destination": destination,
        "type": kind,
        "source": source or kind,
        "options": list(options),
    }


def tmpfs(destination: str, *options: str) -> dict[str, Any]:
    """Return a tmpfs of the container's own."""
    return mount(destination, "tmpfs", "tmpfs", ("nosuid", *options))


def bind(source: Path | str, destination: str, access: str = "ro") -> dict[str, Any]:
    """Return a bind mount of a directory of the host."""
    return mount(destination, "bind", str(source), ("rbind", access))


def base_config(arguments: list[str], work: Path) -> dict[str, Any]:
    """Return a configuration like that of `runc spec`, with the host's programs and a /work."""
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": arguments,
            "env": list(ENVIRONMENT),
            "cwd": "/work",
            "capabilities": {
                kind: list(CAPABILITIES) for kind in ("bounding", "effective", "permitted")
            },
            "noNewPrivileges": False,
        },
        "root": {"path": "rootfs", "readonly": False},
        "hostname": "frog",
        "mounts": [
            mount("/proc", "proc"),
            tmpfs("/dev", "strictatime", "mode=755", "size=65536k"),
            mount(
                "/dev/pts",
                "devpts",
                options=("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"),
            ),
            tmpfs("/dev/shm", "noexec", "nodev", "mode=1777"),
            tmpfs("/tmp", "nodev", "mode=1777"),
            mount("/sys", "sysfs", options=("nosuid", "noexec", "nodev", "ro")),
            bind(work, "/work", "rw"),
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in NAMESPACES],
            "resources": {},
        },
    }


class Bundle:
    """A directory with a rootfs and a configuration, which `save` writes."""

    def __init__(self, directory: Path, arguments: list[str], *, work: Path | None = None) -> None:
        self.directory = directory
        self.rootfs = directory / "rootfs"
        self.work = work or directory / "work"
        self.rootfs.mkdir(parents=True)
        self.work.mkdir(exist_ok=True, parents=True)
        self.work.chmod(0o777)
        self.config = base_config(arguments, self.work)
        for name in ("dev", "proc", "sys", "tmp", "work", "run"):
            (self.rootfs / name).mkdir()

    @property
    def process(self) -> dict[str, Any]:
        """The configuration's `process`."""
        found: dict[str, Any] = self.config["process"]
        return found

    def add_mount(self, entry: dict[str, Any]) -> None:
        """Mount one thing more."""
        self.config["mounts"].append(entry)

    def add_host_programs(self) -> None:
        """Let the container see the host's programs and libraries, read-only."""
        for path in HOST_DIRECTORIES:
            place = self.rootfs / path.lstrip("/")
            if os.path.islink(path):
                place.symlink_to(os.readlink(path))
            elif os.path.isdir(path):
                self.add_mount(bind(path, path))

    def add_capabilities(self, *names: str) -> None:
        """Give the container's process these capabilities too."""
        for granted in self.process["capabilities"].values():
            granted.extend(name for name in names if name not in granted)

    def save(self) -> None:
        """Write config.json."""
        (self.directory / "config.json").write_text(json.dumps(self.config, indent=1))
