"""linux.resources as files of the v2 tree; what is said in v1's units is converted."""

from __future__ import annotations

import math
import os

from woodfrog.errors import SpecError, StateError, WoodfrogError
from woodfrog.runtime import cgroups
from woodfrog.runtime.cgroups.limits_v1 import (
    MOST_SHARES,
    device,
    rdma,
    warn_of_kernel_memory,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from woodfrog.runtime.cgroups.limits import Has, Resources, Settings, Warn

DEFAULT_PERIOD = 100_000

_THROTTLES = {
    "throttleReadBpsDevice": "rbps",
    "throttleWriteBpsDevice": "wbps",
    "throttleReadIOPSDevice": "riops",
    "throttleWriteIOPSDevice": "wiops",
}


def settings(resources: Resources, has: Has, warn: Warn) -> Settings:
    """Return what is to be written into which file, in this order; zeros ask for nothing."""
    found: Settings = []
    if limit := (resources.get("pids") or {}).get("limit"):
        found.append(("pids", "pids.max", _or_max(limit)))
    found += _memory(resources.get("memory") or {}, warn)
    found += _io(resources.get("blockIO") or {}, has)
    found += _cpu(resources.get("cpu") or {}, warn)
    for page in resources.get("hugepageLimits") or ():
        for kind in ("", "rsvd."):
            name = f"hugetlb.{page.get('pageSize')}.{kind}max"
            found.append(("hugetlb", name, str(page.get("limit") or 0)))
    network = resources.get("network") or {}
    for key in ("classID", "priorities"):
        if network.get(key):
            _warn_of_v1("network", key, warn)
    found += rdma(resources)
    return found


def _memory(memory: dict[str, Any], warn: Warn) -> Settings:
    warn_of_kernel_memory(memory, ("kernel", "kernelTCP"), warn)
    for name in ("swappiness", "disableOOMKiller"):
        if memory.get(name) and memory[name] != -1:
            _warn_of_v1("memory", name, warn)
    found: Settings = []
    if (swap := swap_alone(memory)) is not None:
        found.append(("memory", "memory.swap.max", _or_max(swap)))
    for key, name in (("limit", "max"), ("reservation", "low")):
        if memory.get(key):
            found.append(("memory", f"memory.{name}", _or_max(memory[key])))
    return found


def swap_alone(memory: dict[str, Any]) -> int | None:
    """Return the limit of swap, which the specification counts together with memory."""
    limit, swap = memory.get("limit") or 0, memory.get("swap") or 0
    if limit == -1 and not swap:
        return -1
    if not swap:
        return None
    if swap < 0:
        return -1
    if limit <= 0:
        raise SpecError("unable to set swap limit without memory limit")
    if swap < limit:
        raise SpecError("memory+swap limit should be >= memory limit")
    return int(swap - limit)


def check_usage(directory: str, memory: dict[str, Any]) -> None:
    """With checkBeforeUpdate, refuse limits that are below what is in use already."""
    if not memory.get("checkBeforeUpdate"):
        return
    try:
        usage = int(cgroups.read(directory, "memory.current"))
    except OSError:
        return
    for key, name in (("swap", "memory+swap"), ("limit", "memory")):
        if 0 < (memory.get(key) or 0) <= usage:
            raise StateError(f"rejecting {name} limit {memory[key]} <= usage {usage}")


def _io(io: dict[str, Any], has: Has) -> Settings:
    bfq = has("io", "io.bfq.weight")
    name = "io.bfq.weight" if bfq else "io.weight"
    found: Settings = []
    if io.get("weight"):
        found.append(("io", name, str(io["weight"] if bfq else io_weight(io["weight"]))))
    for entry in io.get("weightDevice") or ():
        if weight := entry.get("weight"):
            value = weight if bfq else io_weight(weight)
            found.append(("io", name, f"{device(entry)} {value}"))
    for key, name in _THROTTLES.items():
        for entry in io.get(key) or ():
            found.append(("io", "io.max", f"{device(entry)} {name}={entry.get('rate') or 'max'}"))
    return found


def _cpu(cpu: dict[str, Any], warn: Warn) -> Settings:
    for name in ("realtimePeriod", "realtimeRuntime"):
        if cpu.get(name):
            _warn_of_v1("cpu", name, warn)
    found: Settings = []
    if cpu.get("idle") is not None:
        found.append(("cpu", "cpu.idle", str(cpu["idle"])))
    if cpu.get("shares"):
        found.append(("cpu", "cpu.weight", str(cpu_weight(cpu["shares"]))))
    quota, period = cpu.get("quota"), cpu.get("period")
    if quota or period:
        amount = str(quota) if quota and quota > 0 else "max"
        found.append(("cpu", "cpu.max", f"{amount} {period or DEFAULT_PERIOD}"))
    if cpu.get("burst") is not None:
        found.append(("cpu", "cpu.max.burst", str(cpu["burst"])))
    for name in ("cpus", "mems"):
        if cpu.get(name):
            found.append(("cpuset", f"cpuset.{name}", cpu[name]))
    return found


def cpu_weight(shares: int) -> int:
    """Convert v1's shares (2 to 2^18, usually 1024) to a weight (1 to 10,000, usually 100).

    A curve through these three points, the one that other runtimes use, too.
    """
    if shares <= 2:
        return 1
    if shares >= MOST_SHARES:
        return 10_000
    logarithm = math.log2(shares)
    exponent = (logarithm * logarithm + 125 * logarithm) / 612 - 7 / 34
    return math.ceil(round(10**exponent, 9))


def io_weight(weight: int) -> int:
    """Convert v1's weight (10 to 1000) to v2's (1 to 10,000)."""
    return 1 + (weight - 10) * 9999 // 990


def unified(directory: str, resources: Resources) -> list[tuple[str, str]]:
    """Return the (file, value) pairs that are to be written as they are, line by line."""
    found = []
    for name, value in (resources.get("unified") or {}).items():
        check_unified_name(name)
        controller = name.partition(".")[0]
        if controller != "cgroup" and not os.path.exists(f"{directory}/{name}"):
            has = cgroups.read(directory, "cgroup.controllers").split()
            if controller not in has:
                raise WoodfrogError(
                    f"unified resource {name!r} can't be set: controller {controller!r} not"
                    " available"
                )
        found += [(name, line) for line in value.splitlines() if line.strip()]
    return found


def check_unified_name(name: str) -> None:
    """Raise SpecError unless it can be the name of a controller's file."""
    if "/" in name:
        raise SpecError(f"unified resource {name!r} must be a file name (no slashes)")
    if name.find(".") <= 0:
        raise SpecError(f"unified resource {name!r} must be in the form CONTROLLER.PARAMETER")


def _warn_of_v1(part: str, name: str, warn: Warn) -> None:
    warn(f"linux.resources.{part}.{name} needs cgroup v1 and has no effect")


def _or_max(value: int) -> str:
    return "max" if value < 0 else str(value)
