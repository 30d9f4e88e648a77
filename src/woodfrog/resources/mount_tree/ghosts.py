"""Mounts of files and directories that have been deleted since, and what those become.

The mount table shows such a root as its old path with "//deleted" behind it. To be mounted again,
it must have a name: it gets the old one, below the base of the mount, until it is filled and opened
where else it is open (deleted_files.make), and then loses it.
"""

import errno
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from woodfrog.errors import UnsupportedResource
from woodfrog.kernel import mounts as m
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE, Caller
from woodfrog.kernel.procfs.mountinfo import Mount
from woodfrog.remote.program import Program, ProgramError
from woodfrog.resources import deleted_files
from woodfrog.resources.deleted_files import AT_REMOVEDIR, DeletedFile, Made
from woodfrog.resources.file_entry import ROOT
from woodfrog.resources.mount_tree import table

_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
# Where a path in a mount may lead: past what else is mounted there, and by no link.
STAY = m.RESOLVE_NO_XDEV | m.RESOLVE_BENEATH | m.RESOLVE_NO_SYMLINKS


# Gives another name of a file that had a path, or nothing.
OtherName = Callable[[bytes, os.stat_result], bytes]


def as_it_was(mount: Mount) -> Mount:
    """Return a mount with the root that it had before that was deleted."""
    return replace(mount, root=mount.root.removesuffix(table.DELETED))


def link(copied: int | None) -> str:
    """Return a link to what a mount shows, by a descriptor of its copy."""
    if copied is None:
        raise UnsupportedResource("shows what was deleted, and is covered, so that nobody sees it")
    return f"/proc/self/fd/{copied}"


def path(mount: Mount, now: list[Mount]) -> bytes:
    """Return the path that the root of a mount had; from its file system's root, if none is seen.

    `now` are all mounts that there are.
    """
    was = as_it_was(mount)
    seen = [one for one in now if one.device == mount.device and table.is_in(was, one)]
    if not seen:
        return was.root
    nearest = max(seen, key=lambda one: len(one.root))
    return nearest.point.rstrip(b"/") + b"/" + table.relative(was.root, nearest.root)


def other(link: str, path: bytes, other_name: OtherName) -> bytes:
    """Return another name that a deleted file still has, or nothing."""
    found = os.stat(link)
    if stat.S_ISDIR(found.st_mode) or not found.st_nlink:
        return b""
    return other_name(path, found)


def under(path: bytes, mount: Mount, now: list[Mount]) -> Mount:
    """Return a mount as if it showed the file at a path of its own file system."""
    above = [one for one in now if one.device == mount.device and _is_above(one.point, path)]
    nearest = max(above, key=lambda one: len(one.point))
    inside = table.relative(path, nearest.point)
    return replace(mount, root=nearest.root.rstrip(b"/") + b"/" + inside)


def _is_above(point: bytes, path: bytes) -> bool:
    return (path + b"/").startswith(point.rstrip(b"/") + b"/")


class Left(NamedTuple):
    """A file that was made by its name, without contents, and is mounted somewhere.

    By the stub's descriptors: `directory` is where its `name` is, `seen` the same in a mount of the
    container's, if there is one (-1). `missing` directories were made for it, each in one of
    `above`.
    """

    above: list[int]
    missing: list[bytes]
    directory: int
    name: bytes
    seen: int


