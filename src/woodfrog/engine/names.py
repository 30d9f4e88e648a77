"""Finding names of files in a container that the kernel tells only by inode."""

import os
from collections.abc import Iterator

from woodfrog.errors import UnsupportedResource
from woodfrog.kernel import syscalls
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.mounts import RESOLVE_IN_ROOT, RESOLVE_NO_SYMLINKS
from woodfrog.kernel.procfs.mountinfo import Mount

# How many names to look at.
_MOST_NAMES = 100_000
_OVERLAY_HANDLE = 0xF8  # OVL_FILEID_V1
_OVERLAY_HEAD = 24  # padding, version, magic, length, flags, type, uuid: struct ovl_fh
_PATH = os.O_PATH | os.O_CLOEXEC


class Names:
    """The names of a container's files; `root` leads to its root directory."""

    def __init__(self, root: str, mounts: dict[int, Mount]) -> None:
        self._root = os.fsencode(root)
        self._mounts = mounts

    def stands_at(self, path: bytes, found: os.stat_result) -> bool:
        """Tell whether a path leads to this file."""
        try:
            there = os.lstat(self._root + path)
        except OSError:
            return False
        return (there.st_ino, there.st_dev) == (found.st_ino, found.st_dev)

    def other_name(self, path: bytes, found: os.stat_result) -> bytes:
        """Find another name of a file, beginning where it had the one that is gone.

        Empty if it may have none.
        """
        parent = os.path.dirname(path)
        mounts = [mount for mount in self._mounts.values() if _is_below(parent, mount.point)]
        above = max(mounts, key=lambda mount: len(mount.point))
        for name in self._names_below(parent, above.point):
            if self.stands_at(name, found):
                return name
        if above.type == "overlay":
            # What stands below the upper layer keeps its link when it is removed.
            return b""
        raise UnsupportedResource(
            f"{os.fsdecode(path)} has another name, which is not found on its mount"
            f" among {_MOST_NAMES} names",
            hint="keep the name by which it was opened",
        )

    def by_inode(self, device: tuple[int, int], inode: int) -> bytes | None:
        """Find a name of an inode of a file system by looking at all names."""
        points = [mount.point for mount in self._mounts.values() if mount.device == device]
        for name in (*points, *self._names_below(*points)):
            try:
                if os.lstat(self._root + name).st_ino == inode:
                    return name
            except OSError:
                continue
        return None

    def _names_below(self, *tops: bytes) -> Iterator[bytes]:
        """Go through the names below some directories, but not into other file systems."""
        left = _MOST_NAMES
        for top in dict.fromkeys(tops):
            try:
                device = os.lstat(self._root + top).st_dev
            except OSError:
                continue
            # Not by recursion, as os.walk before Python 3.12: directories can be deeper.
            waiting = [self._root + top]
            while waiting:
                directory = waiting.pop()
                names = _names(directory)
                left -= len(names)
                if left < 0:
                    return
                for name, is_directory in names:
                    path = os.path.join(directory, name)
                    yield b"/" + path.removeprefix(self._root).lstrip(b"/")
                    if is_directory and _is_on(path, device):
                        waiting.append(path)

    def by_handle(self, device: tuple[int, int], kind: int, handle: bytes) -> Iterator[int]:
        """Open what a handle (name_to_handle_at(2)) stands for, by each mount of its file system.

        The descriptors (O_PATH) are closed again. One of an overlay, which it may be unable to
        decode itself, is decoded by the file system below it.
        """
        for mount in self._mounts.values():
            if mount.device != device:
                continue
            if kind == _OVERLAY_HANDLE:
                yield from self._by_overlay_handle(mount, handle)
            yield from _opened(self._root + mount.point, kind, handle)

    def _by_overlay_handle(self, mount: Mount, handle: bytes) -> Iterator[int]:
        options = dict(one.partition("=")[::2] for one in mount.super_options.split(","))
        layers = [*options.get("lowerdir", "").split(":"), options.get("upperdir", "")]
        layers = [os.path.realpath(layer) for layer in layers if layer]
        for layer in layers:
            for fd in _opened(os.fsencode(layer), handle[7], handle[_OVERLAY_HEAD:]):
                path = os.readlink(f"/proc/self/fd/{fd}")
                for below in layers:
                    if path == below or path.startswith(below + "/"):
                        inside = os.fsencode(os.path.relpath(path, below))
                        yield from self._opened_path(os.path.join(mount.point, inside))

    def _opened_path(self, path: bytes) -> Iterator[int]:
        root = os.open(self._root, _PATH)
        try:
            resolve = RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS
            flags = _PATH | os.O_NOFOLLOW
            fd = syscalls.openat2(HERE, path, flags, directory=root, resolve=resolve)
        except OSError:
            return
        finally:
            os.close(root)
        try:
            yield fd
        finally:
            os.close(fd)


def _opened(mount: bytes, kind: int, handle: bytes) -> Iterator[int]:
    """Open a handle by a mount, if that can be; neither open is seen by inotify."""
    try:
        before, there = os.open(".", _PATH), os.open(mount, _PATH)
    except OSError:
        return
    try:
        os.fchdir(there)
        fd = syscalls.open_by_handle(HERE, kind, handle, _PATH)
    except OSError:
        return
    finally:
        os.fchdir(before)
        os.close(before)
        os.close(there)
    try:
        yield fd
    finally:
        os.close(fd)


def _is_below(path: bytes, point: bytes) -> bool:
    return point == b"/" or path == point or path.startswith(point + b"/")


def _names(directory: bytes) -> list[tuple[bytes, bool]]:
    """Return the names in a directory, and whether each is one of a directory."""
    try:
        with os.scandir(directory) as entries:
            return [(one.name, one.is_dir(follow_symlinks=False)) for one in entries]
    except OSError:
        return []


def _is_on(directory: bytes, device: int) -> bool:
    try:
        return os.lstat(directory).st_dev == device
    except OSError:
        return False
