"""What a config.json may contain, as data: the OCI runtime specification 1.2, field by field."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Later:
    """A field of this shape is known, but what it asks for isn't done yet: warn if it is set."""

    def __init__(self, shape: Any) -> None:
        self.shape = shape


class Refused:
    """A field that we must not ignore, and can't do."""

    def __init__(self, why: str) -> None:
        self.why = why


class MapOf:
    """An object with free keys and values of one shape."""

    def __init__(self, shape: Any) -> None:
        self.shape = shape


class Anything:
    """A value that is not looked into."""


_RLIMIT = {"type": str, "soft": int, "hard": int}
_CAPABILITIES = {
    kind: [str] for kind in ("bounding", "effective", "inheritable", "permitted", "ambient")
}
_ID_MAPPING = {"containerID": int, "hostID": int, "size": int}

PROCESS = {
    "terminal": bool,
    "consoleSize": {"height": int, "width": int},
    "user": {"uid": int, "gid": int, "umask": int, "additionalGids": [int], "username": str},
    "args": [str],
    "commandLine": str,  # Windows' way; the specification wants it ignored here
    "env": [str],
    "cwd": str,
    "capabilities": _CAPABILITIES,
    "rlimits": [_RLIMIT],
    "noNewPrivileges": bool,
    "apparmorProfile": str,
    "oomScoreAdj": int,
    "selinuxLabel": str,
    "ioPriority": {"class": str, "priority": int},
    "scheduler": {
        "policy": str,
        "nice": int,
        "priority": int,
        "flags": [str],
        "runtime": int,
        "deadline": int,
        "period": int,
    },
    "execCPUAffinity": {"initial": str, "final": str},
}

_HOOK = {"path": str, "args": [str], "env": [str], "timeout": int}

_DEVICE = {
    "type": str,
    "path": str,
    "major": int,
    "minor": int,
    "fileMode": int,
    "uid": int,
    "gid": int,
}

_DEVICE_RULE = {"allow": bool, "type": str, "major": int, "minor": int, "access": str}

_DEVICE_NUMBERS = {"major": int, "minor": int}
_THROTTLE = [_DEVICE_NUMBERS | {"rate": int}]

RESOURCES = {
    "devices": [_DEVICE_RULE],
    "memory": {
        "limit": int,
        "reservation": int,
        "swap": int,
        "kernel": int,
        "kernelTCP": int,
        "swappiness": int,
        "disableOOMKiller": bool,
        "useHierarchy": bool,
        "checkBeforeUpdate": bool,
    },
    "cpu": {
        "shares": int,
        "quota": int,
        "burst": int,
        "period": int,
        "realtimeRuntime": int,
        "realtimePeriod": int,
        "cpus": str,
        "mems": str,
        "idle": int,
    },
    "pids": {"limit": int},
    "blockIO": {
        "weight": int,
        "leafWeight": int,
        "weightDevice": [_DEVICE_NUMBERS | {"weight": int, "leafWeight": int}],
        "throttleReadBpsDevice": _THROTTLE,
        "throttleWriteBpsDevice": _THROTTLE,
        "throttleReadIOPSDevice": _THROTTLE,
        "throttleWriteIOPSDevice": _THROTTLE,
    },
    "hugepageLimits": [{"pageSize": str, "limit": int}],
    "network": {"classID": int, "priorities": [{"name": str, "priority": int}]},
    "rdma": MapOf({"hcaHandles": int, "hcaObjects": int}),
    "unified": MapOf(str),
}

_SECCOMP = {
    "defaultAction": str,
    "defaultErrnoRet": int,
    "architectures": [str],
    "flags": [str],
    "listenerPath": str,
    "listenerMetadata": str,
    "syscalls": [
        {
            "names": [str],
            "action": str,
            "errnoRet": int,
            "args": [{"index": int, "value": int, "valueTwo": int, "op": str}],
        }
    ],
}

CONFIG: dict[str, Any] = {
    "ociVersion": str,
    "process": PROCESS,
    "root": {"path": str, "readonly": bool},
    "hostname": str,
    "domainname": str,
    "mounts": [
        {
            "destination": str,
            "type": str,
            "source": str,
            "options": [str],
            "uidMappings": [_ID_MAPPING],
            "gidMappings": [_ID_MAPPING],
        }
    ],
    "hooks": {
        name: [_HOOK]
        for name in (
            "prestart",
            "createRuntime",
            "createContainer",
            "startContainer",
            "poststart",
            "poststop",
        )
    },
    "annotations": MapOf(str),
    "linux": {
        "uidMappings": [_ID_MAPPING],
        "gidMappings": [_ID_MAPPING],
        "sysctl": MapOf(str),
        "resources": RESOURCES,
        "cgroupsPath": str,
        "namespaces": [{"type": str, "path": str}],
        "devices": [_DEVICE],
        "netDevices": MapOf({"name": str}),
        "seccomp": _SECCOMP,
        "rootfsPropagation": str,
        "maskedPaths": [str],
        "readonlyPaths": [str],
        "mountLabel": str,
        "intelRdt": Refused("cache and memory bandwidth are not shared out by resctrl"),
        "memoryPolicy": {"mode": str, "nodes": str, "flags": [str]},
        "personality": {"domain": str, "flags": [str]},
        "timeOffsets": MapOf({"secs": int, "nanosecs": int}),
    },
    "solaris": Anything,
    "windows": Anything,
    "vm": Anything,
    "zos": Anything,
    "freebsd": Anything,
}
