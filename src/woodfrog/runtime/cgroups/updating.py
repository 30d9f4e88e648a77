"""Changing the limits of a container: only what is asked for is set, and the rest is kept."""

from __future__ import annotations

from woodfrog.runtime import lifecycle
from woodfrog.runtime.cgroups import limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from woodfrog.runtime.cgroups.limits import Resources, Warn
    from woodfrog.runtime.state import Container

# Lists whose entries are about something each: a new entry takes the old one's place.
_KEYS = {
    "weightDevice": ("major", "minor"),
    "throttleReadBpsDevice": ("major", "minor"),
    "throttleWriteBpsDevice": ("major", "minor"),
    "throttleReadIOPSDevice": ("major", "minor"),
    "throttleWriteIOPSDevice": ("major", "minor"),
    "hugepageLimits": ("pageSize",),
    "priorities": ("name",),
}


def update(container: Container, asked: Resources, warn: Warn) -> None:
    """Set the limits that are asked for, now and in the container's state (its lock is held)."""
    container.require("update")
    stored = resources_of(container)
    if not asked.get("devices") or asked["devices"] == stored.get("devices"):
        # Engines give back all that they know. Rules that others have added since stay.
        asked = {part: value for part, value in asked.items() if part != "devices"}
    groups, wanted = container.state["cgroup"], complete(asked, stored)
    if "unit" in groups:
        from woodfrog.runtime.cgroups import systemd

        systemd.update(groups, wanted, warn)
    else:
        limits.apply(groups, wanted, warn)
    container.state["resources"] = merged(stored, asked)
    container.save()


def resources_of(container: Container) -> Resources:
    """Return the resources as they were set last."""
    if "resources" in container.state:
        found: Resources = container.state["resources"]
        return found
    config = lifecycle.config_of(container)
    return (config.get("linux") or {}).get("resources") or {}


def merged(old: Resources, new: Resources) -> Resources:
    """Return the old resources with the new ones in them; null asks for nothing."""
    found = dict(old)
    for name, value in new.items():
        before = old.get(name)
        if value is None or name == "checkBeforeUpdate":
            continue
        if isinstance(value, dict):
            found[name] = merged(before or {}, value)
        elif name in _KEYS:
            found[name] = _replaced(before or [], value, _KEYS[name])
        else:
            found[name] = value
    memory = new.get("memory") or {}
    if memory.get("limit") == -1 and not memory.get("swap"):
        found["memory"].pop("swap", None)  # it went with the limit
    return found


def _replaced(
    old: list[dict[str, Any]], new: list[dict[str, Any]], keys: tuple[str, ...]
) -> list[dict[str, Any]]:
    found = {tuple(entry.get(key) for key in keys): entry for entry in old}
    for entry in new:
        key = tuple(entry.get(key) for key in keys)
        found[key] = found.get(key, {}) | entry
    return list(found.values())


def complete(asked: Resources, stored: Resources) -> Resources:
    """Return what is asked for, with the other half of what is set only as a whole."""
    found = dict(asked)
    cpu, old = asked.get("cpu") or {}, stored.get("cpu") or {}
    for one, other in (("quota", "period"), ("period", "quota")):
        if cpu.get(one) and not cpu.get(other) and old.get(other):
            found["cpu"] = cpu | {other: old[other]}
    memory, old = asked.get("memory") or {}, stored.get("memory") or {}
    limit, swap = memory.get("limit"), memory.get("swap")
    if swap and not limit and old.get("limit"):
        found["memory"] = memory | {"limit": old["limit"]}
    elif limit and limit != -1 and not swap and old.get("swap"):
        found["memory"] = memory | {"swap": old["swap"]}
    return found
