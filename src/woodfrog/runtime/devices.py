"""The device nodes and links that every container has, and those that its config adds."""

from __future__ import annotations

import os
import stat

from woodfrog.errors import SpecError, WoodfrogError
from woodfrog.kernel import mounts as m
from woodfrog.runtime.root import by_descriptor

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


def make_all(root: Root, config: dict[str, Any], *, bind: bool) -> None:
    """Make all nodes and links, unless the config brings a /dev from elsewhere.

    In a user namespace no nodes can be made: those of the host are bound (`bind`).
    """
    for mount in config.get("mounts") or ():
        if mount["destination"].rstrip("/") == "/dev" and (
            mount.get("type") == "bind" or {"bind", "rbind"} & set(mount.get("options") or ())
        ):
            return
    before = os.umask(0)
    try:
        for path, major, minor in DEFAULT_DEVICES:
            _make(root, path, stat.S_IFCHR | 0o666, os.makedev(major, minor), 0, 0, bind=bind)
        for device in (config.get("linux") or {}).get("devices") or ():
            _make_configured(root, device, bind=bind)
    finally:
        os.umask(before)
    _make_links(root)


def _make_configured(root: Root, device: dict[str, Any], *, bind: bool) -> None:
    path, kind = device.get("path") or "", device.get("type")
    if not path.startswith("/") or kind not in _KINDS:
        raise SpecError(f"linux.devices: {path!r} of type {kind!r} is no device node")
    if path == "/dev/ptmx":
        return  # always the link to the container's own
    numbers = os.makedev(device.get("major") or 0, device.get("minor") or 0)
    mode = 0o666 if device.get("fileMode") is None else device["fileMode"] & 0o7777
    owner, group = device.get("uid") or 0, device.get("gid") or 0
    bind = bind and kind != "p"
    _make(root, path, _KINDS[kind] | mode, numbers, owner, group, bind=bind)


def _make(
    root: Root, path: str, mode: int, numbers: int, owner: int, group: int, *, bind: bool
) -> None:
    if bind:
        _bind(root, path, mode, numbers)
        return
    head, _, name = path.rpartition("/")
    parent = root.open_or_make(head or "/", directory=True)
    try:
        try:
            os.mknod(name, mode, numbers, dir_fd=parent)
        except FileExistsError:
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if not _is_device(found, mode, numbers):
                raise WoodfrogError(
                    f"cannot make the device {path}: the root file system has another file there",
                    hint="remove that file, or mount a tmpfs at /dev",
                ) from None
            return
        except PermissionError:
            # No right to make nodes (a container in a container, perhaps).
            _bind(root, path, mode, numbers)
            return
        if owner or group:
            os.chown(name, owner, group, dir_fd=parent, follow_symlinks=False)
    finally:
        os.close(parent)


def _bind(root: Root, path: str, mode: int, numbers: int) -> None:
    """Show the host's node of that path."""
    try:
        source = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise WoodfrogError(
            f"cannot make the device {path}, nor bind the host's: {error.strerror}",
            hint="in a user namespace, only devices can be had that the host has at the same path",
        ) from None
    try:
        if not _is_device(os.fstat(source), mode, numbers):
            raise WoodfrogError(
                f"cannot make the device {path}, nor bind the host's, which is another",
                hint="name it as the host does",
            )
        at = root.open_or_make(path, directory=False)
        try:
            root.mount(by_descriptor(source), at, None, m.MS_BIND)
        finally:
            os.close(at)
    finally:
        os.close(source)


def _is_device(found: os.stat_result, mode: int, numbers: int) -> bool:
    return stat.S_IFMT(found.st_mode) == stat.S_IFMT(mode) and found.st_rdev == numbers


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
