"""What a held container's mounts show: file systems, parts of what `create` mounted, namespaces."""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping

from woodfrog.errors import UnsupportedResource
from woodfrog.kernel.procfs.mountinfo import Mount, read_mounts
from woodfrog.resources import ids, namespaces
from woodfrog.resources.file_entry import ROOT
from woodfrog.resources.mount_tree import layers, options, table
from woodfrog.resources.mount_tree.records import Base, Given


class Shown:
    """The bases of mounts that have changed, each once."""

    def __init__(
        self,
        init: int,
        view: int,
        created: list[Mount],
        now: list[Mount],
        kept: Collection[int],
        *,
        namespaces: Mapping[str, int],
        pid_namespaces: Mapping[str, int],
    ) -> None:
        """Find none yet. `created` and `now` are mounts as `ChangedMounts` has them.

        `kept` are the ids of those that are as `create` made them.
        """
        self.bases: list[Base] = []
        self._init, self._view = init, view
        self._maps = ids.maps_of(init)
        self._created, self._now, self._kept = created, now, kept
        self._givens = table.givens(created)
        self._namespaces, self._pid_namespaces = namespaces, pid_namespaces
        self._by_device: dict[tuple[int, int], int] = {}
        self._by_namespace: dict[str, int] = {}
        self._by_given: dict[Given, int] = {}

    def see(self, mounts: Iterable[Mount]) -> None:
        """Have new file systems be seen by further mounts."""
        self._now = [*self._now, *mounts]

    @property
    def are_others(self) -> bool:
        """Whether mounts show parts of what was mounted before."""
        return any(base.given is not None for base in self.bases)

    def systems(self, kinds: Collection[str]) -> Iterator[tuple[int, str, list[Mount]]]:
        """Yield the file systems of some kinds that are new, and the mounts that show most of them.

        Each by the index of its base.
        """
        for device, index in self._by_device.items():
            if (kind := self.bases[index].type) in kinds:
                yield index, kind, table.widest(self._now, device)

    def base(self, mount: Mount) -> tuple[int, bytes]:
        """Return what a mount shows, and the path in it."""
        shown = [
            one
            for one in self._created
            if one.device == mount.device
            and one.type == mount.type
            and table.is_in(mount, one)
            and self._may_show(mount, one)
        ]
        if shown:
            nearest = max(shown, key=lambda one: len(one.root))
            given = self._givens[nearest.mnt_id]
            if given not in self._by_given:
                self._by_given[given] = len(self.bases)
                self.bases.append(Base(given=given))
            return self._by_given[given], table.relative(mount.root, nearest.root)
        if mount.type == "nsfs":
            return self._bound_namespace(os.fsdecode(mount.root)), ROOT
        if mount.device not in self._by_device:
            namespace = self._pid_namespace(mount) if mount.type == "proc" else 0
            flags, data = self.options(mount)
            if mount.type == "overlay":
                made = [one for one in self._now if one.mnt_id not in self._kept]
                layers.refuse_others(self._view, mount, options.layers(data), made)
            self._by_device[mount.device] = len(self.bases)
            self.bases.append(
                Base(
                    type=mount.type,
                    source=mount.source,
                    flags=flags,
                    options=data,
                    pid_namespace=namespace,
                )
            )
        return self._by_device[mount.device], table.relative(self._root(mount), b"/")

    def _may_show(self, mount: Mount, given: Mount) -> bool:
        """Tell whether a mount that has its device can be of one that `create` made.

        If that is gone, its number may be another file system's by now.
        """
        return given.mnt_id in self._kept or (given.source, given.super_options) == (
            mount.source,
            mount.super_options,
        )

    def _bound_namespace(self, link: str) -> int:
        """Return which base is a namespace that is bound to a file."""
        if link not in self._namespaces:
            raise UnsupportedResource(
                f"shows a namespace, {link}, of outside, of a kind that is made later than mounts"
                " (mnt, pid, time), or that another mount covers, which cannot be saved yet"
            )
        if link not in self._by_namespace:
            self._by_namespace[link] = len(self.bases)
            kind = link.partition(":")[0]
            number = self._namespaces[link]
            self.bases.append(Base(type="nsfs", namespace=kind, namespace_id=number))
        return self._by_namespace[link]

    def _pid_namespace(self, mount: Mount) -> int:
        """Return the id of the nested pid namespace that a proc shows; 0: the container's own."""
        shown = table.shown_by_proc(self._view, mount)
        if shown in ("", os.readlink(f"/proc/{self._init}/ns/pid")):
            return 0
        if shown not in self._pid_namespaces:
            raise UnsupportedResource(
                "shows the processes of another pid namespace than those of the mount namespace's"
                " own processes, which cannot be saved yet"
            )
        return self._pid_namespaces[shown]

    def _root(self, mount: Mount) -> bytes:
        """Return which part of its file system a mount shows, as the container sees it."""
        if not mount.type.startswith("cgroup"):
            return mount.root
        with namespaces.inside(self._init, "cgroup"):
            seen = {one.mnt_id: one.root for one in read_mounts(self._view)}
        root = seen.get(mount.mnt_id, mount.root)
        if root.startswith(b"/.."):
            raise UnsupportedResource("shows cgroups that are not the container's own")
        return root

    def options(self, mount: Mount) -> tuple[int, bytes]:
        """Return the flags and the options of a mount's file system, as the container sees them."""
        flags, data = options.split(mount.type, mount.super_options)
        return flags, options.inside(data, self._maps) if self._maps else data
