"""The contents of the container's own tmpfs mounts."""

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from woodfrog.errors import UnsupportedResource, while_
from woodfrog.image.pages import Source
from woodfrog.image.record import Record
from woodfrog.kernel import syscalls
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.mounts import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS
from woodfrog.kernel.procfs.mountinfo import read_mounts
from woodfrog.resources import file_entry, file_maker, file_reset, ids, namespaces
from woodfrog.resources.file_entry import ROOT, Entry
from woodfrog.resources.file_maker import Maker
from woodfrog.resources.file_reset import Reset
from woodfrog.resources.file_tree import Collector, CoveredError, Tree, WritePages
from woodfrog.resources.mount_tree import options


class Tmpfs(Record, frozen=True, tag="tmpfs"):
    """All files of one tmpfs, directories before what is in them."""

    destination: str
    entries: list[Entry]

    @property
    def where(self) -> str:
        """Return how it is called in messages."""
        return f"the tmpfs at {self.destination}"


@contextmanager
def _mounted(init: int, destination: str, *, itself: bool = False) -> Iterator[Tree]:
    """Open the root of a mount, by its path in the container.

    Whoever can rename a directory above can have the path lead elsewhere: what is found must be all
    of a file system in memory, and one that is mounted at just that path if it is to be `itself`.
    """
    root = os.open(f"/proc/{init}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        path = os.fsencode(destination.lstrip("/") or ".")
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
        mount = syscalls.openat2(HERE, path, flags, directory=root, resolve=resolve)
    finally:
        os.close(root)
    try:
        with open(f"/proc/self/fdinfo/{mount}", encoding="ascii") as file:
            number = next(int(line.split()[1]) for line in file if line.startswith("mnt_id:"))
        found = next((one for one in read_mounts(init) if one.mnt_id == number), None)
        in_memory = found and found.type in options.IN_MEMORY and found.root == b"/"
        elsewhere = itself and found and found.point != _normal(destination)
        if not in_memory or elsewhere:
            raise UnsupportedResource(
                f"{destination} leads elsewhere than to the container's own tmpfs"
            )
        yield Tree(mount)
    finally:
        os.close(mount)


def _normal(destination: str) -> bytes:
    return os.fsencode(os.path.normpath("/" + destination.lstrip("/")))


@contextmanager
def _copied(copy: int) -> Iterator[Tree]:
    root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=copy)
    try:
        yield Tree(root)
    finally:
        os.close(root)


def collect(
    init: int,
    destination: str,
    write_pages: WritePages,
    copy: int | None,
    leased: Mapping[tuple[int, int], int],
) -> Tmpfs | None:
    """Read a tmpfs; None if nothing is mounted there.

    `copy` is a descriptor of a copy of its mount, if its path doesn't lead to it; for `leased` see
    Collector.
    """
    with while_(f"reading the tmpfs at {destination}"):
        try:
            with _mounted(init, destination) if copy is None else _copied(copy) as tree:
                collector = Collector(tree, write_pages, leased=leased)
                entries = [collector.entry(ROOT, os.fstat(tree.root))]
                entries += (collector.entry(path, found) for path, found in tree.walk(ROOT))
        except FileNotFoundError:
            return None
        return Tmpfs(destination=destination, entries=entries)


def check(tmpfs: Tmpfs, page_bytes: int) -> None:
    """Check a tmpfs from an image before anything is made of it."""
    file_entry.check(tmpfs.entries, tmpfs.where, page_bytes)


def refuse_wider(init: int, tmpfs: Tmpfs, bounding: int) -> list[Entry]:
    """Refuse devices and attributes that the new container could not make itself.

    Returns what is to be restored: what is not in a new tmpfs as `create` makes it.
    """
    with _mounted(init, tmpfs.destination) as tree:
        missing = _missing(tree, tmpfs.entries)
        file_maker.refuse_wider(missing, tree, bounding, tmpfs.where)
    return missing


def restore(init: int, tmpfs: Tmpfs, missing: list[Entry], pages: int, base: int) -> None:
    """Put what is missing into the new container's tmpfs; what is there stays.

    `pages` is the page store, 0 being at `base`.
    """
    with (
        while_(f"filling the tmpfs at {tmpfs.destination}"),
        _mounted(init, tmpfs.destination) as tree,
    ):
        namespaces.as_its_root(init, lambda: Maker(tree, pages, base).make(missing))


class Rollback:
    """Sets a container's tmpfs back. `copy` is a descriptor of a copy of its mount, or None."""

    def __init__(
        self, init: int, where: str, destination: str, entries: list[Entry], copy: int | None
    ) -> None:
        self._init = init
        self._where = where
        self._destination = destination
        self._entries = entries
        self._copy = copy
        self._reset = Reset([], [], 0)

    def look(self, stored: Source, bounding: int) -> bool:
        """Compare it with an image's; tell whether it differs. `stored` has the image's memory.

        Refuses what a process with the `bounding` set could not make, and what can't be changed.
        """
        with while_(f"comparing {self._where}"), self._opened() as tree:
            paths = [(ROOT, os.fstat(tree.root)), *tree.walk(ROOT)]
            maps = ids.maps_of(self._init)
            found = self._reset = file_reset.look(tree, paths, self._entries, stored, maps=maps)
            file_maker.refuse_wider(found.make, tree, bounding, self._where)
            found.refuse_without_room(tree, self._where)
            differs = bool(found.make or found.remove)
            if differs and os.fstatvfs(tree.root).f_flag & os.ST_RDONLY:
                raise UnsupportedResource(
                    f"{self._where} has changed since, and is mounted read-only there",
                    hint="mount it to be written to, or restore the image into a new container",
                )
            return differs

    def run(self, pages: int, base: int) -> None:
        """Do it; `pages` is the page store, 0 being at `base`."""
        with while_(f"setting back {self._where}"), self._opened() as tree:
            maker = Maker(tree, pages, base, empties=True)
            namespaces.as_its_root(self._init, lambda: self._reset.run(maker))

    def _opened(self) -> AbstractContextManager[Tree]:
        if self._copy is not None:
            return _copied(self._copy)
        return _mounted(self._init, self._destination, itself=True)


def _missing(tree: Tree, entries: list[Entry]) -> list[Entry]:
    """Leave out what the new container has mounted there, and its own devices, links and so on."""
    return [entry for entry in entries if not _is_its_own(tree, entry)]


def _is_its_own(tree: Tree, entry: Entry) -> bool:
    try:
        found = tree.look(entry.path)
    except CoveredError:
        return True
    return found is not None and stat.S_IFMT(entry.mode) not in (stat.S_IFDIR, stat.S_IFREG)
