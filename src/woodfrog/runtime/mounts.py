"""The mounts of a container, each made at a place that was opened inside its root."""

from __future__ import annotations

import errno
import os
import stat

from woodfrog.errors import SpecError, WoodfrogError, while_
from woodfrog.kernel import mounts as m
from woodfrog.kernel.caller import HERE
from woodfrog.runtime import cgroups
from woodfrog.runtime.mount_options import Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Flags that a remount of a bind takes; all others of mount(2) belong to the file system.
_PER_MOUNT = (
    m.MS_RDONLY
    | m.MS_NOSUID
    | m.MS_NODEV
    | m.MS_NOEXEC
    | m.MS_NOATIME
    | m.MS_NODIRATIME
    | m.MS_RELATIME
    | m.MS_STRICTATIME
    | m.MS_NOSYMFOLLOW
)


def _lstat(name: str, directory: int) -> int:
    return os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode


def by_descriptor(descriptor: int) -> str:
    """Return a path that leads to just what a descriptor names."""
    return f"/proc/self/fd/{descriptor}"


class Root:
    """A container's root directory, before it becomes "/"; paths in it can't lead outside."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def open(self, path: str, flags: int = os.O_PATH, resolve: int = 0) -> int:
        """Open what is there now, on top of all mounts."""
        return m.open_in_root(HERE, self.descriptor, path, flags, resolve=resolve)

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


def mount_all(root: Root, config: dict[str, Any], bundle: str, groups: cgroups.Groups) -> None:
    """Make every mount that the config lists, in its order."""
    for position, mount in enumerate(config.get("mounts") or ()):
        destination = "/" + mount["destination"].lstrip("/")
        try:
            _mount(root, mount, destination, bundle, groups)
        except OSError as error:
            kind = mount.get("type") or "bind"
            raise WoodfrogError(
                f"cannot mount {kind} {mount.get('source', '')} at {destination}"
                f" (mounts[{position}]): {error.strerror}"
            ) from error


def _mount(
    root: Root, mount: dict[str, Any], destination: str, bundle: str, groups: cgroups.Groups
) -> None:
    options = Options(mount.get("options") or [])
    kind = mount.get("type") or ""
    if options.is_bind or kind == "bind":
        options.flags |= m.MS_BIND
        _bind(root, mount, destination, bundle, options)
    elif kind == "cgroup":
        from woodfrog.runtime import cgroup_mounts

        cgroup_mounts.mount(root, destination, options, groups)
    else:
        _file_system(root, mount, destination, kind, options)
    if options.propagation or options.set_below or options.clear_below:
        at = root.open(destination)
        try:
            if options.set_below or options.clear_below:
                m.mount_setattr(
                    HERE, at, set_=options.set_below, clear=options.clear_below, recursive=True
                )
            for flag in options.propagation:
                root.mount(None, at, None, flag)
        finally:
            os.close(at)


def _bind(
    root: Root, mount: dict[str, Any], destination: str, bundle: str, options: Options
) -> None:
    source = os.path.join(bundle, mount.get("source") or "")
    try:
        from_ = os.open(source, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        raise SpecError(
            f"the source of the mount at {destination} does not exist: {source}"
        ) from None
    try:
        is_directory = stat.S_ISDIR(os.fstat(from_).st_mode)
        at = root.open_or_make(destination, directory=is_directory)
        try:
            root.mount(by_descriptor(from_), at, None, options.flags & (m.MS_BIND | m.MS_REC))
        except NotADirectoryError:
            kind = "directory" if is_directory else "file"
            raise SpecError(
                f"the source {source} is a {kind}, but {destination} in the container is not:"
                " not a directory"  # which docker looks for
            ) from None
        finally:
            os.close(at)
    finally:
        os.close(from_)
    if options.flags & _PER_MOUNT or options.cleared & _PER_MOUNT:
        remount(root, destination, options.flags & _PER_MOUNT)


def remount(root: Root, path: str, flags: int) -> None:
    """Give the mount at `path` these flags, which replace those it has."""
    at = root.open(path)
    try:
        root.mount(None, at, None, m.MS_REMOUNT | m.MS_BIND | flags)
    finally:
        os.close(at)


def make_read_only(root: Root, path: str) -> None:
    """Make the mount at `path` read-only and leave its other flags as they are."""
    at = root.open(path)
    try:
        kept = _flags_of(at)
        root.mount(None, at, None, m.MS_REMOUNT | m.MS_BIND | m.MS_RDONLY | kept)
    finally:
        os.close(at)


def _flags_of(descriptor: int) -> int:
    has = os.fstatvfs(descriptor).f_flag
    flags = 0
    for bit, flag in (
        (os.ST_NOSUID, m.MS_NOSUID),
        (os.ST_NODEV, m.MS_NODEV),
        (os.ST_NOEXEC, m.MS_NOEXEC),
        (os.ST_NOATIME, m.MS_NOATIME),
        (os.ST_NODIRATIME, m.MS_NODIRATIME),
        (os.ST_RELATIME, m.MS_RELATIME),
    ):
        if has & bit:
            flags |= flag
    return flags


def _file_system(
    root: Root, mount: dict[str, Any], destination: str, kind: str, options: Options
) -> None:
    # procfs or sysfs somewhere else, by a symbolic link of the image's, would leave the masked
    # and read-only paths at the wrong place.
    resolve = m.RESOLVE_NO_SYMLINKS if kind in ("proc", "sysfs") else 0
    at = root.open_or_make(destination, directory=True, resolve=resolve)
    try:
        if kind == "tmpfs" and "mode=" not in options.data:
            mode = stat.S_IMODE(os.fstat(at).st_mode)
            options.data = ",".join(filter(None, (options.data, f"mode={mode:o}")))
        # A tmpfs that is to be read-only gets its content (device nodes, say) first.
        late = options.flags & m.MS_RDONLY if kind == "tmpfs" else 0
        source = mount.get("source") or kind
        root.mount(source, at, kind, options.flags & ~late, options.data)
        if options.copy_up and kind == "tmpfs":
            with while_(f"filling the tmpfs at {destination}"):
                _copy_up(at, root.open(destination, os.O_RDONLY | os.O_DIRECTORY))
    finally:
        os.close(at)


def _copy_up(below: int, above: int) -> None:
    import shutil

    try:
        source = os.open(by_descriptor(below), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            shutil.copytree(
                by_descriptor(source), by_descriptor(above), symlinks=True, dirs_exist_ok=True
            )
        finally:
            os.close(source)
    finally:
        os.close(above)


def finish_read_only(root: Root, config: dict[str, Any]) -> None:
    """Make those tmpfs read-only that had to be filled first."""
    for mount in config.get("mounts") or ():
        if mount.get("type") == "tmpfs":
            options = Options(mount.get("options") or [])
            if options.flags & m.MS_RDONLY and not options.is_bind:
                make_read_only(root, "/" + mount["destination"].lstrip("/"))


def mask(root: Root, paths: list[str]) -> None:
    """Hide files behind /dev/null and directories behind an empty read-only tmpfs."""
    for path in paths:
        try:
            at = root.open(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        try:
            if stat.S_ISDIR(os.fstat(at).st_mode):
                root.mount("tmpfs", at, "tmpfs", m.MS_RDONLY, "size=0k")
            else:
                root.mount("/dev/null", at, None, m.MS_BIND)
        except OSError as error:
            raise WoodfrogError(f"cannot mask {path}: {error.strerror}") from error
        finally:
            os.close(at)


def protect(root: Root, paths: list[str]) -> None:
    """Make parts of the file system read-only."""
    for path in paths:
        try:
            at = root.open(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        try:
            root.mount(by_descriptor(at), at, None, m.MS_BIND | m.MS_REC)
            make_read_only(root, path)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise WoodfrogError(f"cannot make {path} read-only: {error.strerror}") from error
        finally:
            os.close(at)
