"""Setting what linux.resources asks for: as files of the groups, and as rules about devices."""

from __future__ import annotations

import errno
import os

from woodfrog.errors import SpecError, WoodfrogError
from woodfrog.runtime import cgroups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from woodfrog.runtime.cgroups import Groups

    Resources = dict[str, Any]
    Settings = list[tuple[str, str, str]]  # controller, file, value; in the order of writing
    Has = Callable[[str, str], bool]  # is there this file of this controller
    Warn = Callable[[str], None]

# Each part of the resources, and the controllers that serve it in v1 and in v2. (cpu has two.)
_CONTROLLERS = {
    "memory": ("memory", "memory"),
    "pids": ("pids", "pids"),
    "blockIO": ("blkio", "io"),
    "hugepageLimits": ("hugetlb", "hugetlb"),
    "rdma": ("rdma", "rdma"),
}


def apply(groups: Groups, resources: Resources, warn: Warn) -> None:
    """Set the limits that the resources ask for, and the rules about devices."""
    paths = groups["paths"]
    if groups["version"] == 1:
        if resources.get("unified"):
            raise SpecError(
                "invalid configuration: cannot use unified on cgroup v1",
                hint="linux.resources.unified needs a host with cgroup v2 alone",
            )
        ours, unified = _split(groups, resources)
        _apply_v1(paths, ours, warn)
        if unified:
            _apply_v2(paths[""], unified, warn)
    else:
        _apply_v2(paths[""], resources, warn)
    if resources.get("devices"):
        from woodfrog.runtime.cgroups import devices

        devices.limit(groups, resources["devices"])


def _split(groups: Groups, resources: Resources) -> tuple[Resources, Resources]:
    """Return what v1 does, and what the v2 tree beside it does since v1 lacks the controller."""
    paths = groups["paths"]
    in_v2 = [
        part
        for part, (controller, unified) in _CONTROLLERS.items()
        if resources.get(part)
        and controller not in paths
        and "" in paths
        and _hands_down(paths[""], unified)
    ]
    ours = {part: value for part, value in resources.items() if part not in in_v2}
    return ours, {part: resources[part] for part in in_v2}


def _hands_down(directory: str, controller: str) -> bool:
    """Tell whether the group has the controller; if its parents have it, they hand it down."""
    cgroups.enable_controllers(directory, [controller])
    return controller in cgroups.read(directory, "cgroup.controllers").split()


def _apply_v1(paths: dict[str, str], resources: Resources, warn: Warn) -> None:
    from woodfrog.runtime.cgroups.limits_v1 import settings

    def has(controller: str, name: str) -> bool:
        return controller in paths and os.path.exists(f"{paths[controller]}/{name}")

    files = []
    for controller, name, value in settings(resources, has, warn):
        if controller not in paths:
            raise WoodfrogError(
                f"cannot set {controller} limit: no {controller} cgroup is mounted",
                hint=f"{name} can't be set; take the limit out of linux.resources",
            )
        files.append((paths[controller], name, value))
    _write_all(files)


def _apply_v2(directory: str, resources: Resources, warn: Warn) -> None:
    from woodfrog.runtime.cgroups.limits_v2 import check_usage, settings, unified

    def has(controller: str, name: str) -> bool:
        return os.path.exists(f"{directory}/{name}")

    check_usage(directory, resources.get("memory") or {})
    _write_all([(directory, name, value) for _, name, value in settings(resources, has, warn)])
    for name, value in unified(directory, resources):
        try:
            cgroups.write(directory, name, value)
        except OSError as error:
            raise WoodfrogError(
                f"unable to set unified resource {name!r}: {error.strerror}"
            ) from None


def _write_all(files: list[tuple[str, str, str]]) -> None:
    # The kernel refuses what contradicts another value that is still the old one: a memory limit
    # above that of memory and swap, a period in which the old quota is too much. Then the other
    # comes first.
    again = [file for file in files if not _write(*file, may_refuse=True)]
    for file in again:
        _write(*file, may_refuse=False)


def _write(directory: str, name: str, value: str, *, may_refuse: bool) -> bool:
    try:
        cgroups.write(directory, name, value)
    except FileNotFoundError:
        if _is_needless(name, value):
            return True
        controller = name.partition(".")[0]
        raise WoodfrogError(
            f"cannot set {name}: this kernel's {controller} cgroup doesn't have it",
            hint="take the limit out of linux.resources",
        ) from None
    except OSError as error:
        if error.errno == errno.EINVAL and may_refuse:
            return False
        if error.errno == errno.EBUSY and name == "memory.limit_in_bytes":
            usage = cgroups.read(directory, "memory.usage_in_bytes")
            peak = cgroups.read(directory, "memory.max_usage_in_bytes")
            raise WoodfrogError(
                f"unable to set memory limit to {value} (current usage: {usage}, peak usage:"
                f" {peak})"
            ) from None
        raise WoodfrogError(f"cannot set {name} to {value}: {error.strerror}") from None
    return True


def _is_needless(name: str, value: str) -> bool:
    """Tell whether a missing file changes nothing: what it would limit isn't there, either."""
    if ".rsvd." in name:  # since Linux 5.7; the limit of what is used is set, too
        return True
    no_swap_limit = {"memory.memsw.limit_in_bytes": ("-1",), "memory.swap.max": ("max", "0")}
    return value in no_swap_limit.get(name, ())
