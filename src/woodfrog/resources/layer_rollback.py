"""A container's root on its way back to an image: its layer's changes, made, changed and taken
away.

What the image's layer says nothing of is as in the lower layers. So a file of those that was
changed or removed since is copied from there, through the overlay: only whoever mounts an overlay
can uncover what is below.
"""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import msgspec

from woodfrog.errors import UnsupportedResource, while_
from woodfrog.image.pages import Source
from woodfrog.kernel.abi.x86_64 import PAGE
from woodfrog.remote.address import page_up
from woodfrog.resources import file_maker, file_reset
from woodfrog.resources.file_entry import ROOT, Entry
from woodfrog.resources.file_maker import Maker
from woodfrog.resources.file_reset import Reset
from woodfrog.resources.file_tree import Collector, CoveredError, Tree
from woodfrog.resources.layer import WHERE, Layer, changes
from woodfrog.resources.overlay import Overlay

_STEP = 1 << 20


class LayerReset(msgspec.Struct, frozen=True):
    """What is to be done: `copies` are files of the lower layers, which `below` shows."""

    reset: Reset
    copies: list[Entry]
    below: Tree

    def __bool__(self) -> bool:
        return bool(self.reset.make or self.reset.remove or self.copies)


def look(
    layer: Layer,
    overlay: Overlay,
    rootfs: str,
    created: list[str] | None,
    stored: Source,
    bounding: int,
    undo: ExitStack,
) -> LayerReset | None:
    """Compare a container's root with an image's; `stored` has its memory. None: nobody can write.

    `created` are the mounts as `create` made them. Until `undo` unwinds the lower layers are shown.
    Raises UnsupportedResource for what a process with the `bounding` set could not make.
    """
    upper = overlay.open_upper(rootfs)
    if upper is None:
        return None
    os.close(upper.root)
    below = undo.enter_context(overlay.lower(rootfs, created))
    looking = _Looking(layer, overlay.tree, below)
    paths = []
    for path, status, opaque in changes(overlay, rootfs):
        if looking.is_of_image(path, status, opaque=opaque) and status is not None:
            paths.append((path, status))
    reset = file_reset.look(overlay.tree, paths, layer.entries, stored, looking.wanted)
    file_maker.refuse_wider(reset.make, overlay.tree, bounding, WHERE)
    copies = looking.copies()
    more = sum(page_up(entry.size) + PAGE for entry in copies)
    reset.refuse_without_room(overlay.tree, "the container's root file system", more)
    removed = [path for path in layer.removed if looking.is_there(path)]
    reset = msgspec.structs.replace(reset, remove=[*reset.remove, *removed])
    return LayerReset(reset, copies, below)


