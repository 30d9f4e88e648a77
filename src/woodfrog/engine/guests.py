"""Processes of other containers, which have joined a container's pid namespace."""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress

from woodfrog.errors import UnsupportedResource
from woodfrog.remote.held import Held, HeldProcess


def refuse(tree: Held, init: int, groups: Iterable[tuple[str, str]]) -> None:
    """Refuse a held container whose pid namespace another one has joined.

    Its first process has no parent inside, as what `exec` brings in has none. But that is in the
    container's cgroups, of which `groups` are the directories, or sees the container's mounts.
    """
    mounts = os.readlink(f"/proc/{init}/ns/mnt")
    inside = {one.group for one in tree.processes}
    guests = [
        one
        for one in tree.processes
        if one.leader.stat.parent not in inside
        and one.namespace_pid != 1
        and os.readlink(f"{one.path}/ns/mnt") != mounts
    ]
    directories = [directory for _, directory in groups]
    if guests and directories:
        _refuse_first(guests, {pid for one in directories for pid in _members(one)})


def _refuse_first(guests: list[HeldProcess], members: set[int]) -> None:
    for guest in guests:
        if guest.group not in members:
            raise UnsupportedResource(
                f"{guest.name} is of another container, which has joined the pid namespace of this"
                " one, or has come from outside; what shares a pid namespace cannot be saved yet",
                hint="end it first, or give each container a pid namespace of its own",
            )


def _members(directory: str) -> Iterator[int]:
    """Yield the processes in a cgroup and those below."""
    for place, _, _ in os.walk(directory):
        # It may have gone meanwhile, or have threads only.
        with suppress(OSError), open(f"{place}/cgroup.procs", "rb") as file:
            yield from map(int, file.read().split())
