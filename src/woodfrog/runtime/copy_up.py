"""What is below a tmpfs, copied into it (the mount option tmpcopyup)."""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_CHUNK = 1 << 30


def copy_up(below: int, above: int) -> None:
    """Copy a directory's content, owners, modes, times and attributes; closes `above`."""
    try:
        source = _reopen(below)
        try:
            _copy_content(source, above)
        finally:
            os.close(source)
    finally:
        os.close(above)


def _reopen(directory: int) -> int:
    return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)


def _copy_content(below: int, above: int) -> None:
    for name, found in _listed(below):
        kind = stat.S_IFMT(found.st_mode)
        if kind == stat.S_IFLNK:
            os.symlink(os.readlink(name, dir_fd=below), name, dir_fd=above)
            os.chown(name, found.st_uid, found.st_gid, dir_fd=above, follow_symlinks=False)
        elif kind == stat.S_IFDIR:
            os.mkdir(name, 0o700, dir_fd=above)
            _copy_opened(name, below, above, os.O_DIRECTORY, os.O_DIRECTORY, found)
        elif kind == stat.S_IFREG:
            new = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            _copy_opened(name, below, above, 0, new, found)
        else:
            os.mknod(name, found.st_mode, found.st_rdev, dir_fd=above)
            os.chown(name, found.st_uid, found.st_gid, dir_fd=above, follow_symlinks=False)


def _listed(directory: int) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(directory) as entries:
        for entry in entries:
            yield entry.name, entry.stat(follow_symlinks=False)


def _copy_opened(
    name: str, below: int, above: int, old: int, new: int, found: os.stat_result
) -> None:
    safe = os.O_NOFOLLOW | os.O_CLOEXEC
    source = os.open(name, os.O_RDONLY | old | safe, dir_fd=below)
    try:
        copy = os.open(name, new | safe, 0o600, dir_fd=above)
        try:
            if stat.S_ISDIR(found.st_mode):
                _copy_content(source, copy)
            else:
                while os.sendfile(copy, source, None, _CHUNK):
                    pass
            _copy_attributes(source, copy, found)
        finally:
            os.close(copy)
    finally:
        os.close(source)


def _copy_attributes(source: int, copy: int, found: os.stat_result) -> None:
    os.chown(copy, found.st_uid, found.st_gid)
    os.chmod(copy, stat.S_IMODE(found.st_mode))
    for name in os.listxattr(source):
        try:
            os.setxattr(copy, name, os.getxattr(source, name))
        except OSError:
            continue  # one that a tmpfs can't have
    os.utime(copy, ns=(found.st_atime_ns, found.st_mtime_ns))
