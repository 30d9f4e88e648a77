"""The device nodes and links that every container has, and those that its config adds."""

from __future__ import annotations

import os
import stat

from woodfrog.errors import SpecError, WoodfrogError
from woodfrog.kernel import mounts as m

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from woodfrog.runtime.root import Root

# Path, major, minor: readable and writable by all.
DEFAULT_DEVICES = (
    ("/dev/null", 1, 3),
    ("/dev/random", 1, 8),
    ("/dev/full", 1, 7),
    ("/dev/tty", 5, 0),
    ("/dev/zero", 1, 5),
    ("/dev/urandom", 1, 9),
)
LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
)
_KINDS = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}


def make_all(root: Root, config: dict[str, Any]) -> None:
    """Make all nodes and links, unless the config brings a /dev from elsewhere."""
    for mount in config.get("mounts") or ():
        if mount["destination"].rstrip("/") == "/dev" and (
            mount.get("type") == "bind" or {"bind", "rbind"} & set(mount.get("options") or ())
        ):
            return
    before = os.umask(0)
    try:
        for path, major, minor in DEFAULT_DEVICES:
            _make(root, path, stat.S_IFCHR | 0o666, os.makedev(major, minor), 0, 0)
        for device in (config.get("linux") or {}).get("devices") or ():
            _make_configured(root, device)
    finally:
        os.umask(before)
    _make_links(root)


def _make_configured(root: Root, device: dict[str, Any]) -> None:
    path, kind = device.get("path") or "", device.get("type")
    if not path.startswith("/") or kind not in _KINDS:
        raise SpecError(f"linux.devices: {path!r} of type {kind!r} is no device node")
    numbers = os.makedev(device.get("major") or 0, device.get("minor") or 0)
    mode = 0o666 if device.get("fileMode") is None else device["fileMode"] & 0o7777
    owner, group = device.get("uid") or 0, device.get("gid") or 0
    _make(root, path, _KINDS[kind] | mode, numbers, owner, group)


def _make(root: Root, path: str, mode: int, numbers: int, owner: int, group: int) -> None:
    head, _, name = path.rpartition("/")
    parent = root.open_or_make(head or "/", directory=True)
    try:
        try:
            os.mknod(name, mode, numbers, dir_fd=parent)
        except FileExistsError:
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if stat.S_IFMT(found.st_mode) != stat.S_IFMT(mode) or found.st_rdev != numbers:
                raise WoodfrogError(
                    f"cannot make the device {path}: the root file system has another file there",
                    hint="remove that file, or mount a tmpfs at /dev",
                ) from None
            return
        except PermissionError:
            # No right to make nodes (a container in a container, perhaps): show the host's.
            at = root.open_or_make(path, directory=False)
            try:
                root.mount(path, at, None, m.MS_BIND)
            finally:
                os.close(at)
            return
        if owner or group:
            os.chown(name, owner, group, dir_fd=parent, follow_symlinks=False)
    finally:
        os.close(parent)


def _make_links(root: Root) -> None:
    links = list(LINKS)
    try:
        os.close(root.open("/dev/pts/ptmx"))
        links.append(("ptmx", "pts/ptmx"))
    except OSError:
        pass
    if os.path.exists("/proc/kcore"):
        links.append(("core", "/proc/kcore"))
    parent = root.open("/dev", os.O_PATH | os.O_DIRECTORY)
    try:
        for name, target in links:
            try:
                os.symlink(target, name, dir_fd=parent)
            except FileExistsError:
                if name == "ptmx":
                    os.unlink(name, dir_fd=parent)
                    os.symlink(target, name, dir_fd=parent)
    finally:
        os.close(parent)
