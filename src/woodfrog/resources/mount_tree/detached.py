"""Mounts that are attached nowhere, and what they show.

The kernel shows them in no table. But who is in the mount namespace that one was made in can copy
it (since Linux 6.15), attach the copy in a mount namespace of its own, and read of that. What
umount(2) took away (MNT_DETACH) can't be copied: a file that is open in it is looked for in the
mounts that show the same part of its file system.
"""

import errno
import os
import stat
from collections.abc import Iterable

import msgspec

from woodfrog.errors import UnsupportedResource
from woodfrog.kernel import mounts as m
from woodfrog.kernel import namespaces
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.procfs.mountinfo import Mount
from woodfrog.resources.file_entry import ROOT
from woodfrog.resources.mount_tree import copies, table

_PATH = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_COPY = m.OPEN_TREE_CLONE | m.AT_RECURSIVE | m.AT_EMPTY_PATH | os.O_CLOEXEC
# What statvfs(3) tells of a mount, as a mount table does.
_WORDS = {
    0x1: "ro",
    0x2: "nosuid",
    0x4: "nodev",
    0x8: "noexec",
    0x400: "noatime",
    0x800: "nodiratime",
    0x1000: "relatime",
    0x2000: "nosymfollow",
}


class Detached(msgspec.Struct, frozen=True):
    """A mount by the id that fdinfo has for it, and its own in the image; its point is empty.

    `copy` is a descriptor of a copy of it, which others close; -1: of one that was taken away.
    """

    mount: Mount
    number: int
    copy: int


def by_copy(view: int, file: int, path: bytes) -> tuple[Mount, int] | None:
    """Look at the mount that a file of ours is in, at `path` there; None if it can't be copied.

    `view` is a process in the mount namespace that it was made in. Returns a descriptor, too.
    """

    def work(proc: int) -> tuple[Mount, int] | None:
        top = _top(proc, file)
        try:
            tree = HERE.call(SYS.OPEN_TREE, top, b"\0", _COPY)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return None
        finally:
            os.close(top)
        try:
            return _attached(proc, tree), tree
        except BaseException:
            os.close(tree)
            raise

    found = copies.inside(view, work)
    if found is None:
        return None
    mount, tree = found
    inside = path.lstrip(b"/") if not stat.S_ISDIR(os.fstat(tree).st_mode) else b""
    root = mount.root.removesuffix(inside).rstrip(b"/") or b"/"
    return msgspec.structs.replace(mount, root=root, parent=0, point=b""), tree


def _top(proc: int, file: int) -> int:
    """Open the root of the mount that a directory is in; what is no directory, as it is."""
    if not stat.S_ISDIR(os.fstat(file).st_mode):
        return os.dup(file)
    here = os.open(".", _PATH, dir_fd=file)
    number = copies.mount_of(proc, here)
    while True:
        above = os.open("..", _PATH, dir_fd=here)
        is_top = os.path.sameopenfile(here, above)
        is_other = copies.mount_of(proc, above) != number
        os.close(here)
        here = above
        if is_other:
            os.close(here)
            raise _refusal("is attached in another one")
        if is_top:
            return here


def _attached(proc: int, tree: int) -> Mount:
    """Attach a copy in a mount namespace of this thread's own; returns what is told of it."""
    namespaces.unshare(HERE, namespaces.CLONE_NEWNS)
    m.mount(HERE, None, "/", None, m.MS_REC | m.MS_PRIVATE)
    stage = m.new_mount(HERE, "tmpfs", 0)
    root = os.open("/", _PATH)
    try:
        m.attach(HERE, stage, root)
        if stat.S_ISDIR(os.fstat(tree).st_mode):
            os.mkdir("tree", dir_fd=stage)
        else:
            os.mknod("tree", stat.S_IFREG, dir_fd=stage)
        place = os.open("tree", os.O_PATH, dir_fd=stage)
        try:
            m.attach(HERE, tree, place)
        finally:
            os.close(place)
    finally:
        os.close(root)
        os.close(stage)
    number = copies.mount_of(proc, tree)
    mounts = copies.mounts_seen(proc)
    if any(one.parent == number for one in mounts):
        raise _refusal("has others mounted in it")
    return next(one for one in mounts if one.mnt_id == number)


def by_path(
    file: int, path: bytes, mounts: Iterable[Mount], names: Iterable[bytes]
) -> Mount | None:
    """Look for the part of a file system that the mount showed which was taken away.

    A file that is open in it is at `path` there; `names` are those that it may have in the
    container, where `mounts` are.
    """
    device = os.fstat(file).st_dev
    for name in names:
        top = name.removesuffix(path) or b"/"
        above = [
            mount
            for mount in mounts
            if mount.device == (os.major(device), os.minor(device))
            and (top + b"/").startswith(mount.point.rstrip(b"/") + b"/")
        ]
        if not name.endswith(path) or not above:
            continue
        nearest = max(above, key=lambda mount: len(mount.point))
        inside = table.relative(top, nearest.point)
        root = nearest.root if inside == ROOT else nearest.root.rstrip(b"/") + b"/" + inside
        flags = os.fstatvfs(file).f_flag
        words = [word for bit, word in _WORDS.items() if flags & bit]
        return msgspec.structs.replace(
            nearest,
            root=root,
            parent=0,
            point=b"",
            options=",".join(words if flags & 1 else ["rw", *words]),
            tags="",
        )
    return None


def refuse_shared(mount: Mount) -> None:
    """Refuse one that tells others what is mounted in it, or is told."""
    spread = table.Spread(mount)
    if spread.group or spread.master:
        raise _refusal("shares what is mounted in it")


def _refusal(what: str) -> UnsupportedResource:
    return UnsupportedResource(
        f"is in a mount that is attached nowhere and {what}, which cannot be saved yet"
    )
