"""The config that `spec` writes, and what all configs of ours have in common."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MASKED_PATHS = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
]
READONLY_PATHS = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


def mounts() -> list[dict[str, Any]]:
    """Return the file systems that every program expects."""
    quiet = ["nosuid", "noexec", "nodev"]
    pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
    return [
        _mount("/proc", "proc", "proc", []),
        _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _mount("/dev/pts", "devpts", "devpts", pts),
        _mount("/dev/shm", "tmpfs", "shm", [*quiet, "mode=1777", "size=65536k"]),
        _mount("/dev/mqueue", "mqueue", "mqueue", quiet),
        _mount("/sys", "sysfs", "sysfs", [*quiet, "ro"]),
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", [*quiet, "relatime", "ro"]),
    ]


def _mount(destination: str, kind: str, source: str, options: list[str]) -> dict[str, Any]:
    mount: dict[str, Any] = {"destination": destination, "type": kind, "source": source}
    if options:
        mount["options"] = options
    return mount


def linux() -> dict[str, Any]:
    """Return new namespaces, no devices but the default ones, and hidden parts of /proc."""
    kinds = ["pid", "network", "ipc", "uts", "mount"]
    # Without the namespace /sys/fs/cgroup shows the container's own cgroups of v1, but all of v2.
    if os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        kinds.append("cgroup")
    return {
        "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        "namespaces": [{"type": kind} for kind in kinds],
        "maskedPaths": MASKED_PATHS,
        "readonlyPaths": READONLY_PATHS,
    }


def default_config() -> dict[str, Any]:
    """Return a shell on a terminal in a read-only root with few rights."""
    rights = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
    return {
        "ociVersion": "1.2.0",
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "TERM=xterm",
            ],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), rights),
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "woodfrog",
        "mounts": mounts(),
        "linux": linux(),
    }


def for_user(config: dict[str, Any], uid: int, gid: int) -> None:
    """Change the config to what an ordinary user may have: one user, the host's network."""
    linux = config["linux"]
    kinds = [entry["type"] for entry in linux["namespaces"] if entry["type"] != "network"]
    linux["namespaces"] = [{"type": kind} for kind in (*kinds, "user")]
    linux["uidMappings"] = [{"containerID": 0, "hostID": uid, "size": 1}]
    linux["gidMappings"] = [{"containerID": 0, "hostID": gid, "size": 1}]
    del linux["resources"]
    for mount in config["mounts"]:
        if mount["destination"] == "/sys":
            # A sysfs of its own needs a network namespace of its own.
            mount |= {"type": "none", "source": "/sys"}
            mount["options"] = ["rbind", "nosuid", "noexec", "nodev", "ro"]
        elif "options" in mount:
            owners = ("uid=", "gid=")
            mount["options"] = [o for o in mount["options"] if not o.startswith(owners)]
