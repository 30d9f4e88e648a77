"""What systemd is told about a container: its unit's name, place and properties."""

from __future__ import annotations

from woodfrog.errors import SpecError
from woodfrog.runtime.cgroups import limits_v2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from woodfrog.runtime.cgroups.dbus import Typed
    from woodfrog.runtime.cgroups.limits import Resources, Warn

    Property = tuple[str, Typed]

INFINITY = (1 << 64) - 1
SECOND = 1_000_000  # microseconds
DEFAULT_SLICE = "system.slice"


def parse_path(cgroups_path: str, id: str) -> tuple[str, str]:
    """Return the (slice, unit) that a cgroupsPath of the form slice:prefix:name asks for."""
    if not cgroups_path:
        return DEFAULT_SLICE, f"woodfrog-{id}.scope"
    parts = cgroups_path.split(":")
    if len(parts) != 3 or "/" in cgroups_path:
        raise SpecError(
            'expected cgroupsPath to be of format "slice:prefix:name" for systemd cgroups, got'
            f' "{cgroups_path}" instead',
            hint="without --systemd-cgroup, it is a path",
        )
    slice, prefix, name = parts
    if not name:
        raise SpecError(f'linux.cgroupsPath "{cgroups_path}" has no name')
    if name.endswith(".slice"):
        unit = name
    else:
        unit = f"{prefix}-{name}.scope" if prefix else f"{name}.scope"
    return slice or DEFAULT_SLICE, unit


def slice_path(slice: str) -> str:
    """Return where a slice is: a-b.slice is in /a.slice/a-b.slice."""
    name = slice.removesuffix(".slice")
    if name == slice or "/" in slice or not name:
        raise SpecError(f"invalid slice name: {slice}")
    if name == "-":
        return ""
    words = name.split("-")
    if not all(words):
        raise SpecError(f"invalid slice name: {slice}")
    return "".join(f"/{'-'.join(words[: end + 1])}.slice" for end in range(len(words)))


def of_unit(slice: str, unit: str, pid: int, version: int) -> list[Property]:
    """Return what makes a unit of a process, with everything in it counted."""
    place: Property = ("Slice", ("s", slice))
    if unit.endswith(".slice"):
        place = ("Wants", ("as", [slice]))
    found: list[Property] = [
        ("Description", ("s", f"container {unit.rpartition('.')[0]}")),
        place,
        ("PIDs", ("au", [pid])),
        ("DefaultDependencies", ("b", False)),
    ]
    if unit.endswith(".scope"):
        found.append(("Delegate", ("b", True)))
    for what in ("Memory", "CPU", "IO" if version == 2 else "BlockIO", "Tasks"):
        found.append((f"{what}Accounting", ("b", True)))
    return found


def of_resources(resources: Resources, version: int, warn: Warn) -> list[Property]:
    """Return the limits that systemd knows about, so that it won't undo them."""
    memory, cpu = resources.get("memory") or {}, resources.get("cpu") or {}
    found: list[Property] = []

    def add(name: str, value: int | None) -> None:
        if value:
            found.append((name, ("t", INFINITY if value < 0 else value)))

    if resources.get("devices"):
        found += _of_devices(resources["devices"])
    add("MemoryMax" if version == 2 else "MemoryLimit", memory.get("limit"))
    if version == 2:
        add("MemoryLow", memory.get("reservation"))
        if (swap := limits_v2.swap_alone(memory)) is not None:
            found.append(("MemorySwapMax", ("t", INFINITY if swap < 0 else swap)))
        found += _weight(cpu.get("shares") and limits_v2.cpu_weight(cpu["shares"]), cpu, warn)
    else:
        add("CPUShares", cpu.get("shares"))
        add("BlockIOWeight", (resources.get("blockIO") or {}).get("weight"))
    found += _quota(cpu.get("quota") or 0, cpu.get("period") or 0)
    add("TasksMax", (resources.get("pids") or {}).get("limit"))
    for name, mask in (("cpus", "AllowedCPUs"), ("mems", "AllowedMemoryNodes")):
        if cpu.get(name):
            found.append((mask, ("ay", bits(cpu[name], f"linux.resources.cpu.{name}"))))
    return found + _of_unified(resources.get("unified") or {}, warn)


