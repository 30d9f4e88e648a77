"""The container's root directory before it becomes "/"; paths in it can't lead outside."""

from __future__ import annotations

import os
import stat

from woodfrog.kernel import mounts as m
from woodfrog.kernel.caller import HERE


def by_descriptor(descriptor: int) -> str:
    """Return a path that leads to just what a descriptor names."""
    return f"/proc/self/fd/{descriptor}"


class Root:
    """A directory in which paths are looked up as if it were "/"."""

    def __init__(self, path: str, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor

    def inside(self, path: str) -> str:
        """Return a destination as seen from inside; a config may name it as seen from outside."""
        path = os.path.normpath("/" + path)
        if path.startswith("//"):
            path = path[1:]
        if path == self.path or path.startswith(self.path + "/"):
            path = path[len(self.path) :]
        return path or "/"

    def open(self, path: str, flags: int = os.O_PATH, resolve: int = 0) -> int:
        """Open what is there now, on top of all mounts."""
        return m.open_in_root(HERE, self.descriptor, path, flags, resolve=resolve)

    def place(self, descriptor: int) -> str:
        """Return where in the root a descriptor is, by the kernel's account."""
        path = os.readlink(by_descriptor(descriptor))
        return path[len(self.path) :] or "/" if path.startswith(self.path) else path

    def open_or_make(self, path: str, *, directory: bool, resolve: int = 0, links: int = 40) -> int:
        """Open a mount point, and make it and its parents if they aren't there."""
        try:
            return self.open(path, resolve=resolve)
        except FileNotFoundError:
            pass
        head, _, name = path.rstrip("/").rpartition("/")
        parent = self.open_or_make(head or "/", directory=True, resolve=resolve, links=links)
        try:
            if directory:
                os.mkdir(name, 0o755, dir_fd=parent)
            else:
                flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
                os.close(os.open(name, flags, 0o644, dir_fd=parent))
        except FileExistsError:
            # A symbolic link that leads nowhere (images have /etc/resolv.conf so): make its end.
            if links and not resolve and stat.S_ISLNK(_lstat(name, parent)):
                end = os.path.join(head or "/", os.readlink(name, dir_fd=parent))
                return self.open_or_make(end, directory=directory, links=links - 1)
        finally:
            os.close(parent)
        return self.open(path, resolve=resolve)

    def mount(
        self,
        source: str | None,
        at: int,
        fstype: str | None,
        flags: int,
        data: str | None = None,
    ) -> None:
        """Mount onto the place that a descriptor names."""
        m.mount(HERE, source, by_descriptor(at), fstype, flags, data)


def _lstat(name: str, directory: int) -> int:
    return os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
