"""The mounts of a container, each made at a place that was opened inside its root."""

from __future__ import annotations

import errno
import os
import stat

from woodfrog.errors import SpecError, WoodfrogError, while_
from woodfrog.kernel import mounts as m
from woodfrog.kernel.caller import HERE
from woodfrog.runtime import bind, cgroups
from woodfrog.runtime.mount_options import Options, flags_of
from woodfrog.runtime.root import Root, by_descriptor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from woodfrog.runtime.mount_sources import Sources

# lxcfs puts its own versions over these; all else in /proc is the kernel's alone to say.
_MAY_BE_COVERED = (
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/sys/crypto/fips_enabled",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/uptime",
)
# File systems that take no label for their files.
_UNLABELLED = ("proc", "sysfs", "mqueue", "cgroup2")


def mount_all(root: Root, config: dict[str, Any], sources: Sources, groups: cgroups.Groups) -> None:
    """Make every mount that the config lists, in its order."""
    for position, mount in enumerate(config.get("mounts") or ()):
        destination = root.inside(mount["destination"])
        try:
            _mount(root, position, mount, destination, sources, groups)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise WoodfrogError(
                f'error mounting "{mount.get("source") or mount.get("type") or ""}" to rootfs'
                f' at "{destination}" (mounts[{position}]): {reason}',
                hint=_hint(mount.get("type") or "", error.errno, config),
            ) from error


def _hint(kind: str, number: int | None, config: dict[str, Any]) -> str:
    """Say what a file system needs in a user namespace."""
    wanted = {one["type"] for one in (config.get("linux") or {}).get("namespaces") or ()}
    if "user" not in wanted:
        return ""
    needs = {"sysfs": "network", "proc": "pid", "mqueue": "ipc"}.get(kind)
    if number == errno.EPERM and needs:
        return f"in a user namespace, {kind} needs a new {needs} namespace; or bind the host's"
    if number == errno.EINVAL and kind == "devpts":
        return "are the ids in its options (gid=5) mapped in the user namespace?"
    return ""


def _mount(
    root: Root,
    position: int,
    mount: dict[str, Any],
    destination: str,
    sources: Sources,
    groups: cgroups.Groups,
) -> None:
    options = Options(mount.get("options") or [])
    kind = mount.get("type") or ""
    if options.is_bind or kind == "bind":
        options.flags |= m.MS_BIND
        bind.bind(root, position, destination, options, sources, refuse_in_proc)
    elif kind == "cgroup":
        from woodfrog.runtime.cgroups import mounting

        mounting.mount(root, destination, options, groups)
    else:
        _file_system(root, mount, destination, kind, options, sources.label)
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


def refuse_in_proc(root: Root, at: int, source: int | None) -> None:
    """Refuse what would stand in for the kernel's own files; `source` is what is bound there."""
    place = root.place(at)
    if place == "/":
        raise SpecError("a mount's destination is the root itself")
    if place == "/proc":
        if source is not None and m.file_system_type(HERE, source) == m.PROC_SUPER_MAGIC:
            return
        raise SpecError(f'"{place}" cannot be mounted because it is not of type proc')
    if place.startswith("/proc/") and place not in _MAY_BE_COVERED:
        raise SpecError(f'"{place}" cannot be mounted because it is inside /proc')


def _file_system(
    root: Root,
    mount: dict[str, Any],
    destination: str,
    kind: str,
    options: Options,
    label: str,
) -> None:
    if options.map_ids or mount.get("uidMappings") or mount.get("gidMappings"):
        raise SpecError(
            f"the mount at {destination} maps ids, but is no bind mount",
            hint="mount it on the host, and bind it into the container with its id mappings",
        )
    at, is_new = _open_mount_point(root, destination, kind)
    try:
        if kind != "proc":
            refuse_in_proc(root, at, None)
        if kind == "tmpfs" and not is_new and "mode=" not in options.data:
            mode = stat.S_IMODE(os.fstat(at).st_mode)
            options.data = ",".join(filter(None, (options.data, f"mode={mode:o}")))
        # What is to be read-only gets its content (device nodes, say) first.
        late = options.flags & m.MS_RDONLY if _is_made_read_only_late(kind, destination) else 0
        source = mount.get("source") or kind
        if label and kind not in _UNLABELLED:
            from woodfrog.runtime.labels import with_context

            options.data = with_context(options.data, label)
        root.mount(source, at, kind, options.flags & ~late, options.data)
        if options.copy_up and kind == "tmpfs":
            from woodfrog.runtime.copy_up import copy_up

            with while_(f"filling the tmpfs at {destination}"):
                copy_up(at, root.open(destination, os.O_RDONLY | os.O_DIRECTORY))
    finally:
        os.close(at)


def _open_mount_point(root: Root, destination: str, kind: str) -> tuple[int, bool]:
    """Return (the place, whether it was made just now)."""
    # procfs or sysfs somewhere else, by a symbolic link of the image's, would leave the masked
    # and read-only paths at the wrong place.
    resolve = m.RESOLVE_NO_SYMLINKS if kind in ("proc", "sysfs") else 0
    is_new = False
    try:
        try:
            at = root.open(destination, resolve=resolve)
        except FileNotFoundError:
            is_new = True
            at = root.open_or_make(destination, directory=True, resolve=resolve)
    except OSError as error:
        if resolve and error.errno == errno.ELOOP:
            raise _not_ordinary(kind, destination) from None
        raise
    if resolve and not stat.S_ISDIR(os.fstat(at).st_mode):
        os.close(at)
        raise _not_ordinary(kind, destination)
    return at, is_new


def _not_ordinary(kind: str, destination: str) -> WoodfrogError:
    return WoodfrogError(
        f'filesystem "{kind}" must be mounted on ordinary directory, which {destination} is not'
    )


def _is_made_read_only_late(kind: str, destination: str) -> bool:
    return kind == "tmpfs" or destination == "/dev"


def finish_read_only(root: Root, config: dict[str, Any]) -> None:
    """Make those mounts read-only that had to be filled first."""
    for mount in config.get("mounts") or ():
        destination = root.inside(mount["destination"])
        if _is_made_read_only_late(mount.get("type") or "", destination):
            options = Options(mount.get("options") or [])
            if options.flags & m.MS_RDONLY and not options.is_bind:
                make_read_only(root, destination)


def make_read_only(root: Root, path: str) -> None:
    """Make the mount at `path` read-only and leave its other flags as they are."""
    at = root.open(path)
    try:
        root.mount(None, at, None, m.MS_REMOUNT | m.MS_BIND | m.MS_RDONLY | flags_of(at))
    finally:
        os.close(at)


def mask(root: Root, paths: list[str]) -> None:
    """Hide files behind /dev/null and directories behind one empty read-only tmpfs."""
    empty = -1
    try:
        for path in paths:
            try:
                at = root.open(path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            try:
                if not stat.S_ISDIR(os.fstat(at).st_mode):
                    root.mount("/dev/null", at, None, m.MS_BIND)
                elif empty >= 0:
                    root.mount(by_descriptor(empty), at, None, m.MS_BIND)
                else:
                    root.mount("tmpfs", at, "tmpfs", m.MS_RDONLY, "nr_blocks=1,nr_inodes=1")
                    empty = root.open(path)
            except OSError as error:
                raise WoodfrogError(f"cannot mask {path}: {error.strerror}") from error
            finally:
                os.close(at)
    finally:
        if empty >= 0:
            os.close(empty)


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
