"""Where a container's groups are: the hierarchies that are mounted, and a path in each."""

from __future__ import annotations

import os

from woodfrog.errors import SpecError, UsageError, WoodfrogError
from woodfrog.runtime.cgroups import OUR_PARENT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from woodfrog.runtime.cgroups import Groups

# What may stand among the options of a v1 mount and is no controller.
_NO_CONTROLLERS = ("rw", "ro", "xattr", "none", "clone_children", "noprefix", "cpuset_v2_mode")


def here() -> str:
    """Return the mounts of our own mount namespace, as mountinfo has them."""
    with open("/proc/self/mountinfo", "rb", buffering=0) as file:
        return os.fsdecode(file.readall())


def of_container(cgroups_path: str, id: str) -> Groups:
    """Return which groups a container gets on this host."""
    with open("/proc/self/cgroup", "rb", buffering=0) as file:
        own = os.fsdecode(file.readall())
    return plan(cgroups_path, id, here(), own)


def mounted(mountinfo: str) -> dict[str, str]:
    """Return the mount point of each v1 controller, and under "" that of the v2 tree."""
    return {name: point for name, (_, point) in _hierarchies(mountinfo).items()}


def _hierarchies(mountinfo: str) -> dict[str, tuple[str, str]]:
    """Return each controller's (mounted directory of the hierarchy, mount point)."""
    found: dict[str, tuple[str, str]] = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        if not right.startswith("cgroup"):
            continue
        root, point = (field.replace("\\040", " ") for field in left.split()[3:5])
        kind, _, options = right.split()
        if kind == "cgroup2":
            found.setdefault("", (root, point))
        else:
            for name in options.split(","):
                if name not in _NO_CONTROLLERS and not name.startswith("release_agent="):
                    found.setdefault(name, (root, point))
    return found


def plan(cgroups_path: str, id: str, mountinfo: str, own: str = "") -> Groups:
    """Return which groups a container gets; v1 controllers win over a v2 tree beside them.

    A relative path starts at our own groups, which /proc/self/cgroup (`own`) tells.
    """
    if ".." in cgroups_path.split("/"):
        raise SpecError(f"linux.cgroupsPath must not contain '..': {cgroups_path!r}")
    if ":" in cgroups_path and "/" not in cgroups_path:
        raise SpecError(
            f"linux.cgroupsPath is {cgroups_path!r}: the form slice:prefix:name is for systemd",
            hint="give --systemd-cgroup, or a path",
        )
    if not cgroups_path.strip("/"):
        cgroups_path = f"{OUR_PARENT}/{id}"
    inside = os.path.normpath("/" + cgroups_path.lstrip("/"))
    hierarchies = _hierarchies(mountinfo)
    if cgroups_path.startswith("/"):
        tops = {name: point for name, (_, point) in hierarchies.items()}
    else:
        tops = _own_directories(hierarchies, own)
    return at({name: top + inside for name, top in tops.items()})


def at(paths: dict[str, str]) -> Groups:
    """Return the groups with these directories: v1's, if there are any, and v2's beside them."""
    if not paths:
        raise WoodfrogError(
            "no cgroup file system is mounted",
            hint="mount one at /sys/fs/cgroup; in a container? start it with --privileged",
        )
    return {"version": 2 if list(paths) == [""] else 1, "paths": paths}


def _own_directories(hierarchies: dict[str, tuple[str, str]], own: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers and "/" in path.strip("/"):
            # Our own v2 group holds processes, so that it can't have groups with controllers.
            path = os.path.dirname(path)
        elif not controllers:
            path = "/"
        for name in controllers.split(","):
            if name in hierarchies:
                root, point = hierarchies[name]
                # Without a cgroup namespace, the path is that of the host, and so is the root.
                below = path.removeprefix(root) if root != "/" else path
                found[name] = (point + "/" + below.strip("/")).rstrip("/")
    return found


def below(groups: Groups, asked: list[str]) -> Groups:
    """Return the groups inside the container's that PATH, or CONTROLLER[,…]:PATH, name."""
    paths: dict[str, str] = dict(groups["paths"])
    seen: set[str] = set()
    for text in asked:
        controllers, colon, path = text.rpartition(":")
        if not colon and len(asked) > 1:
            raise UsageError(f"invalid --cgroup argument: {text} (missing <controller>: prefix)")
        for controller in controllers.split(",") if colon else list(paths):
            if controller in seen:
                raise UsageError(
                    f"invalid --cgroup argument(s): controller {controller} specified multiple"
                    " times"
                )
            if controller not in paths or (colon and not controller):
                raise UsageError(f"--cgroup: unknown controller {controller}")
            seen.add(controller)
            top = paths[controller]
            paths[controller] = os.path.normpath(f"{top}/{path}")
            if not f"{paths[controller]}/".startswith(f"{top}/"):
                raise UsageError(f"--cgroup: {path} is not a sub cgroup path")
    return groups | {"paths": paths}


def of_hierarchies(mountinfo: str, groups: Groups) -> dict[str, str]:
    """Return the directory of each v1 hierarchy, by the name of its mount point."""
    points = mounted(mountinfo)
    found: dict[str, str] = {}
    for controller, directory in groups["paths"].items():
        if controller:
            found.setdefault(os.path.basename(points[controller]), directory)
    return found


def group_of_init(init: int, top: str) -> str:
    """Return the directory of version 2's group that a container's first process is in now.

    It is `top`, the container's own, or below; programs name those as they like.
    """
    with open(f"/proc/{init}/cgroup", "rb", buffering=0) as file:
        lines = file.readall().split(b"\n")
    inside = next((os.fsdecode(line[3:]) for line in lines if line.startswith(b"0::/")), "")
    directory = mounted(here())[""] + inside
    if not f"{directory}/".startswith(f"{top}/"):
        raise WoodfrogError(
            f"the container's first process is in {directory}, not in its own cgroup"
        )
    return directory
