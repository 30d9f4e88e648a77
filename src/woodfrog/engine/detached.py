"""The mounts of a held container that only open files hold."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack

from msgspec.structs import replace

from woodfrog.engine.obstacles import Obstacles
from woodfrog.engine.places import Place
from woodfrog.errors import UnsupportedResource
from woodfrog.kernel.procfs.mountinfo import read_mounts
from woodfrog.resources import shared_memory
from woodfrog.resources.files.open_file import O_PATH, OpenFile
from woodfrog.resources.mount_tree import detached
from woodfrog.resources.mount_tree.admitting import may_mount
from woodfrog.resources.mount_tree.detached import Detached


class DetachedMounts:
    """Those mounts, and which files are in them."""

    def __init__(self, files: Iterable[OpenFile], places: list[Place], bounding: int) -> None:
        """`places` are all mount namespaces, the container's own first."""
        self.found: list[Detached] = []
        self._files: dict[int, tuple[int, bool]] = {}
        self._places = places
        self._may_mount = may_mount(bounding)
        self._by_mount: dict[int, list[OpenFile]] = {}
        known = {number for place in places for number in place.mounts}
        for file in files:
            is_one = file.target.startswith(b"/") and not shared_memory.is_one(file.target)
            if is_one and file.mnt_id not in known:
                self._by_mount.setdefault(file.mnt_id, []).append(file)
        # What is in a mount of ours came from outside.
        for mount in read_mounts("self") if self._by_mount else ():
            self._by_mount.pop(mount.mnt_id, None)

    def look(self, undo: ExitStack, obstacles: Obstacles) -> None:
        """Find out what they show; the copies are closed by `undo`."""
        for number, files in self._by_mount.items() if self._may_mount else ():
            with obstacles.at(f"{files[0].link} ({os.fsdecode(files[0].target)})"):
                self._look_at(number, files, undo)

    def _look_at(self, number: int, files: list[OpenFile], undo: ExitStack) -> None:
        files.sort(key=lambda one: len(one.target))
        first, origin = files[0], None
        for place in self._places:
            if copied := detached.by_copy(place.view, first.descriptor, first.target):
                mount, copy = copied
                undo.callback(os.close, copy)
                origin = next((o for o in files if o.target == b"/" and o.flags == O_PATH), None)
                if origin is None:
                    raise UnsupportedResource(
                        "is in a mount that is attached nowhere, which somebody else holds, or a"
                        " message in flight; that cannot be saved yet"
                    )
                break
        else:
            mounts, copy = self._places[0].mounts.values(), -1
            seen = detached.by_path(first.descriptor, first.target, mounts, self._names(first))
            if seen is None:
                return  # it is no mount of the container's
            mount = seen
        detached.refuse_shared(mount)
        place_in_image = len(self.found) + 1
        self.found.append(Detached(replace(mount, mnt_id=number), place_in_image, copy))
        for file in files:
            self._files[id(file)] = place_in_image, file is origin

    def _names(self, file: OpenFile) -> Iterator[bytes]:
        """Go through the names that a file may have in the container's own mounts."""
        own = self._places[0]
        device = os.major(file.stat.st_dev), os.minor(file.stat.st_dev)
        for mount in own.mounts.values():
            name = mount.point.rstrip(b"/") + file.target
            if mount.device == device and own.names.stands_at(name, file.stat):
                yield name
        if found := own.names.by_inode(device, file.stat.st_ino):
            yield found

    def of(self, file: OpenFile) -> tuple[int, bool]:
        """Return the id of the mount that a file is in, 0 for none, and whether it holds that."""
        return self._files.get(id(file), (0, False))
