"""The container's root: its mounts are made under it, then it becomes "/"."""

from __future__ import annotations

import os

from woodfrog.errors import SpecError, WoodfrogError
from woodfrog.kernel import mounts as m
from woodfrog.kernel import own_modules
from woodfrog.kernel.caller import HERE
from woodfrog.runtime import devices, mounts, spec
from woodfrog.runtime.mount_options import PROPAGATION
from woodfrog.runtime.root import Root, by_descriptor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from woodfrog.runtime.cgroups import Groups
    from woodfrog.runtime.mount_sources import Sources


def prepare(
    config: dict[str, Any], sources: Sources, groups: Groups, *, in_user_namespace: bool
) -> Root:
    """Make all mounts and devices of the container in our mount namespace."""
    propagation = (config.get("linux") or {}).get("rootfsPropagation") or "rslave"
    if propagation not in PROPAGATION:
        raise SpecError(f"linux.rootfsPropagation is {propagation!r}, which is unknown")
    top = sources.open()
    if has_own_mounts(config):
        m.mount(HERE, None, "/", None, PROPAGATION[propagation] | m.MS_REC)
        _make_parent_private(sources.rootfs)
        below, top = top, m.clone_tree(HERE, by_descriptor(top), recursive=True)
        m.attach(HERE, top, below)
        os.close(below)
    root = Root(sources.rootfs, top)
    mounts.mount_all(root, config, sources, groups)
    devices.make_all(root, config, bind=in_user_namespace)
    return root


def has_own_mounts(config: dict[str, Any]) -> bool:
    """Tell whether there is a mount namespace; else the outside half has made the root a mount."""
    return "mount" in spec.namespaces(config)


def overlay(lower: str, scratch: str, path: str) -> None:
    """Mount `lower`, read-only, under a writable layer in `scratch`, at `path`."""
    options = f"lowerdir={lower},upperdir={scratch}/upper,workdir={scratch}/work"
    try:
        m.mount(HERE, "woodfrog", path, "overlay", 0, options)
    except OSError as error:
        raise WoodfrogError(
            f"cannot mount the scratch overlay over {lower}: {error.strerror}",
            hint="the kernel needs overlayfs; in a container? start it with --privileged",
        ) from error


def _make_parent_private(path: str) -> None:
    """Make the mount that holds the root private: pivot_root refuses shared ones."""
    at = path
    while True:
        try:
            m.mount(HERE, None, at, None, m.MS_PRIVATE)
            return
        except OSError:  # EINVAL: not a mount point. EACCES: out of a user namespace's reach
            if at == "/":
                raise
            at = os.path.dirname(at)


def seal(root: Root, config: dict[str, Any]) -> None:
    """Make read-only and hide what the config says, once nothing more is to be made."""
    linux = config.get("linux") or {}
    mounts.finish_read_only(root, config)
    mounts.protect(root, linux.get("readonlyPaths") or [])
    mounts.mask(root, linux.get("maskedPaths") or [])
    if config["root"].get("readonly"):
        mounts.make_read_only(root, "/")


def enter(root: Root, config: dict[str, Any], *, pivot: bool = True) -> None:
    """Make the container's root "/" and drop the host's from this mount namespace."""
    if not has_own_mounts(config):
        own_modules.load_no_more()
        os.chroot(root.path)
        os.chdir("/")
        os.close(root.descriptor)
        return
    if pivot:
        _pivot(root)
    else:
        _move(root)
    os.close(root.descriptor)
    propagation = (config.get("linux") or {}).get("rootfsPropagation")
    if propagation:
        m.mount(HERE, None, "/", None, PROPAGATION[propagation])


def _pivot(root: Root) -> None:
    old = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        own_modules.load_no_more()
        os.fchdir(root.descriptor)
        m.pivot_root(HERE, ".", ".")
        os.fchdir(old)
        m.mount(HERE, None, ".", None, m.MS_SLAVE | m.MS_REC)
        m.umount(HERE, ".", m.MNT_DETACH)
        os.chdir("/")
    finally:
        os.close(old)


def _move(root: Root) -> None:
    """Move the container's root over "/", where pivot_root can't work: "/" is a ramfs.

    The host's mounts stay below it. A procfs or sysfs among them that shows everything would let
    a user namespace inside mount another such: these go, or get something mounted over them.
    """
    from woodfrog.kernel.procfs.mountinfo import read_mounts

    inside = os.fsencode(root.path)
    for mount in reversed(read_mounts("self")):
        shows_all = mount.type in ("proc", "sysfs") and mount.root == b"/"
        if shows_all and not (mount.point + b"/").startswith(inside + b"/"):
            _take_away(mount.point)
    own_modules.load_no_more()
    os.fchdir(root.descriptor)
    m.mount(HERE, ".", "/", None, m.MS_MOVE)
    os.chroot(".")
    os.chdir("/")


def _take_away(point: bytes) -> None:
    path = os.fsdecode(point)
    try:
        m.mount(HERE, None, path, None, m.MS_SLAVE | m.MS_REC)
        m.umount(HERE, path, m.MNT_DETACH)
    except FileNotFoundError:
        pass  # went with the mount that it was on
    except OSError:
        m.mount(HERE, "tmpfs", path, "tmpfs", m.MS_RDONLY, "size=0k")
