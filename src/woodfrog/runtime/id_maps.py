"""The id mappings of a config."""

from __future__ import annotations

from woodfrog.errors import SpecError
from woodfrog.kernel.procfs.id_maps import IdMap, IdMaps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def of_config(holder: dict[str, Any], where: str) -> IdMaps | None:
    """Return what `uidMappings` and `gidMappings` of an object say, if they say anything."""
    users, groups = holder.get("uidMappings") or [], holder.get("gidMappings") or []
    if not users and not groups:
        return None
    if not users or not groups:
        raise SpecError(f"{where}: of uidMappings and gidMappings, only one is given")
    return IdMaps(_map(users, f"{where}.uidMappings"), _map(groups, f"{where}.gidMappings"))


def _map(entries: list[dict[str, Any]], where: str) -> IdMap:
    runs = []
    for position, entry in enumerate(entries):
        inside, outside = entry.get("containerID") or 0, entry.get("hostID") or 0
        size = entry.get("size") or 0
        if size < 1 or min(inside, outside) < 0 or max(inside, outside) + size > 1 << 32:
            raise SpecError(f"{where}[{position}] maps {size} ids from {inside} to {outside}")
        runs.append((inside, outside, size))
    return IdMap(runs)


def root(maps: IdMaps) -> tuple[int, int]:
    """Return the ids (user, group) outside of root inside."""
    user, group = maps.users.outside(0), maps.groups.outside(0)
    if user is None or group is None:
        raise SpecError(
            "the user namespace maps no root: container uid and gid 0 must be mapped",
            hint="add them to linux.uidMappings and linux.gidMappings",
        )
    return user, group
