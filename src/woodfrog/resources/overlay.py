"""The overlay that a container's root is: seen whole, and by its upper directory.

The whole is seen through a copy of its mount that is attached nowhere, so that nothing which is
mounted in the container hides a part of it.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Self

from woodfrog.errors import UnsupportedResource
from woodfrog.kernel import mounts
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.procfs.mountinfo import Mount, parse_mount, read_mounts, super_option
from woodfrog.resources import lower_layers
from woodfrog.resources.file_tree import Tree
from woodfrog.resources.mount_tree import copies
from woodfrog.resources.namespaces import is_ours

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_BACKSLASH = rb"(?s)\\(.)"


class Overlay:
    """The overlay at a container's root."""

    def __init__(self, init: int, *, writable: bool = False) -> None:
        """Open the root of a container; `writable` although its config may mount it read-only."""
        if is_ours(init, "mnt"):
            raise UnsupportedResource("the container shares its mounts with the host")
        self._mounts = read_mounts(init)
        mount = copies.inside(init, _copy_of_root)
        try:
            self._mount = self._find(mount, init)
            if writable:
                mounts.mount_setattr(
                    HERE, mount, set_=0, clear=mounts.MOUNT_ATTR_RDONLY, recursive=False
                )
            # What clone_tree returns can only lead to others.
            self.tree = Tree(os.open(f"/proc/self/fd/{mount}", _DIRECTORY))
        finally:
            os.close(mount)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self.tree.root)

    @property
    def mount_points(self) -> frozenset[bytes]:
        """Return where something is mounted in the container, by paths without their slash."""
        return frozenset(mount.point[1:] for mount in self._mounts)

    @property
    def keeps_links(self) -> bool:
        """Tell whether a hard-linked file of a lower layer is changed under all its names."""
        return super_option(self._mount, "index") == b"on"

    @property
    def marks(self) -> str:
        """Return what the names of the attributes begin with that the overlay keeps for itself."""
        own = "user" if super_option(self._mount, "userxattr") is not None else "trusted"
        return f"{own}.overlay"

    def open_upper(self, rootfs: str) -> Tree | None:
        """Return the files of the upper directory; None if the overlay has none and is read-only.

        `rootfs` is where the overlay is mounted on the host.
        """
        option = super_option(self._mount, "upperdir")
        if option is None:
            return None
        whole = os.fstat(self.tree.root)
        for path in _candidates(option, rootfs):
            try:
                upper = os.open(path, _DIRECTORY)
            except OSError:
                continue
            found = os.fstat(upper)
            # An overlay shows its root's status as the upper directory has it. Its times are the
            # better part of a name: a path that only looks like the one that was mounted, from
            # another mount namespace or directory, leads to others.
            if (found.st_mode, found.st_mtime_ns, found.st_ctime_ns) == (
                whole.st_mode,
                whole.st_mtime_ns,
                whole.st_ctime_ns,
            ):
                return Tree(upper)
            os.close(upper)
        raise UnsupportedResource(
            f"the upper directory {os.fsdecode(option)} of the container's overlay cannot be found",
            hint="it was mounted from another directory or mount namespace",
        )

    def lower(self, rootfs: str, created: list[str] | None) -> AbstractContextManager[Tree]:
        """Show what the lower layers have by themselves; raises UnsupportedResource.

        The overlay must be among the mounts that `create` has made, as a mount table shows them:
        whoever mounts one chooses the paths, which are those of our root directory here.
        """
        given = [parse_mount(os.fsencode(line)) for line in created or ()]
        mount = self._mount
        if (mount.mnt_id, mount.device) not in ((one.mnt_id, one.device) for one in given):
            raise UnsupportedResource("the container's root is not the overlay that it began with")
        return lower_layers.shown(self._mount, _bases(rootfs))

    def _find(self, mount: int, init: int) -> Mount:
        """Return the overlay's mount; raises UnsupportedResource if the root is none of its own."""
        root = os.fstat(mount)
        if not os.path.samestat(root, os.stat(f"/proc/{init}/root")):
            raise UnsupportedResource("the container's first process has another root directory")
        device = (os.major(root.st_dev), os.minor(root.st_dev))
        wanted = (b"/", b"/", device, "overlay")
        for found in self._mounts:
            if (found.point, found.root, found.device, found.type) == wanted:
                return found
        raise UnsupportedResource(
            "the container's root is not an overlay of its own, so its changes can't be told from"
            " the rest",
            hint="mount an overlay at the bundle's rootfs, as engines do",
        )


def _copy_of_root(proc: int) -> int:
    try:
        return mounts.clone_tree(HERE, "/", recursive=False)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # What came along from a mount namespace with more rights can't be parted from its mounts.
        raise UnsupportedResource(
            "the container's first process has gone to a mount namespace of its own in a user"
            " namespace, from where the files of its root cannot be seen whole, nor saved",
            hint="have a child of it do so; or checkpoint without --with-rootfs",
        ) from None


def _candidates(option: bytes, rootfs: str) -> Iterator[bytes]:
    """Yield the paths that an upperdir option may mean."""
    # Some kernels show it as it was given, with backslashes before what they took apart.
    for text in dict.fromkeys((option, _without_backslashes(option))):
        for base in [b"/"] if text.startswith(b"/") else _bases(rootfs):
            yield os.path.join(base, text)


def _without_backslashes(option: bytes) -> bytes:
    return re.sub(_BACKSLASH, rb"\1", option) if b"\\" in option else option


def _bases(rootfs: str) -> list[bytes]:
    """Return where relative paths in an overlay's options may begin.

    Who runs out of room for options mounts from a directory above: rootfs lies there too.
    """
    bases = [os.path.dirname(os.fsencode(os.path.abspath(rootfs)))]
    while bases[-1] != b"/":
        bases.append(os.path.dirname(bases[-1]))
    return bases