class _Looking:
    """Finds what is to be copied from the lower layers: `wanted`, with its status there."""

    def __init__(self, layer: Layer, whole: Tree, below: Tree) -> None:
        self._known = {entry.path: entry for entry in layer.entries}
        self._hides = {*layer.removed, *(e.path for e in layer.entries if not _shows_more(e))}
        self._whole, self._below = whole, below
        self.wanted: dict[bytes, os.stat_result] = {}

    def is_of_image(self, path: bytes, status: os.stat_result | None, *, opaque: bool) -> bool:
        """Tell whether the image says what is to become of a changed path; else note the rest."""
        known = self._known.get(path)
        was = None if self._is_hidden(path) else self._below.look(path)
        is_directory = status is not None and stat.S_ISDIR(status.st_mode) and not opaque
        if was is not None and stat.S_ISDIR(was.st_mode) and not is_directory:
            self._want_below(path)
        if known is not None or was is None:
            return True
        if status is None or not self._is_same(path, status, was):
            self.wanted[path] = was
        return False

    def _is_hidden(self, path: bytes) -> bool:
        """Tell whether the image shows nothing of lower layers at a path."""
        if path in self._known:
            return path in self._hides
        while path and path not in self._hides:
            path = path.rpartition(b"/")[0]
        return bool(path) or ROOT in self._hides

    def _want_below(self, directory: bytes) -> None:
        """Want what was in a directory, unless it is there, and so looked at by itself."""
        for path, was in self._below.walk(directory):
            if path not in self._known and not self._is_hidden(path) and not self.is_there(path):
                self.wanted[path] = was

    def is_there(self, path: bytes) -> bool:
        """Tell whether a path leads to something now."""
        try:
            return self._whole.look(path) is not None
        except CoveredError:
            return True

    def _is_same(self, path: bytes, now: os.stat_result, was: os.stat_result) -> bool:
        if _plain(now) != _plain(was):
            return False
        trees = self._whole, self._below
        if stat.S_ISLNK(now.st_mode) and _differ(trees, lambda tree: tree.target(path)):
            return False
        if _differ(trees, lambda tree: tree.attributes(path)):
            return False
        return not stat.S_ISREG(now.st_mode) or not _differ_in_contents(trees, path)

    def copies(self) -> list[Entry]:
        """Return what is to be copied, directories before what is in them."""
        for path in [*self.wanted]:
            # What is done in a directory changes its time.
            while path != ROOT:
                path = path.rpartition(b"/")[0] or ROOT
                if path in self._known or path in self.wanted:
                    continue
                if (was := self._below.look(path)) is not None:
                    self.wanted[path] = was
        collector = Collector(self._below, _none_stored)
        return [collector.entry(path, was) for path, was in sorted(self.wanted.items())]


def _shows_more(entry: Entry) -> bool:
    """Tell whether an entry is a directory that shows what lower layers have in it."""
    return stat.S_ISDIR(entry.mode) and not entry.opaque


def _none_stored(extents: object) -> int:
    return 0


def _plain(status: os.stat_result) -> tuple[int, ...]:
    return (
        status.st_mode,
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        status.st_rdev,
        0 if stat.S_ISDIR(status.st_mode) else status.st_size,
    )


def _differ(trees: tuple[Tree, Tree], ask: Callable[[Tree], object]) -> bool:
    one, other = map(ask, trees)
    return one != other


def _differ_in_contents(trees: tuple[Tree, Tree], path: bytes) -> bool:
    one, other = (tree.open_regular(path) for tree in trees)
    try:
        return any(
            ours != theirs for ours, theirs in zip(_pieces(one), _pieces(other), strict=True)
        )
    finally:
        os.close(one)
        os.close(other)


def _pieces(file: int) -> Iterator[bytes]:
    at = 0
    while data := os.pread(file, _STEP, at):
        yield data
        at += len(data)


def roll_back(overlay: Overlay, found: LayerReset, pages: int, base: int) -> None:
    """Set a container's root back to what the image has."""
    with while_("setting back the container's root file system"):
        maker = _Copier(
            overlay.tree,
            pages,
            base,
            kept=overlay.mount_points,
            keep_links=overlay.keeps_links,
            empties=True,
        )
        maker.below, maker.copies = found.below, {entry.path for entry in found.copies}
        for path in reversed(found.reset.remove):
            maker.remove(path)
        # The image has all directories that it has something in.
        maker.make([*found.reset.make, *found.copies])


class _Copier(Maker):
    """Makes some entries' contents from files of another tree."""

    below: Tree
    copies: set[bytes]

    def _fill(self, entry: Entry, file: int) -> None:
        if entry.path not in self.copies:
            super()._fill(entry, file)
            return
        source = self.below.open_regular(entry.path)
        try:
            for extent in entry.extents:
                end = min(extent.start + extent.length, entry.size)
                at = extent.start
                while at < end:
                    data = os.pread(source, min(_STEP, end - at), at)
                    if not data:
                        raise UnsupportedResource("a lower layer's file became shorter meanwhile")
                    at += os.pwrite(file, data, at)
        finally:
            os.close(source)
