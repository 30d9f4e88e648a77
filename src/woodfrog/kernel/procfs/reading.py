"""Files of /proc, read whole: what Python's file objects do around that takes longer than it."""

import os

_MOST = 1 << 16


def read_file(path: str, *, in_pieces: bool = True) -> bytes:
    """Return what stands in a file.

    Many of these files the kernel gives a page at a time, and smaps has thousands. Not `in_pieces`
    are those that it makes as one, such as status: of these a short read is the end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = [os.read(descriptor, _MOST)]
        while found[-1] if in_pieces else len(found[-1]) == _MOST:
            found.append(os.read(descriptor, _MOST))
        return b"".join(found)
    finally:
        os.close(descriptor)