class Ghosts:
    """The `deleted` files of an image, of which mounts show some; descriptors go to `high` on."""

    def __init__(self, deleted: Mapping[int, DeletedFile], high: int) -> None:
        self._deleted = deleted
        self._high = high
        # Those that have a name now.
        self.left: dict[int, Left] = {}

    def make(self, on: Caller, base: int, path: bytes, number: int, real: int) -> int:
        """Make a file below a base, or find it there; returns the stub's descriptor of it.

        `real` is a mount of the container's that shows all of the base; -1: there is none.
        """
        parts = path.split(b"/")
        name = parts.pop()
        known = self.left.get(number)
        if known:
            name = b"/".join((*parts, known.name))
            return syscalls.openat2(on, name, _PATH, directory=base, resolve=STAY)
        directory, missing = self._open_nearest(on, base, parts)
        above = []
        first, *below = [*missing, name]
        missing = [self._free_name(on, directory, first), *below]
        name = missing.pop()
        for one in missing:
            on.call(SYS.MKDIRAT, directory, one + b"\0", 0o700)
            above.append(directory)
            directory = self._open(on, directory, one)
        deleted = self._deleted[number]
        if deleted.kind == stat.S_IFREG:
            on.call(SYS.MKNODAT, directory, name + b"\0", stat.S_IFREG | 0o600, 0)
        else:
            deleted_files.make_special(on, deleted, directory, name + b"\0")
        seen = self._find(on, real, b"/".join((*parts[: len(parts) - len(missing)], *missing)))
        self.left[number] = Left(above, missing, directory, name, seen)
        return syscalls.openat2(on, name, _PATH, directory=directory)

    def _open_nearest(self, on: Caller, base: int, parts: list[bytes]) -> tuple[int, list[bytes]]:
        """Return the nearest directory that is there, and the names of those that are not."""
        for depth in range(len(parts), 0, -1):
            try:
                return self._open(on, base, b"/".join(parts[:depth])), parts[depth:]
            except ProgramError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                    raise
        return self._open(on, base, ROOT), parts

    def _find(self, on: Caller, real: int, path: bytes) -> int:
        """Open a directory in a mount of the container's, if it is found there."""
        try:
            return self._open(on, real, path or ROOT) if real >= 0 else -1
        except ProgramError:
            return -1  # it is covered by what the new container has mounted there

    def _open(self, on: Caller, directory: int, path: bytes) -> int:
        flags = _PATH | os.O_DIRECTORY
        found = syscalls.openat2(on, path, flags, directory=directory, resolve=STAY)
        high = syscalls.duplicate_above(on, found, self._high)
        syscalls.close(on, found)
        return high

    def _free_name(self, on: Caller, directory: int, name: bytes) -> bytes:
        """Return a name like this that nothing has."""
        for one in (name, *(b"%s.%d" % (name, number) for number in range(1, 1000))):
            try:
                found = syscalls.openat2(on, one, _PATH, directory=directory, resolve=STAY)
            except ProgramError as error:
                if error.errno == errno.ENOENT:
                    return one
                continue
            syscalls.close(on, found)
        return name


def take_over(
    program: Program, one: DeletedFile, init: int, ways: Sequence[int], left: Left
) -> Made:
    """Open a file that was made to be mounted, by all `ways` if it is a regular one; delete it.

    It is opened where the container sees it, or has it, if it does.
    """
    directory, name = left.directory, left.name
    above = os.path.dirname(one.path)
    if left.seen >= 0 and not os.statvfs(f"/proc/{init}/fd/{left.seen}").f_flag & os.ST_RDONLY:
        directory = left.seen
    if _is_seen(init, above, left):
        resolve = deleted_files.RESOLVE_NO_LINKS
        directory = syscalls.openat2(program, above, deleted_files.PARENT, resolve=resolve)
    if one.kind == stat.S_IFREG:
        fd = syscalls.openat2(program, name, os.O_RDWR | os.O_CLOEXEC, directory=directory)
    else:
        fd = deleted_files.open_made(program, directory, name, one.kind)
    deleted_files.give_to_owner(program, one, fd, directory, name)
    opened = []
    if one.kind == stat.S_IFREG:
        opened = [syscalls.openat2(program, name, way, directory=directory) for way in ways]
    how = AT_REMOVEDIR if one.kind == stat.S_IFDIR else 0
    program.call(SYS.UNLINKAT, directory, name, how)
    for parent, empty in reversed(list(zip(left.above, left.missing, strict=True))):
        program.call(SYS.UNLINKAT, parent, empty, AT_REMOVEDIR)
    opened_there = (*left.above, left.directory, left.seen, directory)
    for descriptor in dict.fromkeys(one for one in opened_there if one >= 0):
        syscalls.close(program, descriptor)
    return Made(fd, opened)


def _is_seen(init: int, directory: bytes, left: Left) -> bool:
    """Tell whether a directory of the container has such a file by its name."""
    root = os.open(f"/proc/{init}/root", deleted_files.PARENT)
    try:
        resolve = deleted_files.RESOLVE_NO_LINKS | m.RESOLVE_IN_ROOT
        flags = deleted_files.PARENT
        seen = syscalls.openat2(HERE, directory, flags, directory=root, resolve=resolve)
        try:
            there = os.stat(left.name, dir_fd=seen, follow_symlinks=False)
        finally:
            os.close(seen)
    except OSError:
        return False
    finally:
        os.close(root)
    made = os.path.join(f"/proc/{init}/fd/{left.directory}".encode(), left.name)
    return os.path.samestat(there, os.lstat(made))
