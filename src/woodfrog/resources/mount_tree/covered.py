"""A mount that another one at the same place covers, so that no path leads to it."""

import os

from woodfrog.errors import UnsupportedResource
from woodfrog.kernel import mounts as m
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import Caller
from woodfrog.kernel.procfs.mountinfo import Mount
from woodfrog.resources.mount_tree.table import relative

_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def refusal(mount: Mount) -> UnsupportedResource:
    """Return what is said of one that must be reached itself, as a copy would not do."""
    return UnsupportedResource(
        f"the new container's mount at {os.fsdecode(mount.point)} is covered by another",
        hint="mount it but once in the bundle's config.json",
    )


def copy_of_all(on: Caller, place: int) -> int:
    """Return a copy of the mount that a descriptor names the root of, with all that is in it."""
    flags = m.OPEN_TREE_CLONE | m.AT_RECURSIVE | m.AT_EMPTY_PATH | os.O_CLOEXEC
    return on.call(SYS.OPEN_TREE, place, b"\0", flags)


def uncovered(on: Caller, copy: int, mount: Mount, below: Mount, covers: int) -> int:
    """Open a mount in an attached copy of what it is mounted in, `below`.

    So many as cover it are taken away there.
    """
    path = relative(mount.point, below.point)
    on.call(SYS.FCHDIR, copy)
    for _ in range(covers):
        m.umount(on, path, m.MNT_DETACH | m.UMOUNT_NOFOLLOW)
    resolve = m.RESOLVE_BENEATH | m.RESOLVE_NO_SYMLINKS
    return syscalls.openat2(on, path, _PATH, directory=copy, resolve=resolve)
