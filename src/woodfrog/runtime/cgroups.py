"""The container's control groups: made, joined, limited, frozen, listed and removed; v1 and v2.

A container's groups are a plain value that state.json can hold:
{"version": 1, "paths": {controller: directory}} or {"version": 2, "paths": {"": directory}}.
"""

from __future__ import annotations

import errno
import os
import time

from woodfrog.errors import StateError, WoodfrogError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Groups = dict[str, Any]

MOUNT_POINT = "/sys/fs/cgroup"
OUR_PARENT = "/woodfrog"


def mounted(mountinfo: str) -> dict[str, str]:
    """Return the mount point of each v1 controller, and under "" that of the v2 tree."""
    found: dict[str, str] = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        if not right.startswith("cgroup"):
            continue
        point = left.split()[4].replace("\\040", " ")
        kind, _, options = right.split()
        if kind == "cgroup2":
            found.setdefault("", point)
        else:
            skip = ("rw", "ro", "xattr", "none", "clone_children", "noprefix")
            names = [name for name in options.split(",") if name not in skip]
            for name in names:
                if not name.startswith(("release_agent=", "cpuset_v2_mode")):
                    found.setdefault(name, point)
    return found


def plan(cgroups_path: str, id: str, mounts: dict[str, str]) -> Groups:
    """Return which groups a container gets; v1 controllers win over a v2 tree beside them."""
    inside = "/" + (cgroups_path.strip("/") or f"{OUR_PARENT.strip('/')}/{id}")
    controllers = {name: point for name, point in mounts.items() if name}
    if controllers:
        return {"version": 1, "paths": {name: at + inside for name, at in controllers.items()}}
    if "" in mounts:
        return {"version": 2, "paths": {"": mounts[""] + inside}}
    raise WoodfrogError(
        "no cgroup file system is mounted",
        hint="mount one at /sys/fs/cgroup; in a container? start it with --privileged",
    )


def here() -> dict[str, str]:
    """Return what is mounted in our own mount namespace."""
    with open("/proc/self/mountinfo", "rb", buffering=0) as file:
        return mounted(os.fsdecode(file.readall()))


def directories(groups: Groups) -> list[str]:
    """Return the directories, each once (controllers can share one)."""
    return list(dict.fromkeys(groups["paths"].values()))


def make(groups: Groups) -> list[str]:
    """Make the groups and their parents; returns the directories that weren't there before."""
    made: list[str] = []
    # The controller directories of v1 may be symbolic links to one that several share.
    for path in {os.path.realpath(path): None for path in groups["paths"].values()}:
        try:
            _make_group(path, made)
        except OSError as error:
            remove_directories(made)
            if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise WoodfrogError(
                    f"cannot make the cgroup {path}: {error.strerror}",
                    hint="in a container? start it with --privileged and a private cgroup",
                ) from None
            raise
    if groups["version"] == 2:
        _enable_controllers(groups["paths"][""])
    return made


def _make_group(path: str, made: list[str]) -> None:
    for _ in range(10):
        try:
            os.mkdir(path, 0o755)
            break
        except FileExistsError:
            return
        except FileNotFoundError:
            # Another container's end may remove the parent between these two steps: try again.
            _make_group(os.path.dirname(path), made)
    else:
        raise WoodfrogError(f"cannot make the cgroup {path}: its parent keeps vanishing")
    made.append(path)
    if os.path.exists(os.path.join(path, "cpuset.cpus")) and not os.path.exists(
        os.path.join(path, "cgroup.controllers")
    ):
        # A v1 cpuset takes no process before it has processors and memory nodes.
        for name in ("cpuset.cpus", "cpuset.mems"):
            if not _read(path, name):
                _write(path, name, _read(os.path.dirname(path), name))


def _enable_controllers(path: str) -> None:
    """Let each parent hand its controllers down; one that can't is left as it is."""
    parts: list[str] = []
    parent = os.path.dirname(path)
    while os.path.exists(os.path.join(parent, "cgroup.controllers")):
        parts.append(parent)
        parent = os.path.dirname(parent)
    for directory in reversed(parts):
        for controller in _read(directory, "cgroup.controllers").split():
            try:
                _write(directory, "cgroup.subtree_control", f"+{controller}")
            except OSError:
                continue


def join(groups: Groups, pid: int) -> None:
    """Move a process into the groups."""
    for directory in directories(groups):
        _write(directory, "cgroup.procs", str(pid))


def apply(groups: Groups, resources: dict[str, Any]) -> list[str]:
    """Set the limits that linux.resources asks for; returns warnings about what can't be done."""
    version = groups["version"]
    warnings: list[str] = []
    if version == 1:
        from woodfrog.runtime.cgroup_limits import v1 as settings
    else:
        from woodfrog.runtime.cgroup_limits import v2 as settings
    for controller, name, value in settings(resources, warnings):
        directory = groups["paths"].get(controller if version == 1 else "")
        if directory is None:
            raise WoodfrogError(f"cannot set {name}: no {controller} cgroup is mounted")
        try:
            _write(directory, name, value)
        except FileNotFoundError:
            raise WoodfrogError(
                f"cannot set {name}: this kernel's {controller} cgroup doesn't have it",
                hint="take the limit out of linux.resources",
            ) from None
        except OSError as error:
            raise WoodfrogError(f"cannot set {name} to {value}: {error.strerror}") from None
    if version == 2 and resources.get("devices"):
        _limit_devices(groups["paths"][""], resources)
    return warnings


