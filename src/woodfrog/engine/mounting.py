"""ROOT and TREE: the root stub makes the mounts that programs had made."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from woodfrog.kernel import syscalls
from woodfrog.kernel.capability import CAP_SYS_ADMIN
from woodfrog.remote.stub import Stub
from woodfrog.resources import credentials
from woodfrog.resources.mount_tree.ghosts import Ghosts

if TYPE_CHECKING:
    from woodfrog.resources.deleted_files import DeletedFile
    from woodfrog.resources.mount_tree.records import Base, MountTree


class Mounting:
    """Makes mounts in whichever mount namespace the root stub is in.

    `deleted` are the deleted files of the image, and `ghosts` those that mounts show; `detached`
    has the stub's descriptors, at `high` or above, of mounts that are attached nowhere. `bounding`
    are the capabilities that the new container may have, `permitted` those that the stub has;
    `pages` is our descriptor of the page store, which begins at `base` of it.
    """

    def __init__(
        self,
        root: Stub,
        deleted: Mapping[int, DeletedFile],
        *,
        high: int,
        bounding: int,
        permitted: int,
        pages: int,
        base: int,
    ) -> None:
        self._root = root
        self._high = high
        self._bounding = bounding
        self._permitted = permitted
        self._pages = pages
        self._base = base
        self.ghosts = Ghosts(deleted, high)
        self.detached: dict[int, int] = {}

    def make(
        self,
        tree: MountTree,
        namespace: Callable[[Base], int],
        proc: Callable[[Base], int] | None = None,
        *,
        owned: bool = False,
    ) -> None:
        """Make all mounts of a tree.

        `namespace` gives the stub's descriptor of one that is bound to a file, `proc` that of a
        proc that shows a nested pid namespace. If they are `owned` by a user namespace that a
        program made, its processes need nobody's leave.
        """
        from woodfrog.resources.mount_tree import making

        self.detached.update(
            making.restore(
                self._root,
                tree,
                bounding=self._bounding | (1 << CAP_SYS_ADMIN if owned else 0),
                permitted=self._permitted,
                pages=self._pages,
                base=self._base,
                namespace=namespace,
                ghosts=self.ghosts,
                proc=proc,
                high=self._high,
            )
        )


def open_before(
    root: Stub, paths: Iterable[bytes], high: int, bounding: int, permitted: int
) -> dict[bytes, int]:
    """Open the directories that mounts of the image will hide, and lead to files of the image.

    By no right that the new container lacks. Returns the stub's descriptors, at `high` or above.
    """
    program = root.program()
    credentials.set_effective(program, bounding, permitted)
    opened = {}
    for path in paths:
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        directory = syscalls.openat2(program, path, flags)
        opened[path] = syscalls.duplicate_above(program, directory, high)
        syscalls.close(program, directory)
    credentials.set_effective(program, permitted, permitted)
    root.run(program)
    return {path: program[directory] for path, directory in opened.items()}
