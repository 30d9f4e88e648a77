"""Files of /proc, read whole: what Python's file objects do around that takes longer than it."""

import os

_MOST = 1 << 16


def read_file(path: str) -> bytes:
    """Return what stands in a file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # The kernel gives many of these files a page at a time, and smaps has thousands.
        found = [os.read(descriptor, _MOST)]
        while more := os.read(descriptor, _MOST):
            found.append(more)
        return b"".join(found)
    finally:
        os.close(descriptor)
