"""Control groups that programs made below the container's own, what is set there, and who is in.

A value that is set below the container's group can only be narrower than what that allows.
"""

import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, nullcontext, suppress
from functools import cached_property

from woodfrog.errors import ImageError, UnsupportedResource, while_
from woodfrog.image.record import Part, Record
from woodfrog.kernel import syscalls
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.mounts import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS
from woodfrog.kernel.procfs.id_maps import IdMaps
from woodfrog.resources import file_entry
from woodfrog.resources.cgroup_values import DEVICES, Value, is_kept, values_among
from woodfrog.resources.file_entry import ROOT

_MOST_GROUPS = 1000
_MOST_BYTES = 4096
_NOBODY = 0xFFFFFFFF
_STAY = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_TYPE, _CONTROLLERS = "cgroup.type", "cgroup.subtree_control"
_USUAL_MODES = (0o644, 0o444, 0o200, 0o222)


class Node(Part, frozen=True):
    """Whose a file of a group is, or with an empty name the group, and who may use it."""

    name: bytes
    uid: int
    gid: int
    mode: int


class Group(Part, frozen=True):
    """One group, by its path below the container's; `threads` are the ids of who is in it.

    `nodes` are its files that are others' or open to others than usual.
    """

    path: bytes
    threaded: bool = False
    controllers: bytes = b""  # what it hands down
    values: list[Value] = []
    threads: list[int] = []
    nodes: list[Node] = []
    frozen: bool = False  # by its own freezer, not that of a group above


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

    @cached_property
    def is_second(self) -> bool:
        """Whether the hierarchy is one of version 2."""
        return self.read(ROOT, "cgroup.controllers") is not None

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
        with self._directory(above or ROOT) as directory, suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=directory)

    @contextmanager
    def _directory(self, path: bytes) -> Iterator[int]:
        directory = syscalls.openat2(HERE, path, _DIRECTORY, directory=self._top, resolve=_STAY)
        try:
            yield directory
        finally:
            os.close(directory)

    def names(self, path: bytes) -> list[str]:
        """Return the names of a group's files."""
        with self._directory(path) as directory:
            return sorted(os.listdir(directory))

    def nodes(self, path: bytes) -> Iterator[Node]:
        """Yield who may use a group and its files, where that isn't root as usual."""
        with self._directory(path) as directory, os.scandir(directory) as entries:
            found: list[tuple[bytes, os.stat_result, tuple[int, ...]]]
            found = [(b"", os.fstat(directory), (0o755,))]
            for one in entries:
                if one.is_file(follow_symlinks=False):
                    status = one.stat(follow_symlinks=False)
                    found.append((os.fsencode(one.name), status, _USUAL_MODES))
            for name, status, usual in sorted(found, key=lambda one: one[0]):
                mode = stat.S_IMODE(status.st_mode)
                if status.st_uid or status.st_gid or mode not in usual:
                    yield Node(name=name, uid=status.st_uid, gid=status.st_gid, mode=mode)

    def set_node(self, path: bytes, node: Node, maps: IdMaps | None) -> None:
        """Set who may use a group or one of its files; ids are those inside of `maps`."""
        uid = maps.users.outside(node.uid) if maps else node.uid
        gid = maps.groups.outside(node.gid) if maps else node.gid
        if uid is None or gid is None:
            raise ImageError("a cgroup of the image belongs to nobody")
        with self._directory(path) as directory, suppress(FileNotFoundError):
            if node.name:
                os.chown(node.name, uid, gid, dir_fd=directory, follow_symlinks=False)
                os.chmod(node.name, node.mode, dir_fd=directory)
            else:
                os.fchown(directory, uid, gid)
                os.fchmod(directory, node.mode)

    def freeze(self, path: bytes) -> None:
        """Freeze a group."""
        if self.is_second:
            self.write(path, "cgroup.freeze", b"1")
        else:
            self.write(path, "freezer.state", b"FROZEN")

    def paths(self) -> Iterator[bytes]:
        """Yield all groups, parents first."""
        waiting = [ROOT]
        while waiting:
            path = waiting.pop()
            yield path
            with self._directory(path) as directory, os.scandir(directory) as entries:
                names = sorted(os.fsencode(one.name) for one in entries if one.is_dir())
            waiting += [name if path == ROOT else path + b"/" + name for name in reversed(names)]


@contextmanager
def _opened(directory: str) -> Iterator[_Groups]:
    top = os.open(directory, _DIRECTORY)
    try:
        yield _Groups(top)
    finally:
        os.close(top)


