"""The mount namespaces of a held container, each with a process that stands at its root."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import ExitStack
from functools import cached_property, partial
from itertools import chain
from typing import TYPE_CHECKING

from msgspec.structs import replace

from woodfrog.engine.collecting_namespaces import Namespaces
from woodfrog.engine.names import Names
from woodfrog.engine.view import standing_in
from woodfrog.errors import UnsupportedResource
from woodfrog.kernel.procfs.maps import Mapping as KernelMapping
from woodfrog.kernel.procfs.mountinfo import Mount, read_mounts
from woodfrog.resources.deleted_files import DELETED
from woodfrog.resources.file_tree import WritePages
from woodfrog.resources.mount_tree import table
from woodfrog.resources.mount_tree.looking import ChangedMounts

if TYPE_CHECKING:
    from woodfrog.engine.links import Links
    from woodfrog.resources.nested import MountNamespace

OWN = 0


class Place:
    """A mount namespace, by its id: `view` is a process whose root directory is that of it.

    `given` are the ids of the mounts that `create` made.
    """

    def __init__(self, number: int, view: int, given: AbstractSet[int] = frozenset()) -> None:
        self.number = number
        self.view = view
        self.root = f"/proc/{view}/root"
        self.mounts: dict[int, Mount] = {mount.mnt_id: mount for mount in read_mounts(view)}
        self.names = Names(self.root, self.mounts)
        self.given = [mount for mount in self.mounts.values() if mount.mnt_id in given]
        # Where what was deleted since is mounted.
        self._ghosts = {
            mount.point
            for mount in self.mounts.values()
            if mount.root.endswith(table.DELETED) and mount.mnt_id not in given
        }

    def mounted(self, target: bytes, found: os.stat_result) -> bytes:
        """Return what a magic link reads; of a deleted file that is mounted there, the path."""
        path = target.removesuffix(DELETED)
        return path if path in self._ghosts and self.names.stands_at(path, found) else target

    def named(self, pid: int, listed: list[KernelMapping]) -> list[KernelMapping]:
        """Name mappings of deleted files by where these are mounted."""
        return [
            replace(one, name=self.mounted(one.name, os.stat(_link(pid, one))))
            if one.name.removesuffix(DELETED) in self._ghosts
            else one
            for one in listed
        ]

    def is_of_proc(self, device: int) -> bool:
        """Tell whether a device number is that of a proc which is mounted there."""
        number = os.major(device), os.minor(device)
        return any(one.type == "proc" and one.device == number for one in self.mounts.values())

    def forbids_programs(self, path: bytes) -> bool:
        """Tell whether what is executable at a path may not be executed (MS_NOEXEC)."""
        above = [
            mount
            for mount in self.mounts.values()
            if path == mount.point or path.startswith(mount.point.rstrip(b"/") + b"/")
        ]
        # Of those at one point the last covers the others.
        nearest = max(above, key=lambda mount: len(mount.point))
        covering = [mount for mount in above if mount.point == nearest.point]
        return "noexec" in covering[-1].options.split(",")


class Places:
    """All mount namespaces by their ids; 0 is the container's own."""

    def __init__(
        self,
        view: int,
        namespaces: Namespaces,
        undo: ExitStack,
        given: AbstractSet[int] = frozenset(),
    ) -> None:
        """`given` are the ids of the mounts that `create` made."""
        self._all: dict[int, Place] = {OWN: Place(OWN, view, given)}
        self._changed: dict[int, tuple[int, ChangedMounts, ChangedMounts]] = {}
        self._namespaces = namespaces
        self._pid_namespaces = namespaces.links("pid")
        self._owner = namespaces.owner
        for number, descriptor in namespaces.descriptors("mnt"):
            self._all[number] = Place(number, undo.enter_context(standing_in(descriptor)))

    @property
    def all(self) -> list[Place]:
        """Return all of them, the container's own first."""
        return list(self._all.values())

    def __getitem__(self, number: int) -> Place:
        return self._all[number]

    @property
    def are_one(self) -> bool:
        """Tell whether no program has made a mount namespace."""
        return len(self._all) == 1

    def of_mount(self, mnt_id: int) -> int | None:
        """Return the namespace that a mount is in, None if it is none of the container's."""
        return next((n for n, place in self._all.items() if mnt_id in place.mounts), None)

    def look(self, init: int, undo: ExitStack) -> None:
        """See in what each nested namespace differs from one that it can be made of."""
        for number, place in self._all.items():
            if number == OWN:
                continue
            likest = self._likest(place)
            pids = self._pid_namespaces
            now, all_now = self._without_late(place, pids), list(place.mounts.values())
            origin = table.as_copied(self._without_late(self._all[likest], pids), now)
            locked = bool(self._owner(number))
            self._namespaces.look_at_mounts(place.view, {mount.root for mount in origin})
            bound = self._namespaces.bound
            found = ChangedMounts(
                init,
                place.view,
                origin,
                (),
                nested=True,
                now=now,
                namespaces=bound,
                locked=locked,
            )
            undo.callback(found.close)
            late = ChangedMounts(
                init,
                place.view,
                now,
                (),
                nested=True,
                now=all_now,
                namespaces=bound,
                pid_namespaces=pids,
                locked=locked,
                late=True,
            )
            undo.callback(late.close)
            late.refuse_ghosts()
            self._changed[number] = likest, found, late
            if locked and late.shows_others:
                raise UnsupportedResource(
                    "has a mount namespace of a user namespace that a program made, where something"
                    " is mounted in a proc of its own processes, or the file of a socket, or a"
                    " terminal, which cannot be saved yet"
                )
            self._refuse_shared(number, likest)

    def _likest(self, place: Place) -> int:
        """Return what a namespace is made of: the likest of those that come before it.

        That has the file systems that the container's own lacks. If there are none, that of a user
        namespace is made of the container's own: no other can be known to show no more.
        """
        locked = bool(self._owner(place.number))
        new = _file_systems(place) - _file_systems(self._all[OWN])

        def likeness(number: int) -> tuple[int, bool, int, int]:
            other = self._all[number]
            shared = len(new & _file_systems(other))
            return shared, locked and number == OWN, _likeness(other.mounts, place.mounts), -number

        return max((one for one in self._all if one == OWN or one in self._changed), key=likeness)

    def _without_late(self, place: Place, pid_namespaces: Mapping[str, int]) -> list[Mount]:
        """Return a namespace's mounts, but for those that are made late, and what is in them.

        They are those of sockets' files and terminals, and procs of nested pid namespaces.
        """
        late = {*self._late_files(place)}
        for mount in table.making_order(list(place.mounts.values())):
            is_proc = mount.type == "proc" and mount.device not in _file_systems(self._all[OWN])
            if mount.parent in late or (
                is_proc and table.shown_by_proc(place.view, mount) in pid_namespaces
            ):
                late.add(mount.mnt_id)
        return [mount for mount in place.mounts.values() if mount.mnt_id not in late]

    def _refuse_shared(self, number: int, origin: int) -> None:
        """Refuse a new file system that yet another namespace shows, too: it would become two."""
        new = _file_systems(self._all[number]) - _file_systems(self._all[origin])
        for other in {OWN, *self._changed} - {number, origin}:
            if shared := new & _file_systems(self._all[other]):
                major, minor = min(shared)
                raise UnsupportedResource(
                    f"has a file system ({major}:{minor}) in mount namespaces that were made of"
                    " different others, which cannot be saved yet"
                )

    def name_ghosts(self, mounts: ChangedMounts | None, links: Links) -> None:
        """Say which deleted files are mounted; `mounts` are the changes of the container's own."""
        changed = {number: found for number, (_, found, _) in self._changed.items()}
        if mounts:
            changed[OWN] = mounts
        for number, one in sorted(changed.items()):
            place = self._all[number]
            one.name_ghosts(place.names.other_name, partial(links.mounted_file, place=place))

    def _late_files(self, place: Place) -> frozenset[int]:
        return table.late(place.view, list(place.mounts.values()), self._all[OWN].given)

    @cached_property
    def late_files(self) -> frozenset[int]:
        """Return the ids of all mounts that show files of sockets, and terminals."""
        return frozenset(chain.from_iterable(map(self._late_files, self._all.values())))

    def record(
        self, number: int, write_pages: WritePages, leased: Mapping[tuple[int, int], int]
    ) -> MountNamespace:
        """Return the record of a nested namespace."""
        from woodfrog.resources.nested import MountNamespace

        origin, found, late = self._changed[number]
        return MountNamespace(
            id=number,
            owner=self._owner(number),
            origin=origin,
            tree=found.record(write_pages, leased),
            late=late.record(write_pages, leased),
        )


def _link(pid: int, one: KernelMapping) -> str:
    return f"/proc/{pid}/map_files/{one.start:x}-{one.end:x}"


def _file_systems(place: Place) -> set[tuple[int, int]]:
    return {mount.device for mount in place.mounts.values() if mount.type != "nsfs"}


def _likeness(one: Mapping[int, Mount], other: Mapping[int, Mount]) -> int:
    """Tell how much two mount namespaces show in common."""

    def shown(mounts: Mapping[int, Mount]) -> Iterator[object]:
        return ((mount.device, mount.root) for mount in mounts.values())

    return len(set(shown(one)) & set(shown(other)))
