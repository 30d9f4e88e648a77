"""A container's changed files as an archive."""

from __future__ import annotations

import os

from woodfrog.errors import UsageError
from woodfrog.runtime.state import PAUSED, Container


def write_rootfs(container: Container, path: str) -> None:
    """Write an archive of what has changed in the root; its lock is held.

    A regular file is there complete or not at all; what else `path` names is written to.
    """
    from woodfrog.engine import rootfs_tar
    from woodfrog.image.new_file import NewFile

    status = container.require("tar")

    def write(descriptor: int) -> None:
        with open(descriptor, "wb", closefd=False) as output:
            rootfs_tar.write(
                container.pid,
                container.state["rootfs"],
                container.state["mounts"],
                output,
                paused=status == PAUSED,
            )

    if path == "-" or (os.path.exists(path) and not os.path.isfile(path)):
        if os.path.isdir(path):
            raise UsageError(f"--file={path} is a directory")
        descriptor = 1 if path == "-" else os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            write(descriptor)
        finally:
            if descriptor != 1:
                os.close(descriptor)
        return
    directory, name = os.path.split(os.path.abspath(path))
    file = NewFile(directory, name, replace=True)
    try:
        write(file.fd)
        file.commit(sync=False)
    finally:
        file.close()
