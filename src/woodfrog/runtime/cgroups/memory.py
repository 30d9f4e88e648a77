"""How much memory a container may still use."""

from __future__ import annotations

from woodfrog.runtime import cgroups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from woodfrog.runtime.cgroups import Groups

# (limit, use): of v2, and of v1, where "no limit" is a number that no machine has.
_FILES = {
    2: ("memory.max", "memory.current"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes"),
}
_NO_LIMIT = 1 << 60


def memory_room(groups: Groups) -> int | None:
    """Return how many bytes are left below the group's own limit; None if it has none."""
    version = groups["version"]
    directory = groups["paths"].get("memory" if version == 1 else "")
    if directory is None:
        return None
    limit, use = _FILES[version]
    try:
        most = cgroups.read(directory, limit)
        if most == "max" or int(most) >= _NO_LIMIT:
            return None
        return max(int(most) - int(cgroups.read(directory, use)), 0)
    except FileNotFoundError:
        return None  # the controller isn't there