def _limit_devices(directory: str, resources: dict[str, Any]) -> None:
    from woodfrog.kernel import device_filter
    from woodfrog.kernel.caller import HERE
    from woodfrog.runtime.cgroup_limits import device_rules

    rules: list[device_filter.Rule] = []
    for rule in device_rules(resources):
        kind = device_filter.TYPES.get(rule.get("type") or "a", 0)
        major, minor = (
            None if rule.get(name) in (None, -1) else rule[name] for name in ("major", "minor")
        )
        access = sum(device_filter.ACCESS.get(letter, 0) for letter in rule.get("access") or "rwm")
        rules.append((bool(rule.get("allow")), kind, major, minor, access))
    try:
        device_filter.attach(HERE, directory, device_filter.program(rules))
    except OSError as error:
        raise WoodfrogError(
            f"cannot limit the devices of {directory}: {error.strerror}",
            hint="in a container? start it with --privileged",
        ) from error


def processes(groups: Groups) -> list[int]:
    """Return the host pids of every process in the groups and those below them."""
    paths = groups["paths"]
    top = paths.get("pids") or paths.get("freezer") or next(iter(paths.values()))
    found: list[int] = []
    for directory, _, _ in os.walk(top):
        try:
            found += map(int, _read(directory, "cgroup.procs").split())
        except FileNotFoundError:
            continue
    return sorted(set(found))


def is_frozen(groups: Groups) -> bool:
    """Tell whether the container is paused."""
    try:
        if groups["version"] == 1:
            directory = groups["paths"].get("freezer")
            return directory is not None and _read(directory, "freezer.state") != "THAWED"
        return "frozen 1" in _read(groups["paths"][""], "cgroup.events").splitlines()
    except FileNotFoundError:
        return False


def freeze(groups: Groups, frozen: bool, *, patience: float = 10.0) -> None:
    """Pause or resume every process of the container, and wait until it is so."""
    version = groups["version"]
    directory = groups["paths"].get("freezer" if version == 1 else "")
    if directory is None:
        raise WoodfrogError("cannot pause: no freezer cgroup is mounted")
    want = ("FROZEN" if frozen else "THAWED") if version == 1 else str(int(frozen))
    name = "freezer.state" if version == 1 else "cgroup.freeze"
    _write(directory, name, want)
    end = time.monotonic() + patience
    while _not_yet(directory, version, frozen):
        if time.monotonic() > end:
            _write(directory, name, "THAWED" if version == 1 else "0")
            raise StateError(
                "cannot pause: a process doesn't stop (is it in an uninterruptible wait?)"
            )
        time.sleep(0.001)
        if version == 1:
            _write(directory, name, want)


def _not_yet(directory: str, version: int, frozen: bool) -> bool:
    if version == 1:
        return _read(directory, "freezer.state") != ("FROZEN" if frozen else "THAWED")
    return f"frozen {int(frozen)}" not in _read(directory, "cgroup.events").splitlines()


def kill(groups: Groups, number: int) -> None:
    """Send a signal to every process of the container."""
    if number == 9 and groups["version"] == 2:
        try:
            _write(groups["paths"][""], "cgroup.kill", "1")
            return
        except FileNotFoundError:  # before Linux 5.14
            pass
    for pid in processes(groups):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def remove(groups: Groups, *, patience: float = 10.0) -> None:
    """Remove the groups, which the container may have filled with more, once they are empty."""
    end = time.monotonic() + patience
    for top in directories(groups):
        while not _remove_below(top):
            if time.monotonic() > end:
                raise StateError(f"the cgroup {top} is still in use", hint="see its cgroup.procs")
            time.sleep(0.002)
        parent = os.path.dirname(top)
        if parent.endswith(OUR_PARENT):
            remove_directories([parent])


def _remove_below(top: str) -> bool:
    for directory, _, _ in os.walk(top, topdown=False):
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno == errno.EBUSY:
                return False
            raise
    return True


def remove_directories(paths: list[str]) -> None:
    """Remove those of the directories that are empty groups."""
    for path in reversed(paths):
        try:
            os.rmdir(path)
        except OSError:
            continue


def _read(directory: str, name: str) -> str:
    with open(os.path.join(directory, name), "rb", buffering=0) as file:
        return file.readall().decode().strip()


def _write(directory: str, name: str, value: str) -> None:
    descriptor = os.open(os.path.join(directory, name), os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)


def own_paths(mountinfo: str, groups: Groups) -> Iterator[tuple[str, str]]:
    """Yield (mount point's name, the container's directory) of each v1 hierarchy."""
    points = mounted(mountinfo)
    seen: dict[str, str] = {}
    for controller, directory in groups["paths"].items():
        seen.setdefault(os.path.basename(points[controller]), directory)
    yield from seen.items()