def directories(places: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield each directory of the container's groups once, with a name of its hierarchy."""
    seen: set[str] = set()
    for name, directory in places.items():
        real = os.path.realpath(directory)
        if real not in seen and os.path.isdir(real):
            seen.add(real)
            yield name, real


def collect(
    places: Iterable[tuple[str, str]], frozen: Collection[str], identify: Callable[[int], int]
) -> list[Hierarchy]:
    """Read what there is below the container's groups, each as `directories` returns it.

    `identify` knows threads by our ids; `frozen` are the directories of those that were frozen
    until we held them.
    """
    found = []
    for name, directory in places:
        with _opened(directory) as groups:
            paths = list(groups.paths())
            if len(paths) > _MOST_GROUPS:
                raise UnsupportedResource(
                    f"has {len(paths)} cgroups below {directory}, of which {_MOST_GROUPS} can be"
                    " saved"
                )
            if len(paths) > 1:
                stopped = {os.fsencode(os.path.relpath(one, directory)) for one in frozen}
                kept = [_group(groups, path, path in stopped, identify) for path in paths]
                found.append(Hierarchy(name=name, groups=kept))
    return found


def _group(groups: _Groups, path: bytes, frozen: bool, identify: Callable[[int], int]) -> Group:
    threads = map(int, (groups.read(path, groups.members) or b"").split())
    values = []
    for name in values_among(groups.names(path)) if path != ROOT else ():
        text = groups.read(path, name)
        if text is not None:
            values.append(Value(name=name, text=text))
    return Group(
        path=path,
        threaded=groups.is_second and groups.read(path, _TYPE) == b"threaded",
        controllers=(groups.read(path, _CONTROLLERS) or b"") if groups.is_second else b"",
        values=values,
        threads=sorted(one for one in map(identify, threads) if one),
        nodes=list(groups.nodes(path)) if path != ROOT else [],
        frozen=frozen,
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
                not is_kept(value.name) or len(value.text) > _MOST_BYTES for value in group.values
            ):
                raise ImageError(f"{what} have values that no image has")
            if any(
                b"/" in node.name
                or node.name in (b".", b"..")
                or not 0 <= node.mode <= 0o777
                or not (0 <= node.uid < _NOBODY and 0 <= node.gid < _NOBODY)
                for node in group.nodes
            ):
                raise ImageError(f"{what} have impossible files")
        top = one.groups[0]
        if any(group.path == ROOT for group in one.groups[1:]) or (
            top.values or top.nodes or top.frozen
        ):
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


def make(hierarchies: Sequence[Hierarchy], places: Mapping[str, str]) -> None:
    """Make all groups, as far as files in them may be open, and namespaces begin at them."""
    for one in hierarchies:
        with _opened(os.path.realpath(places[one.name])) as groups:
            for group in one.groups[1:]:
                groups.make(group.path)
                _set(groups, group, [value for value in group.values if value.is_place])
                if group.threaded:
                    groups.write(group.path, _TYPE, b"threaded")


def restore(
    hierarchies: Sequence[Hierarchy],
    places: Mapping[str, str],
    tasks: Mapping[int, int],
    maps: IdMaps | None,
) -> None:
    """Put everybody into their groups; `tasks` are our ids of the image's threads.

    Limits come last: what is not needed any more after a restore must fit, too.
    """
    ours = frozenset(tasks.values())
    for one in hierarchies:
        with _opened(os.path.realpath(places[one.name])) as groups:
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
                for node in group.nodes:
                    groups.set_node(group.path, node, maps)


def join(roots: Collection[tuple[str, bytes]], places: Mapping[str, str], pid: int) -> None:
    """Put a process, by our id, into groups by their hierarchies' names and paths."""
    for name, path in roots:
        if name not in places:
            raise ImageError("the image has a cgroup namespace of a hierarchy that is not there")
        with _opened(os.path.realpath(places[name])) as groups:
            groups.write(path, "cgroup.procs", b"%d" % pid)


def freeze(hierarchies: Sequence[Hierarchy], places: Mapping[str, str]) -> None:
    """Freeze the groups that were frozen; who is in them stops before it runs."""
    for one in hierarchies:
        if any(group.frozen for group in one.groups):
            with _opened(os.path.realpath(places[one.name])) as groups:
                for group in one.groups:
                    if group.frozen:
                        groups.freeze(group.path)


def _set(groups: _Groups, group: Group, values: Sequence[Value]) -> None:
    for value in values:
        now = groups.read(group.path, value.name)
        # A group of version 2 may get its files only when a controller is handed down to it.
        if now is not None and now != value.text:
            for name, text in value.written(now):
                # Devices that the new container has no right to.
                with suppress(PermissionError) if value.name == DEVICES else nullcontext():
                    groups.write(group.path, name, text)


def _leads(pid: int, tasks: Set[int]) -> bool:
    """Tell whether a thread is the first of its process, or that has ended."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        first = next(int(line.split()[1]) for line in file if line.startswith("Tgid:"))
    return first == pid or first not in tasks
