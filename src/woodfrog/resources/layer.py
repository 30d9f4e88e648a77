"""The changes of a container's root file system: what its overlay's writable layer holds.

The upper directory tells which paths have changed, and the overlay itself what they have become.
So the overlay's own marks (whiteouts, origins, redirections, copies of attributes alone) need no
interpretation but one: what a directory hides. Changes are made through the overlay, too: nothing
else may write to the upper directory while it is mounted.
"""

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import NamedTuple

from woodfrog.errors import ImageError, UnsupportedResource, while_
from woodfrog.image.record import Record
from woodfrog.resources import file_entry, file_maker
from woodfrog.resources.file_entry import ROOT, Entry
from woodfrog.resources.file_maker import Maker
from woodfrog.resources.file_tree import Collector, Tree, WritePages, join
from woodfrog.resources.overlay import Overlay

WHERE = "the root file system"
# What new directories, names and little files take besides their contents.
_SPACE_BESIDE_FILES = 1 << 20


class Layer(Record, frozen=True, tag="layer"):
    """What has changed, directories before what is in them, and the paths that were removed."""

    entries: list[Entry]
    removed: list[bytes]


class Change(NamedTuple):
    """A path that has changed; without a status it was removed.

    An `opaque` directory shows nothing of the layers below.
    """

    path: bytes
    status: os.stat_result | None
    opaque: bool = False


def changes(overlay: Overlay, rootfs: str) -> Iterator[Change]:
    """Yield all changes of an overlay that is mounted at `rootfs`, directories first."""
    upper = overlay.open_upper(rootfs)
    if upper is None:
        return
    yield Change(ROOT, os.fstat(overlay.tree.root))
    try:
        yield from _below(overlay.tree, upper, overlay.marks)
    finally:
        os.close(upper.root)


def _below(whole: Tree, upper: Tree, marks: str) -> Iterator[Change]:
    waiting = [(ROOT, False)]
    while waiting:
        directory, within_opaque = waiting.pop()
        for name in upper.names(directory):
            path = join(directory, name)
            status = whole.look(path)
            if status is None or not stat.S_ISDIR(status.st_mode):
                yield Change(path, status)
            elif _mark(upper, path, f"{marks}.redirect") is not None:
                # It was renamed: what it shows of lower layers stands elsewhere there.
                yield Change(path, status, opaque=True)
                for inner, found in whole.walk(path):
                    yield Change(inner, found, opaque=stat.S_ISDIR(found.st_mode))
            else:
                opaque = within_opaque or _mark(upper, path, f"{marks}.opaque") == b"y"
                yield Change(path, status, opaque=opaque)
                waiting.append((path, opaque))


def _mark(upper: Tree, path: bytes, name: str) -> bytes | None:
    """Return what an overlay has noted of its own about a directory, or None."""
    directory = upper.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return _attribute(directory, name)
    finally:
        os.close(directory)


def _attribute(descriptor: int, name: str) -> bytes | None:
    try:
        return os.getxattr(descriptor, name)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise
        return None


def collect(
    overlay: Overlay,
    rootfs: str,
    write_pages: WritePages,
    leased: Mapping[tuple[int, int], int],
) -> Layer:
    """Read what has changed in a held container's root."""
    blocks = _Blocks(overlay.open_upper(rootfs), overlay.marks)
    with while_("reading the changes of the container's root file system"), closing(blocks):
        collector = Collector(overlay.tree, write_pages, blocks.open, leased)
        entries: list[Entry] = []
        removed: list[bytes] = []
        for path, status, opaque in changes(overlay, rootfs):
            if status is None:
                removed.append(path)
            else:
                entries.append(collector.entry(path, status, opaque=opaque))
        return Layer(entries=entries, removed=removed)


class _Blocks:
    """The upper directory's own files, whose blocks an image may share."""

    def __init__(self, upper: Tree | None, marks: str) -> None:
        self._upper = upper
        self._attributes_alone = f"{marks}.metacopy"

    def open(self, path: bytes) -> int:
        """Open a file that has its data there; or return -1."""
        if self._upper is None:
            return -1
        try:
            file = self._upper.open_regular(path)
        except OSError:
            return -1  # of a lower layer, seen in a renamed directory
        if _attribute(file, self._attributes_alone) is None:
            return file
        os.close(file)
        return -1

    def close(self) -> None:
        """Let go of the directory."""
        if self._upper is not None:
            os.close(self._upper.root)


def check(layer: Layer, page_bytes: int) -> None:
    """Check a layer from an image before anything is made of it."""
    file_entry.check(layer.entries, WHERE, page_bytes)
    for path in layer.removed:
        file_entry.check_path(path, WHERE)
        if path == ROOT:
            raise ImageError(f"the image has removed {WHERE}")


def refuse_wider(layer: Layer, overlay: Overlay, bounding: int) -> None:
    """Refuse what the new container could not make itself, or has no room for."""
    file_maker.refuse_wider(layer.entries, overlay.tree, bounding, WHERE)
    files = sum(extent.length for entry in layer.entries for extent in entry.extents)
    system = os.statvfs(overlay.tree.root)
    free = system.f_bavail * system.f_frsize
    if files and free < files + _SPACE_BESIDE_FILES:
        raise UnsupportedResource(
            f"the container's root file system has {free >> 20} MiB free, and the files in the"
            f" image need {files >> 20} MiB"
        )


def restore(layer: Layer, overlay: Overlay, pages: int, base: int) -> None:
    """Make all changes in a new container's root; `pages` is the page store, 0 being at `base`.

    What the new container's own layer has besides stays, and so do its mount points.
    """
    with while_("bringing the files of the image into the container's root file system"):
        maker = Maker(
            overlay.tree,
            pages,
            base,
            kept=overlay.mount_points,
            keep_links=overlay.keeps_links,
        )
        for path in layer.removed:
            maker.remove(path)
        maker.make(layer.entries)
