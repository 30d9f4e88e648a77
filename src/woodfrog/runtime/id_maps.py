"""Maps between the user and group ids inside a user namespace and those outside."""

from __future__ import annotations

from woodfrog.errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class IdMap:
    """One map: runs of ids, each as (first inside, first outside, how many)."""

    def __init__(self, runs: list[tuple[int, int, int]]) -> None:
        self.runs = sorted(runs)

    @classmethod
    def of_config(cls, entries: list[dict[str, Any]], where: str) -> IdMap:
        """Return the map that a list of the config's describes."""
        runs = []
        for position, entry in enumerate(entries):
            run = tuple(entry.get(name) or 0 for name in ("containerID", "hostID", "size"))
            inside, outside, size = run
            if size < 1 or min(run) < 0 or max(inside, outside) + size > 1 << 32:
                raise SpecError(f"{where}[{position}] maps {size} ids from {inside} to {outside}")
            runs.append((inside, outside, size))
        return cls(runs)

    @classmethod
    def of_text(cls, text: str) -> IdMap:
        """Return the map that a file uid_map or gid_map tells."""
        return cls([tuple(map(int, line.split())) for line in text.splitlines()])  # type: ignore[misc]

    @property
    def text(self) -> bytes:
        """What is written to uid_map or gid_map."""
        return "".join(
            f"{inside} {outside} {size}\n" for inside, outside, size in self.runs
        ).encode()

    def outside(self, inside: int) -> int | None:
        """Return what an id inside is outside, or None if it has no meaning there."""
        for first, first_outside, size in self.runs:
            if first <= inside < first + size:
                return first_outside + inside - first
        return None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IdMap) and self.runs == other.runs

    def __hash__(self) -> int:
        return hash(tuple(self.runs))


class IdMaps:
    """The maps of users and of groups."""

    def __init__(self, users: IdMap, groups: IdMap) -> None:
        self.users = users
        self.groups = groups

    @classmethod
    def of_config(cls, holder: dict[str, Any], where: str) -> IdMaps | None:
        """Return what `uidMappings` and `gidMappings` of an object say, if they say anything."""
        users, groups = holder.get("uidMappings") or [], holder.get("gidMappings") or []
        if not users and not groups:
            return None
        if not users or not groups:
            raise SpecError(f"{where}: of uidMappings and gidMappings, only one is given")
        return cls(
            IdMap.of_config(users, f"{where}.uidMappings"),
            IdMap.of_config(groups, f"{where}.gidMappings"),
        )

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, IdMaps) and self.users == other.users and self.groups == other.groups
        )

    def __hash__(self) -> int:
        return hash((self.users, self.groups))

    @property
    def root(self) -> tuple[int, int]:
        """The ids (user, group) outside of root inside."""
        user, group = self.users.outside(0), self.groups.outside(0)
        if user is None or group is None:
            raise SpecError(
                "the user namespace maps no root: container uid and gid 0 must be mapped",
                hint="add them to linux.uidMappings and linux.gidMappings",
            )
        return user, group
