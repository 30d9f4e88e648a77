"""linux.resources, turned into what is to be written into which cgroup file."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Settings = list[tuple[str, str, str]]  # controller, file, value

# What every container may use: making nodes, the default devices, pseudo-terminals.
_ALWAYS_ALLOWED: tuple[dict[str, Any], ...] = (
    {"allow": True, "type": "c", "access": "m"},
    {"allow": True, "type": "b", "access": "m"},
    *(
        {"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"}
        for major, minor in ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, None))
    ),
)


def device_rules(resources: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rules about devices, the last that fits decides; none if none are asked for."""
    rules = resources.get("devices") or []
    return [*rules, *_ALWAYS_ALLOWED] if rules else []


def v1(resources: dict[str, Any], warnings: list[str]) -> Settings:
    """Return the files of a v1 tree, in the order in which they must be written."""
    memory, cpu = resources.get("memory") or {}, resources.get("cpu") or {}
    settings: Settings = []

    def add(controller: str, name: str, value: object) -> None:
        if value not in (None, "", 0):
            settings.append((controller, name, str(value)))

    settings += [("devices", *_device_rule(rule)) for rule in device_rules(resources)]
    limit, swap = memory.get("limit"), memory.get("swap")
    # Here swap counts memory and swap together; it must never be below the limit, not even for
    # the moment between two writes. A new group has no limits, so the smaller goes first.
    add("memory", "memory.limit_in_bytes", limit)
    add("memory", "memory.memsw.limit_in_bytes", swap)
    add("memory", "memory.soft_limit_in_bytes", memory.get("reservation"))
    if memory.get("swappiness") is not None:
        settings.append(("memory", "memory.swappiness", str(memory["swappiness"])))
    if memory.get("disableOOMKiller"):
        settings.append(("memory", "memory.oom_control", "1"))
    add("cpu", "cpu.shares", cpu.get("shares"))
    add("cpu", "cpu.cfs_period_us", cpu.get("period"))
    add("cpu", "cpu.cfs_quota_us", cpu.get("quota"))
    add("cpu", "cpu.cfs_burst_us", cpu.get("burst"))
    add("cpu", "cpu.idle", cpu.get("idle"))
    add("cpuset", "cpuset.cpus", cpu.get("cpus"))
    add("cpuset", "cpuset.mems", cpu.get("mems"))
    _add_pids(resources, settings)
    for name in resources.get("unified") or {}:
        warnings.append(f"linux.resources.unified[{name}] needs cgroup v2 and has no effect")
    return settings


def v2(resources: dict[str, Any], warnings: list[str]) -> Settings:
    """Return the files of a v2 tree; v1's units are converted."""
    memory, cpu = resources.get("memory") or {}, resources.get("cpu") or {}
    settings: Settings = []
    limit, swap = memory.get("limit"), memory.get("swap")
    if limit:
        settings.append(("memory", "memory.max", _or_max(limit)))
    if swap:
        # v1's number, which the specification has, includes memory; v2's doesn't.
        alone = swap - limit if swap > 0 and limit and limit > 0 else swap
        settings.append(("memory", "memory.swap.max", "0" if alone == 0 else _or_max(alone)))
    if reservation := memory.get("reservation"):
        settings.append(("memory", "memory.low", _or_max(reservation)))
    for name in ("swappiness", "disableOOMKiller"):
        if memory.get(name):
            warnings.append(f"linux.resources.memory.{name} needs cgroup v1 and has no effect")
    if shares := cpu.get("shares"):
        settings.append(("cpu", "cpu.weight", str(1 + ((shares - 2) * 9999) // 262142)))
    if cpu.get("idle"):
        settings.append(("cpu", "cpu.idle", str(cpu["idle"])))
    quota, period = cpu.get("quota"), cpu.get("period")
    if quota or period:
        amount = str(quota) if quota and quota > 0 else "max"
        settings.append(("cpu", "cpu.max", f"{amount} {period or 100000}"))
    if cpu.get("burst"):
        settings.append(("cpu", "cpu.max.burst", str(cpu["burst"])))
    for name in ("cpus", "mems"):
        if cpu.get(name):
            settings.append(("cpuset", f"cpuset.{name}", cpu[name]))
    _add_pids(resources, settings)
    for name, value in (resources.get("unified") or {}).items():
        if "/" in name or "." not in name:
            warnings.append(f"linux.resources.unified[{name}] is no cgroup file and has no effect")
            continue
        settings.append((name.partition(".")[0], name, value))
    return settings


def _add_pids(resources: dict[str, Any], settings: Settings) -> None:
    limit = (resources.get("pids") or {}).get("limit")
    if limit:
        settings.append(("pids", "pids.max", _or_max(limit)))


def _or_max(value: int) -> str:
    return "max" if value < 0 else str(value)


def _device_rule(rule: dict[str, Any]) -> tuple[str, str]:
    kind = rule.get("type") or "a"
    numbers = [
        "*" if rule.get(name) in (None, -1) else str(rule[name]) for name in ("major", "minor")
    ]
    access = rule.get("access") or "rwm"
    value = "a" if kind == "a" else f"{kind} {':'.join(numbers)} {access}"
    return ("devices.allow" if rule.get("allow") else "devices.deny"), value
