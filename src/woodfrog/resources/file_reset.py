"""Set the files of a tree back to what an image has of them; what is the same is left alone."""

import os
import stat
from collections.abc import Iterable, Sequence

import msgspec

from woodfrog.errors import UnsupportedResource
from woodfrog.image.pages import Source
from woodfrog.kernel.process_memory import FileContents
from woodfrog.kernel.procfs.id_maps import IdMaps
from woodfrog.resources import ids
from woodfrog.resources.file_entry import ROOT, Entry
from woodfrog.resources.file_maker import Maker
from woodfrog.resources.file_tree import Collector, Tree

_STEP = 1 << 20
_BLOCK = 512  # st_blocks


class Reset(msgspec.Struct, frozen=True):
    """What is to be removed, and what to be made (directories before what is in them).

    `room` is how many bytes of its file system that takes, beside those that it gives back.
    """

    remove: list[bytes]
    make: list[Entry]
    room: int

    def run(self, maker: Maker) -> None:
        """Do it."""
        for path in reversed(self.remove):
            maker.remove(path)
        maker.make(self.make)

    def refuse_without_room(self, tree: Tree, what: str, more: int = 0) -> None:
        """Refuse it, and `more` bytes that are to be written, if there is no room for that."""
        needed = self.room + more
        system = os.statvfs(tree.root)
        free = system.f_bavail * system.f_frsize
        if needed > 0 and free < needed and system.f_blocks:
            raise UnsupportedResource(
                f"{what} has {free >> 10} KiB free, and the files of the image that have changed or"
                f" were removed since need {-(-needed >> 10)} KiB",
                hint="make room there",
            )


def look(
    tree: Tree,
    paths: Iterable[tuple[bytes, os.stat_result]],
    then: Sequence[Entry],
    stored: Source,
    touched: Iterable[bytes] = (),
    maps: IdMaps | None = None,
) -> Reset:
    """Compare files that are there with an image's, whose contents `stored` has.

    At the `touched` paths something is made by somebody else. The image has owners as they are
    inside, if there are `maps` of a user namespace.
    """
    comparing = _Comparing(then, stored)
    collector = Collector(tree, comparing.compare)
    differing: set[bytes] = set()
    remove: list[bytes] = []
    seen: dict[bytes, os.stat_result] = {}
    for path, found in paths:
        seen[path] = found
        entry = comparing.entries.get(path)
        if entry is None:
            remove.append(path)
            continue
        comparing.path = path
        now = ids.inside(collector.entry(path, found, opaque=entry.opaque), maps)
        if msgspec.structs.replace(now, atime=entry.atime) != entry:
            differing.add(path)
    differing |= comparing.entries.keys() - seen.keys()
    # What is done in a directory changes its time.
    for path in [*remove, *differing, *touched]:
        while path != ROOT:
            path = path.rpartition(b"/")[0] or ROOT
            differing.add(path)
    # And all names of a file stand or fall together: it is known by the first of them.
    changed = {entry.link or entry.path for entry in then if entry.path in differing}
    make = [entry for entry in then if (entry.link or entry.path) in changed]
    needed = sum(one.length for entry in make for one in entry.extents)
    going = (seen[path] for path in (*remove, *(one.path for one in make)) if path in seen)
    freed = {(one.st_dev, one.st_ino): one.st_blocks for one in going if stat.S_ISREG(one.st_mode)}
    return Reset(remove, make, needed - _BLOCK * sum(freed.values()))


class _Comparing:
    """Takes the contents of files, and only looks whether they are the image's."""

    def __init__(self, then: Sequence[Entry], stored: Source) -> None:
        self.entries = {entry.path: entry for entry in then}
        self.path = b""
        self._stored = stored

    def compare(self, extents: Sequence[tuple[FileContents, int, int]]) -> int:
        """Return the store offset that an image's file with this contents has, else -1."""
        entry = self.entries[self.path]
        if [(start, length) for _, start, length in extents] != [
            (one.start, one.length) for one in entry.extents
        ]:
            return -1
        store = entry.store
        one, other = bytearray(_STEP), bytearray(_STEP)
        for contents, start, length in extents:
            for at in range(0, length, _STEP):
                step = min(_STEP, length - at)
                with memoryview(one) as ours, memoryview(other) as theirs:
                    contents.read(ours[:step], [(start + at, step)])
                    self._stored.read(theirs[:step], [(store + at, step)])
                if one[:step] != other[:step]:
                    return -1
            store += length
        return entry.store
