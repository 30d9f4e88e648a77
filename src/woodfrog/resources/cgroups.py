"""Control groups that programs made below the container's own, what is set there, and who is in.

A value that is set below the container's group can only be narrower than what that allows.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager

from woodfrog.errors import ImageError, UnsupportedResource, while_
from woodfrog.image.record import Part, Record
from woodfrog.kernel import syscalls
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.mounts import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS
from woodfrog.resources import file_entry
from woodfrog.resources.file_entry import ROOT

_MOST_GROUPS = 1000
_MOST_BYTES = 4096
_STAY = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_TYPE, _CONTROLLERS = "cgroup.type", "cgroup.subtree_control"
# What is kept of each group; all others count, tell, or act at once.
_VALUES = (
    "cgroup.max.depth",
    "cgroup.max.descendants",
    "cpuset.cpus",
    "cpuset.mems",
    "cpuset.cpu_exclusive",
    "cpuset.mem_exclusive",
    "cpu.weight",
    "cpu.max",
    "cpu.max.burst",
    "cpu.shares",
    "cpu.cfs_period_us",
    "cpu.cfs_quota_us",
    "memory.min",
    "memory.low",
    "memory.high",
    "memory.max",
    "memory.oom.group",
    "memory.swap.high",
    "memory.swap.max",
    "memory.zswap.max",
    "memory.limit_in_bytes",
    "memory.soft_limit_in_bytes",
    "memory.swappiness",
    "pids.max",
)


class Value(Part, frozen=True, array_like=True):
    """What is in a file of a group."""

    name: str
    text: bytes


class Group(Part, frozen=True):
    """One group, by its path below the container's; `threads` are the ids of who is in it."""

    path: bytes
    threaded: bool = False
    controllers: bytes = b""  # what it hands down
    values: list[Value] = []
    threads: list[int] = []


class Hierarchy(Record, frozen=True, tag="cgroups"):
    """The groups of one hierarchy, parents first; the first is the container's own.

    `name` is a controller of version 1, or empty for version 2.
    """

    name: str
    groups: list[Group]


class _Groups:
    """The container's own group in one hierarchy, and all below it."""

    def __init__(self, top: int) -> None:
        self._top = top
        self.is_second = self.read(ROOT, "cgroup.controllers") is not None

    @property
    def members(self) -> str:
        """Return the name of the file of threads."""
        return "cgroup.threads" if self.is_second else "tasks"

    def _open(self, path: bytes, name: str, flags: int) -> int:
        file = name.encode() if path == ROOT else path + b"/" + name.encode()
        flags |= os.O_CLOEXEC
        return syscalls.openat2(HERE, file, flags, directory=self._top, resolve=_STAY)

    def read(self, path: bytes, name: str) -> bytes | None:
        """Return what a file holds; None if it isn't there, or can't be asked."""
        try:
            with open(self._open(path, name, os.O_RDONLY), "rb") as file:
                return file.read().strip()
        except OSError:
            return None

    def write(self, path: bytes, name: str, text: bytes) -> None:
        """Write to a file of a group."""
        with (
            while_(f"writing {os.fsdecode(text)} to {name} of the cgroup {os.fsdecode(path)}"),
            open(self._open(path, name, os.O_WRONLY), "wb", buffering=0) as file,
        ):
            file.write(text)

    def make(self, path: bytes) -> None:
        """Make a group, if it isn't there."""
        above, _, name = path.rpartition(b"/")
        directory = syscalls.openat2(
            HERE, above or ROOT, _DIRECTORY, directory=self._top, resolve=_STAY
        )
        try:
            os.mkdir(name, 0o755, dir_fd=directory)
        except FileExistsError:
            pass
        finally:
            os.close(directory)

    def paths(self) -> Iterator[bytes]:
        """Yield all groups, parents first."""
        waiting = [ROOT]
        while waiting:
            path = waiting.pop()
            yield path
            directory = syscalls.openat2(HERE, path, _DIRECTORY, directory=self._top, resolve=_STAY)
            try:
                with os.scandir(directory) as entries:
                    names = sorted(os.fsencode(one.name) for one in entries if one.is_dir())
            finally:
                os.close(directory)
            waiting += [name if path == ROOT else path + b"/" + name for name in reversed(names)]


@contextmanager
def _opened(directory: str) -> Iterator[_Groups]:
    top = os.open(directory, _DIRECTORY)
    try:
        yield _Groups(top)
    finally:
        os.close(top)


