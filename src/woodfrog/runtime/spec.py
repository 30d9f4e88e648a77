"""The bundle's config.json: read, checked, and asked for what it says."""

from __future__ import annotations

import os

from woodfrog.errors import SpecError
from woodfrog.kernel import namespaces as ns
from woodfrog.runtime import jsontext
from woodfrog.runtime.mount_options import Options
from woodfrog.runtime.spec_schema import (
    CONFIG,
    PROCESS,
    RESOURCES,
    Anything,
    Later,
    MapOf,
    Refused,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Object = dict[str, Any]

# OCI's word for a namespace: (flag, name in /proc/PID/ns).
NAMESPACES = {
    "ipc": (ns.CLONE_NEWIPC, "ipc"),
    "uts": (ns.CLONE_NEWUTS, "uts"),
    "network": (ns.CLONE_NEWNET, "net"),
    "cgroup": (ns.CLONE_NEWCGROUP, "cgroup"),
    "pid": (ns.CLONE_NEWPID, "pid"),
    "mount": (ns.CLONE_NEWNS, "mnt"),
    "time": (ns.CLONE_NEWTIME, "time"),
    "user": (ns.CLONE_NEWUSER, "user"),
}

_TYPE_NAMES = {str: "a string", int: "a whole number", bool: "true or false"}


def read(path: str) -> bytes:
    """Return the text of a config.json."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except FileNotFoundError:
        raise SpecError(
            f"no config.json in the bundle: {path} does not exist",
            hint="name the bundle with --bundle, or write a config with `woodfrog spec`",
        ) from None
    except OSError as error:
        raise SpecError(f"cannot read {path}: {error.strerror}") from None


def parse(text: bytes, name: str) -> Any:
    """Return the JSON value of a file's text, or raise SpecError naming the file."""
    try:
        return jsontext.parse(text.decode())
    except ValueError as error:
        raise SpecError(f"{name} is not valid JSON: {error}") from None


def check_shape(config: Any) -> list[str]:
    """Raise SpecError unless every known field has its type; returns warnings about others."""
    warnings: list[str] = []
    _check_shape(config, CONFIG, "", warnings)
    return warnings


def check(config: Any) -> list[str]:
    """Raise SpecError if the config is wrong; returns warnings about what won't be done."""
    warnings = check_shape(config)
    version = config.get("ociVersion")
    if not version:
        raise SpecError("ociVersion is missing in config.json")
    if not version.startswith("1."):
        raise SpecError(f"ociVersion is {version}, but only 1.x is known")
    if not (config.get("root") or {}).get("path"):
        raise SpecError("root.path is missing in config.json")
    if config.get("process"):
        check_process(config["process"], "process")
    for position, mount in enumerate(config.get("mounts") or ()):
        if not mount.get("destination"):
            raise SpecError(f"mounts[{position}].destination is missing")
        options = Options(mount.get("options") or [])
        if options.is_bind and options.data:
            warnings.append(
                f"mounts[{position}]: {options.data} has no effect on a bind mount: those are"
                " options of the file system"
            )
    _check_hooks(config.get("hooks") or {})
    linux = config.get("linux") or {}
    _check_namespaces(linux, config)
    if "mount" not in namespaces(config):
        warnings.append(
            "linux.namespaces has no mount namespace: the container's mounts are also the host's,"
            " and a chroot is all that keeps it from the rest"
        )
    return warnings


def complete(config: Any) -> None:
    """Give a config that has been checked what others count on: a process object, if empty."""
    config["process"] = config.get("process") or {}


def check_process(process: Any, where: str) -> None:
    """Raise SpecError if a process object lacks what every process needs."""
    if not process.get("args"):
        raise SpecError(f"{where}.args is missing or empty", hint="name the command to run")
    cwd = process.get("cwd")
    if not cwd or not cwd.startswith("/"):
        raise SpecError(f"{where}.cwd must be an absolute path, and is {cwd!r}")
    for entry in process["args"] + (process.get("env") or []):
        if "\0" in entry:
            raise SpecError(f"{where}: {entry!r} contains a NUL byte")


def read_process(path: str) -> tuple[Object, list[str]]:
    """Return a process object (exec --process) and warnings about what won't be done."""
    try:
        with open(path, "rb", buffering=0) as file:
            process = parse(file.readall(), path)
    except OSError as error:
        raise SpecError(f"cannot read {path}: {error.strerror}") from None
    warnings: list[str] = []
    _check_shape(process, PROCESS, "process", warnings)
    check_process(process, "process")
    return process, warnings


def _check_hooks(hooks: Object) -> None:
    for moment, listed in hooks.items():
        for position, hook in enumerate(listed or ()):
            where = f"hooks.{moment}[{position}]"
            path = hook.get("path") or ""
            if not path.startswith("/"):
                raise SpecError(f"{where}.path must be absolute, and is {path!r}")
            if (hook.get("timeout") or 1) < 0:
                raise SpecError(f"{where}.timeout must be greater than zero")


def read_resources(path: str) -> tuple[Object, list[str]]:
    """Return resources (update --resources; "-" is stdin) and warnings about what won't be done."""
    try:
        with open(0 if path == "-" else path, "rb", buffering=0) as file:
            resources = parse(file.readall(), path)
    except OSError as error:
        raise SpecError(f"cannot read {path}: {error.strerror}") from None
    warnings: list[str] = []
    _check_shape(_expect(resources, dict, path), RESOURCES, "", warnings)
    return resources, warnings


def _check_namespaces(linux: Object, config: Object) -> None:
    seen = set()
    for position, namespace in enumerate(linux.get("namespaces") or ()):
        where = f"linux.namespaces[{position}]"
        kind = namespace.get("type")
        if kind not in NAMESPACES:
            known = ", ".join(NAMESPACES)
            raise SpecError(f"{where}.type is {kind!r}, and must be one of {known}")
        if kind in seen:
            raise SpecError(f"{where}: the {kind} namespace is listed twice")
        if (path := namespace.get("path")) and not path.startswith("/"):
            raise SpecError(f"{where}.path must be absolute, and is {path!r}")
        seen.add(kind)
    if (config.get("hostname") or config.get("domainname")) and "uts" not in seen:
        raise SpecError(
            "hostname is set, but linux.namespaces has no uts namespace",
            hint="the host's own name would be changed; add the namespace or drop the hostname",
        )
    if (linux.get("uidMappings") or linux.get("gidMappings")) and "user" not in seen:
        raise SpecError(
            "linux: user namespace mappings specified, but user namespace isn't enabled in the"
            " config",
            hint='add {"type": "user"} to linux.namespaces, or leave the mappings out',
        )
    if linux.get("timeOffsets") and "time" not in seen:
        raise SpecError("linux.timeOffsets is set, but linux.namespaces has no time namespace")


def _check_shape(value: Any, shape: Any, where: str, warnings: list[str]) -> None:
    # null means "not given" in the JSON that Go programs write.
    if value is None or shape is Anything:
        return
    if isinstance(shape, Later):
        _check_shape(value, shape.shape, where, warnings)
        if value:
            warnings.append(f"{where} is not supported yet and has no effect")
    elif isinstance(shape, Refused):
        raise SpecError(f"{where} is not supported: {shape.why}", hint="take it out of the config")
    elif isinstance(shape, MapOf):
        for key, member in _expect(value, dict, where).items():
            _check_shape(member, shape.shape, f"{where}[{key}]", warnings)
    elif isinstance(shape, dict):
        _rename(_expect(value, dict, where), shape)
        for key, member in value.items():
            place = f"{where}.{key}" if where else key
            if key in shape:
                _check_shape(member, shape[key], place, warnings)
            else:
                warnings.append(f"{place} is an unknown field and has no effect")
    elif isinstance(shape, list):
        for position, member in enumerate(_expect(value, list, where)):
            if member is None:
                raise SpecError(f"{where}[{position}] is null")
            _check_shape(member, shape[0], f"{where}[{position}]", warnings)
    elif type(value) is not shape:
        raise SpecError(f"{where} must be {_TYPE_NAMES[shape]}, and is {jsontext.write(value)}")


def _rename(value: Object, shape: Object) -> None:
    """Take a name in other case for the known one, as programs written in Go do."""
    for key in [key for key in value if key not in shape]:
        for name in shape:
            if name.lower() == key.lower():
                member = value.pop(key)
                if isinstance(member, dict) and isinstance(value.get(name), dict):
                    value[name] |= member
                else:
                    value[name] = member


def _expect(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind):
        name = "an object" if kind is dict else "a list"
        raise SpecError(f"{where or 'config.json'} must be {name}")
    return value


def namespaces(config: Object) -> dict[str, str]:
    """Return the namespaces asked for: kind to path, an empty path for a new one."""
    return {
        namespace["type"]: namespace.get("path") or ""
        for namespace in (config.get("linux") or {}).get("namespaces") or ()
    }


def rootfs(config: Object, bundle: str) -> str:
    """Return the real path of the container's root directory."""
    path = os.path.realpath(os.path.join(bundle, config["root"]["path"]))
    if not os.path.isdir(path):
        raise SpecError(
            f"root.path is {config['root']['path']!r}, but {path} is not a directory",
            hint="unpack a root file system there",
        )
    return path


def new_namespaces(config: Object) -> frozenset[str]:
    """Return the kinds of namespaces that are made for the container."""
    return frozenset(name for name, path in namespaces(config).items() if not path)


def may_make_cgroups(config: Object) -> bool:
    """Tell whether programs in the container may make control groups below its own."""
    bounding = (config["process"].get("capabilities") or {}).get("bounding") or ()
    return "CAP_SYS_ADMIN" in bounding or any(
        mount.get("type") in ("cgroup", "cgroup2") and "ro" not in (mount.get("options") or ())
        for mount in config.get("mounts") or ()
    )


def tmpfs_destinations(config: Object) -> tuple[str, ...]:
    """Return where the config mounts file systems in memory that belong to the container."""
    return tuple(
        mount["destination"]
        for mount in config.get("mounts") or ()
        if mount.get("type") in ("tmpfs", "hugetlbfs")
        and "bind" not in (mount.get("options") or ())
    )
