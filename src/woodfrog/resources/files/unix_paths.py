"""Where the paths of bound unix sockets are by now, as a checkpoint looks for them."""

import fcntl
import os

import msgspec

from woodfrog.kernel import syscalls
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.mounts import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS
from woodfrog.kernel.procfs.fdinfo import read_fdinfo
from woodfrog.resources.deleted_files import DELETED
from woodfrog.resources.files.world import World

SIOCUNIXFILE = 0x89E0
_O_PATH_NOFOLLOW = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class BoundPath(msgspec.Struct, frozen=True):
    """Mode (with the type) and owner of a socket's path; zeros if it was unlinked.

    `alias` is its path if that isn't its name any more: renamed, or linked and unlinked.
    `directory` is where a relative name begins; nowhere, if its directories are others by now.
    """

    mode: int = 0
    owner: tuple[int, int] = (0, 0)
    alias: bytes = b""
    directory: bytes = b""


def bound_path(name: bytes, descriptor: int, world: World) -> BoundPath:
    """Look for the path of a socket, by its name and a descriptor of ours."""
    if not name or name[:1] == b"\0":
        return BoundPath()
    path, status, mnt_id = _file_of(descriptor)
    if name[:1] != b"/":
        return _relative_path(name, path, status)
    place = world.place_of_mount(mnt_id)
    root = place.root if place else world.root
    found = _stat_inside(name, root)
    if found and (found.st_ino, found.st_dev) == (status.st_ino, status.st_dev):
        return BoundPath(found.st_mode, (found.st_uid, found.st_gid))
    for alias in (path, *_beside(name, status.st_ino, root)):
        other = _stat_inside(alias, root) if alias else None
        if other and (other.st_ino, other.st_dev) == (status.st_ino, status.st_dev):
            if alias.endswith(name):
                # As a process in another root directory (chroot) would name it.
                above = alias.removesuffix(name)
                return BoundPath(other.st_mode, (other.st_uid, other.st_gid), b"", above)
            return BoundPath(other.st_mode, (other.st_uid, other.st_gid), alias)
    return BoundPath()


def _relative_path(name: bytes, path: bytes, status: os.stat_result) -> BoundPath:
    if not path:
        return BoundPath()
    directory = beginning(name, path)
    is_there = directory and os.path.basename(name) == os.path.basename(path)
    alias = b"" if is_there else path
    return BoundPath(status.st_mode, (status.st_uid, status.st_gid), alias, directory)


def beginning(name: bytes, path: bytes) -> bytes:
    """Return the directory where a relative name of a path begins; empty if it isn't one."""
    parts = [part for part in name.split(b"/") if part not in (b"", b".")][:-1]
    directories = path.split(b"/")[:-1]
    above = len(directories) - len(parts)
    if directories[above:] != parts or b".." in parts:
        return b""
    return b"/".join(directories[:above]) or b"/"


def _file_of(descriptor: int) -> tuple[bytes, os.stat_result, int]:
    """Return where the file of a bound socket is, if it is anywhere, and on which mount."""
    fd = fcntl.ioctl(descriptor, SIOCUNIXFILE)
    try:
        path, status = os.readlink(b"/proc/self/fd/%d" % fd), os.fstat(fd)
        mnt_id = int(read_fdinfo(os.getpid(), fd)[0]["mnt_id"])
    finally:
        os.close(fd)
    return path if status.st_nlink and not path.endswith(DELETED) else b"", status, mnt_id


def mount_of(descriptor: int) -> int | None:
    """Return the mount that a socket's file is on, None for one that is bound to no path."""
    try:
        return _file_of(descriptor)[2]
    except OSError:
        return None


def _stat_inside(path: bytes, root: str) -> os.stat_result | None:
    """Return what a path names under a root directory, where symbolic links stay inside."""
    try:
        fd = _open_inside(path, _O_PATH_NOFOLLOW, root)
    except OSError:
        return None
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def _open_inside(path: bytes, flags: int, root: str) -> int:
    directory = os.open(root, os.O_PATH | os.O_CLOEXEC)
    try:
        resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
        return syscalls.openat2(HERE, path, flags, directory=directory, resolve=resolve)
    finally:
        os.close(directory)


def _beside(name: bytes, inode: int, root: str) -> list[bytes]:
    """Return the paths of an inode in the directory of a name."""
    directory = os.path.dirname(name)
    try:
        fd = _open_inside(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, root)
    except OSError:
        return []
    try:
        with os.scandir(fd) as entries:
            return [
                os.path.join(directory, os.fsencode(entry.name))
                for entry in entries
                if entry.inode() == inode
            ]
    finally:
        os.close(fd)