def _weight(weight: int | None, cpu: dict[str, Any], warn: Warn) -> list[Property]:
    if cpu.get("idle") == 1:
        if weight:
            warn("unable to apply both CPUWeight and CpuIdle to systemd, ignoring CPUWeight")
        return [("CPUWeight", ("t", 0))]  # systemd's word for idle
    return [("CPUWeight", ("t", weight))] if weight else []


def _quota(quota: int, period: int) -> list[Property]:
    found: list[Property] = []
    if period:
        found.append(("CPUQuotaPeriodUSec", ("t", period)))
    if quota or period:
        most = INFINITY
        if quota > 0:
            most = per_second(quota, period or limits_v2.DEFAULT_PERIOD)
        found.append(("CPUQuotaPerSecUSec", ("t", most)))
    return found


def per_second(quota: int, period: int) -> int:
    """Return the microseconds per second that a quota comes to with systemd.

    It counts in percent of a CPU. They are rounded up, so that groups inside can have all of it.
    """
    percent = SECOND // 100
    return -(-(quota * SECOND // period) // percent) * percent


def bits(ranges: str, where: str) -> bytes:
    """Return a list such as 0-2,9 as a mask, the lowest numbers in the first byte."""
    mask = 0
    for part in ranges.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise SpecError(f"{where} is {ranges!r}, and should be a list such as 0-2,9")
        for number in range(int(first), min(int(last or first), 1 << 16) + 1):
            mask |= 1 << number
    return mask.to_bytes(max(1, (mask.bit_length() + 7) // 8), "little")


_NUMBERS = {
    "memory.high": "MemoryHigh",
    "memory.low": "MemoryLow",
    "memory.min": "MemoryMin",
    "memory.max": "MemoryMax",
    "memory.swap.max": "MemorySwapMax",
    "pids.max": "TasksMax",
}
_MASKS = {"cpuset.cpus": "AllowedCPUs", "cpuset.mems": "AllowedMemoryNodes"}


def _of_unified(unified: dict[str, str], warn: Warn) -> list[Property]:
    found: list[Property] = []
    for name, text in unified.items():
        limits_v2.check_unified_name(name)
        value = text.strip()
        if name in _NUMBERS:
            number = INFINITY if value == "max" else _number(name, value)
            found.append((_NUMBERS[name], ("t", number)))
        elif name in _MASKS:
            found.append((_MASKS[name], ("ay", bits(value, f"linux.resources.unified[{name}]"))))
        elif name == "cpu.max":
            quota, *period = value.split()
            found += _quota(
                -1 if quota == "max" else _number(name, quota),
                _number(name, period[0]) if period else limits_v2.DEFAULT_PERIOD,
            )
        elif name == "cpu.weight":
            idle = {"idle": 1} if unified.get("cpu.idle", "").strip() == "1" else {}
            found += _weight(_number(name, value), idle, warn)
        elif name == "cpu.idle" and value == "1" and "cpu.weight" not in unified:
            found += _weight(None, {"idle": 1}, warn)
    return found


def of_start(resources: Resources) -> list[Property]:
    """Return what systemd takes only when it starts a unit."""
    group = (resources.get("unified") or {}).get("memory.oom.group", "").strip()
    if not group:
        return []
    return [("OOMPolicy", ("s", "kill" if group == "1" else "continue"))]


def _number(name: str, text: str) -> int:
    if not text.isdigit():
        raise SpecError(f"unified resource {name!r} value conversion error: {text!r}")
    return int(text)


def _of_devices(entries: list[dict[str, Any]]) -> list[Property]:
    """Return the rules that systemd can express; ours are set besides, and decide."""
    from woodfrog.runtime.cgroups import devices

    allowance = devices.allowance(devices.rules(entries))
    if allowance.allow:
        return [("DevicePolicy", ("s", "auto")), ("DeviceAllow", ("a(ss)", []))]
    allowed = []
    for (kind, major, minor), access in allowance.exceptions.items():
        group = "block" if kind == "b" else "char"
        letters = "".join(letter for letter in "rwm" if letter in access)
        if not letters or (major is None and minor is not None):
            continue
        if major is None:
            allowed.append((f"{group}-*", letters))
        elif minor is None:
            allowed.append((f"{group}-{major}", letters))
        else:
            allowed.append((f"/dev/{group}/{major}:{minor}", letters))
    return [
        ("DevicePolicy", ("s", "strict")),
        ("DeviceAllow", ("a(ss)", [])),  # empty it first
        ("DeviceAllow", ("a(ss)", allowed)),
    ]
