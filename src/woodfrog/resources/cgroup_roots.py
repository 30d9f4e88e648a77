"""Where namespaces of control groups begin (cgroup_namespaces(7))."""

import os
from collections.abc import Collection, Mapping

from woodfrog.errors import UnsupportedResource
from woodfrog.resources import namespaces

_UP = b"/.."


def collect(
    descriptor: int, init: int, tasks: Collection[int], places: Mapping[str, str]
) -> list[tuple[str, bytes]]:
    """Return where a namespace begins, other than at the container's own groups.

    By the hierarchies' names in `places`, below those. No file tells it: but who is in a group is
    shown by where that is from where one looks. `tasks` are the container's, by our ids.
    """
    with namespaces.within(descriptor, "cgroup"):
        there = {pid: _groups(pid) for pid in {init, *tasks}}
    with namespaces.inside(init, "cgroup"):
        here = {pid: _groups(pid) for pid in there}
    roots = []
    for hierarchy, at_home in here[init].items():
        if there[init].get(hierarchy) == at_home:
            continue
        root = next(filter(None, (_root(here[pid], there[pid], hierarchy) for pid in here)), None)
        names = hierarchy.split(",")
        name = next((one for one in places if one in names or f"name={one}" in names), None)
        if root is None or name is None:
            raise UnsupportedResource(
                "has a cgroup namespace that begins at another group than the container's own, with"
                " nobody in it, which cannot be saved"
            )
        roots.append((name, root))
    return roots


def _root(here: Mapping[str, bytes], there: Mapping[str, bytes], hierarchy: str) -> bytes | None:
    """Return a namespace's root by somebody's group, seen from the container and from there."""
    path, inner = here.get(hierarchy, b""), there.get(hierarchy, b"")
    inner = b"" if inner == b"/" else inner
    if inner.startswith(_UP) or path.startswith(_UP) or not path.endswith(inner):
        return None
    return path[: len(path) - len(inner)].lstrip(b"/") or None


def _groups(pid: int) -> dict[str, bytes]:
    """Return a task's groups by the controllers of their hierarchies."""
    try:
        with open(f"/proc/{pid}/cgroup", "rb") as file:
            lines = [line.rstrip(b"\n").split(b":", 2) for line in file]
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {os.fsdecode(controllers): path for _, controllers, path in lines}
