"""What is in the file systems of held mounts: their files, and the places of other mounts."""

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import msgspec

from woodfrog.errors import UnsupportedResource, while_
from woodfrog.kernel.procfs.id_maps import IdMaps
from woodfrog.kernel.procfs.mountinfo import Mount, read_mounts
from woodfrog.resources.file_entry import ROOT, Entry, Moment
from woodfrog.resources.file_tree import Collector, Tree, WritePages, join
from woodfrog.resources.mount_tree import table

_OF_BPF = frozenset((b"maps.debug", b"progs.debug"))
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Contents:
    """What mounts show of a tmpfs. `copies` are descriptors of copies of them, by their ids.

    `view` is a process that sees the container from its root, `maps` are those of its user
    namespace. Of those that are `locked`, what is covered can't be seen.
    """

    def __init__(
        self, view: int, maps: IdMaps | None, copies: Mapping[int, int], *, locked: bool
    ) -> None:
        self._view, self._maps = view, maps
        self._copies = copies
        self._locked = locked

    def entries(
        self, mount: Mount, write_pages: WritePages, leased: Mapping[tuple[int, int], int]
    ) -> Iterator[Entry]:
        """Read what a mount shows of a tmpfs; paths are those from the tmpfs's own root."""
        prefix = table.relative(mount.root, b"/")
        if mount.mnt_id not in self._copies and self._locked:
            yield from self._unseen(mount)
            return
        with (
            while_(f"reading the tmpfs at {os.fsdecode(mount.point)}"),
            opened(self._copies[mount.mnt_id]) as tree,
        ):
            collector = Collector(tree, write_pages, leased=leased)
            found = [collector.entry(ROOT, os.fstat(tree.root))]
            found += (collector.entry(path, status) for path, status in tree.walk(ROOT))
            found += self._places_in(mount, tree, found) if self._locked else ()
        for end in range(len(prefix.split(b"/")) if prefix != ROOT else 0):
            # What is above can't be seen, but has to be there.
            above = b"/".join(prefix.split(b"/")[:end]) or ROOT
            yield msgspec.structs.replace(found[0], path=above, attributes=[])
        for entry in found:
            yield msgspec.structs.replace(
                entry,
                path=_below(prefix, entry.path),
                link=_below(prefix, entry.link) if entry.link else b"",
            )

    def _unseen(self, mount: Mount) -> list[Entry]:
        """Return the directories of a tmpfs that nobody sees, which others are mounted upon."""
        then = Moment.of(0)
        uid, gid = 0, 0
        if self._maps:
            uid, gid = self._maps.users.outside(0) or 0, self._maps.groups.outside(0) or 0
        mode = stat.S_IFDIR | 0o755
        root = Entry(path=ROOT, mode=mode, uid=uid, gid=gid, atime=then, mtime=then)
        found = {ROOT: root}
        for other in read_mounts(self._view):
            if other.parent == mount.mnt_id:
                names = table.place(other, mount).split(b"/")
                for end in range(1, len(names) + 1):
                    path = b"/".join(names[:end])
                    found.setdefault(path, msgspec.structs.replace(root, path=path))
        return list(found.values())

    def _places_in(self, mount: Mount, tree: Tree, found: list[Entry]) -> Iterator[Entry]:
        """Yield what others are mounted upon, where that can't be seen."""
        seen = {entry.path for entry in found}
        for other in read_mounts(self._view):
            path = table.place(other, mount) if other.parent == mount.mnt_id else ROOT
            if path not in seen:
                seen.add(path)
                covering = os.stat(path, dir_fd=tree.root)
                kind = stat.S_IFDIR | 0o755 if stat.S_ISDIR(covering.st_mode) else stat.S_IFREG
                yield msgspec.structs.replace(found[0], path=path, mode=kind, attributes=[])


def _below(prefix: bytes, path: bytes) -> bytes:
    return prefix if path == ROOT else join(prefix, path)


def refuse_unreadable(kind: str, mount: int) -> None:
    """Refuse a file system of which a part is seen only, or that has things in use.

    `mount` is a descriptor of a copy of its mount.
    """
    if not stat.S_ISDIR(os.fstat(mount).st_mode):
        raise UnsupportedResource(
            "shows a single file of a file system that is mounted nowhere else in its mount"
            " namespace, which cannot be saved yet"
        )
    if kind not in ("bpf", "devpts"):
        return
    with opened(mount) as tree:
        names = tree.names(ROOT)
    if kind == "bpf" and not _OF_BPF.issuperset(names):
        raise UnsupportedResource("has BPF objects pinned, which cannot be saved")
    if kind == "devpts" and any(name.isdigit() for name in names):
        raise UnsupportedResource(
            "is a devpts of its own with terminals in use, which cannot be saved"
        )


def refuse_filled(mount: Mount, copy: int, created: list[Mount]) -> None:
    """Refuse a tmpfs that a restore can't fill, as others of create's hide it, if it has files.

    `copy` is a descriptor of a copy of it. Places of other mounts are made anew with these.
    """
    places = [os.path.join(one.point, b"") for one in created]
    with opened(copy) as tree:
        for path, _ in tree.walk(ROOT):
            place = os.path.join(mount.point, path, b"")
            if not any(one.startswith(place) for one in places):
                raise UnsupportedResource(
                    f"has {os.fsdecode(path)} in a tmpfs that another mount of the config's hides,"
                    " which cannot be saved",
                    hint="mount it where nothing hides it in the bundle's config.json",
                )


@contextmanager
def opened(mount: int) -> Iterator[Tree]:
    """Open the files of a mount, by a descriptor of a copy of it."""
    root = os.open(".", _DIRECTORY, dir_fd=mount)
    try:
        yield Tree(root)
    finally:
        os.close(root)