def _hierarchies(places: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield each directory of the container's groups once, with a name of its hierarchy."""
    seen: set[str] = set()
    for name, directory in places.items():
        real = os.path.realpath(directory)
        if real not in seen and os.path.isdir(real):
            seen.add(real)
            yield name, real


def collect(places: Mapping[str, str], identify: Callable[[int], int]) -> list[Hierarchy]:
    """Read what there is below the container's groups; `identify` knows threads by our ids."""
    found = []
    for name, directory in _hierarchies(places):
        with _opened(directory) as groups:
            paths = list(groups.paths())
            if len(paths) > _MOST_GROUPS:
                raise UnsupportedResource(
                    f"has {len(paths)} cgroups below {directory}, of which {_MOST_GROUPS} can be"
                    " saved"
                )
            if len(paths) > 1:
                kept = [_group(groups, path, identify) for path in paths]
                found.append(Hierarchy(name=name, groups=kept))
    return found


def _group(groups: _Groups, path: bytes, identify: Callable[[int], int]) -> Group:
    threads = map(int, (groups.read(path, groups.members) or b"").split())
    values = []
    for name in _VALUES if path != ROOT else ():
        text = groups.read(path, name)
        if text is not None:
            values.append(Value(name=name, text=text))
    return Group(
        path=path,
        threaded=groups.is_second and groups.read(path, _TYPE) == b"threaded",
        controllers=(groups.read(path, _CONTROLLERS) or b"") if groups.is_second else b"",
        values=values,
        threads=sorted(one for one in map(identify, threads) if one),
    )


def check(hierarchies: Sequence[Hierarchy]) -> None:
    """Check the groups of an image before any is made."""
    if len({one.name for one in hierarchies}) != len(hierarchies):
        raise ImageError("the image has two hierarchies of cgroups of one name")
    for one in hierarchies:
        what = "the cgroups of the image"
        if not 1 <= len(one.groups) <= _MOST_GROUPS or one.groups[0].path != ROOT:
            raise ImageError(f"{what} are none, or too many")
        for group in one.groups:
            file_entry.check_path(group.path, what)
            words = group.controllers.decode(errors="replace").split()
            if not all(map(str.isidentifier, words)) or any(
                value.name not in _VALUES or len(value.text) > _MOST_BYTES for value in group.values
            ):
                raise ImageError(f"{what} have values that no image has")
        if any(group.path == ROOT for group in one.groups[1:]) or one.groups[0].values:
            raise ImageError(f"{what} have limits of the container's own")


def refuse_wider(
    hierarchies: Sequence[Hierarchy], places: Mapping[str, str], *, writable: bool
) -> None:
    """Refuse hierarchies that the new container has no group in, or could not change itself."""
    if hierarchies and not writable:
        raise UnsupportedResource(
            "the image has cgroups that programs made, which the new container may not make",
            hint="mount cgroups read-write in the bundle's config.json, or allow CAP_SYS_ADMIN",
        )
    for one in hierarchies:
        if one.name not in places:
            kind = f"of {one.name}" if one.name else "of version 2"
            raise UnsupportedResource(
                f"the image has cgroups {kind}, which the new container does not have",
                hint="this machine has other cgroups than the one of the checkpoint",
            )


def restore(
    hierarchies: Sequence[Hierarchy], places: Mapping[str, str], tasks: Mapping[int, int]
) -> None:
    """Make all groups, and put everybody into theirs; `tasks` are our ids of the image's threads.

    Limits come last: what is not needed any more after a restore must fit, too.
    """
    ours = frozenset(tasks.values())
    for one in hierarchies:
        with _opened(os.path.realpath(places[one.name])) as groups:
            for group in one.groups[1:]:
                groups.make(group.path)
                _set(groups, group, [value for value in group.values if _is_place(value)])
                if group.threaded:
                    groups.write(group.path, _TYPE, b"threaded")
            for group in one.groups[1:]:
                for thread in group.threads:
                    if thread in tasks and _leads(tasks[thread], ours):
                        groups.write(group.path, "cgroup.procs", b"%d" % tasks[thread])
            for group in one.groups:
                members = (groups.read(group.path, groups.members) or b"").split()
                for thread in group.threads:
                    if thread in tasks and b"%d" % tasks[thread] not in members:
                        groups.write(group.path, groups.members, b"%d" % tasks[thread])
            for group in one.groups:
                has = (groups.read(group.path, _CONTROLLERS) or b"").split()
                for controller in group.controllers.split():
                    if controller not in has:
                        groups.write(group.path, _CONTROLLERS, b"+" + controller)
            for group in one.groups[1:]:
                _set(groups, group, group.values)


def _is_place(value: Value) -> bool:
    """Tell whether a group takes nobody without this (cpusets of version 1)."""
    return value.name in ("cpuset.cpus", "cpuset.mems")


def _set(groups: _Groups, group: Group, values: Sequence[Value]) -> None:
    for value in values:
        now = groups.read(group.path, value.name)
        # A group of version 2 may get its files only when a controller is handed down to it.
        if now is not None and now != value.text:
            groups.write(group.path, value.name, value.text)


def _leads(pid: int, tasks: Set[int]) -> bool:
    """Tell whether a thread is the first of its process, or that has ended."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        first = next(int(line.split()[1]) for line in file if line.startswith("Tgid:"))
    return first == pid or first not in tasks
