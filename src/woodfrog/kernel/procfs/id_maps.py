"""/proc/PID/uid_map and gid_map: which ids outside those inside a user namespace are."""

from __future__ import annotations

Run = tuple[int, int, int]


class IdMap:
    """One map: runs of ids, each as (first inside, first outside, how many)."""

    def __init__(self, runs: list[Run]) -> None:
        self.runs = sorted(runs)

    @classmethod
    def of_text(cls, text: str) -> IdMap:
        """Return the map that a file uid_map or gid_map tells."""
        runs = []
        for line in text.splitlines():
            inside, outside, size = map(int, line.split())
            runs.append((inside, outside, size))
        return cls(runs)

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

    def inside(self, outside: int) -> int | None:
        """Return what an id outside is inside, or None if it has no meaning there."""
        for first_inside, first, size in self.runs:
            if first <= outside < first + size:
                return first_inside + outside - first
        return None

    def seen_from(self, within: IdMap) -> IdMap:
        """Return this map with outside ids as those inside of another one, as far as that has them.

        Both tell the same ids outside.
        """
        runs = []
        for inside, outside, size in self.runs:
            for other_inside, other_outside, other_size in within.runs:
                first = max(outside, other_outside)
                end = min(outside + size, other_outside + other_size)
                if first < end:
                    moved = other_inside + first - other_outside
                    runs.append((inside + first - outside, moved, end - first))
        return IdMap(runs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IdMap) and self.runs == other.runs

    def __hash__(self) -> int:
        return hash(tuple(self.runs))


class IdMaps:
    """The maps of users and of groups."""

    def __init__(self, users: IdMap, groups: IdMap) -> None:
        self.users = users
        self.groups = groups

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, IdMaps) and self.users == other.users and self.groups == other.groups
        )

    def __hash__(self) -> int:
        return hash((self.users, self.groups))


def read_id_maps(pid: int) -> IdMaps:
    """Return the maps of a process's user namespace."""
    texts = []
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/{pid}/{name}", "rb", buffering=0) as file:
            texts.append(file.readall().decode())
    return IdMaps(*map(IdMap.of_text, texts))
