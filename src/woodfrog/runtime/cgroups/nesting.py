"""Groups that programs made below a container's own: as deep as they like.

A path may be longer than the kernel takes (PATH_MAX); then it is opened piece by piece.
"""

from __future__ import annotations

import errno
import os

_MOST_AT_ONCE = 2048  # bytes of a path; a name has at most 255
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def open_file(directory: str, name: str, flags: int) -> int:
    """Open a file of a group; raises OSError."""
    if len(directory) + len(name) < _MOST_AT_ONCE:
        return os.open(os.path.join(directory, name), flags | os.O_CLOEXEC)
    group = _open(directory)
    try:
        return os.open(name, flags | os.O_CLOEXEC, dir_fd=group)
    finally:
        os.close(group)


def below(top: str) -> list[str]:
    """Return the paths of a group and of all below it, each before those in it."""
    found = []
    waiting = [top]
    # Not by recursion, as os.walk before Python 3.12: groups can be deeper than Python's stack.
    while waiting:
        directory = waiting.pop()
        try:
            group = _open(directory)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):  # removed just now
                raise
            continue
        found.append(directory)
        try:
            with os.scandir(group) as entries:
                inner = [one.name for one in entries if one.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            continue
        finally:
            os.close(group)
        waiting += [f"{directory}/{name}" for name in inner]
    return found


def remove(directory: str) -> None:
    """Remove an empty group; raises OSError."""
    above, name = os.path.split(directory)
    group = _open(above)
    try:
        os.rmdir(name, dir_fd=group)
    finally:
        os.close(group)


def _open(path: str) -> int:
    here = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    rest = path.lstrip("/")
    while rest:
        piece, rest = rest, ""
        if len(piece) > _MOST_AT_ONCE:
            cut = piece.rindex("/", 0, _MOST_AT_ONCE)
            piece, rest = piece[:cut], piece[cut + 1 :]
        try:
            inner = os.open(piece, _DIRECTORY, dir_fd=here)
        finally:
            os.close(here)
        here = inner
    return here
