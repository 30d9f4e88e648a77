"""Files in mounts that are attached nowhere, as fsmount(2) and open_tree(2) give them."""

import os
import stat
from typing import ClassVar, Self

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.kernel import syscalls
from woodfrog.kernel.mounts import (
    RESOLVE_BENEATH,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
)
from woodfrog.resources.files.base import FileRecord, Row, set_flags
from woodfrog.resources.files.making import Making
from woodfrog.resources.files.open_file import CREATION_FLAGS, O_PATH, OpenFile
from woodfrog.resources.files.regular import DEVICES, refuse_other_kind
from woodfrog.resources.files.world import World

_STAY = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS
_DELETED = b" (deleted)"


class DetachedFile(FileRecord, frozen=True, tag="detached-file"):
    """A file by its `path` in the mount of that id; that goes when its `is_mount` is closed.

    Of one that umount(2) took away (MNT_DETACH) none is that. `file_kind` is its S_IFMT.
    """

    row: ClassVar[Row] = Row(
        called="mounts that only descriptors hold (fsmount(2), open_tree(2)), and files in them",
        kept=(
            "file systems and parts of others, with options and contents; files in what was taken"
            " away with umount -l, if the container sees them elsewhere",
        ),
        refused=(
            "before Linux 6.15; held only by somebody else, or in flight; with other mounts in"
            " them, id maps, or shared; deleted files, sockets and FIFOs in them; working"
            " directories and mappings",
        ),
    )
    mount: int
    path: bytes
    is_mount: bool
    position: int
    file_kind: int
    device: int

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        return file.target.startswith(b"/") and world.detached_mount(file)[0] != 0

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        mount, is_mount = world.detached_mount(file)
        found = file.stat
        kind, rdev = stat.S_IFMT(found.st_mode), found.st_rdev
        is_harmless = kind in (stat.S_IFREG, stat.S_IFDIR) or (
            kind == stat.S_IFCHR and (os.major(rdev), os.minor(rdev)) in DEVICES
        )
        if file.target.endswith(_DELETED) or not (is_harmless or file.flags & O_PATH):
            raise UnsupportedResource(
                f"{os.fsdecode(file.target)} is in a mount that is attached nowhere, and is"
                " deleted, or no regular file or directory; that cannot be saved yet"
            )
        return cls(
            id=number,
            flags=file.flags,
            mount=mount,
            path=file.target.lstrip(b"/"),
            is_mount=is_mount,
            position=file.position if kind != stat.S_IFCHR else 0,
            file_kind=kind,
            device=rdev,
        )

    def refuse_wider(self, bounding: int) -> None:
        if b"\0" in self.path or (self.is_mount and (self.path or self.flags != O_PATH)):
            raise ImageError("the image has an impossible file in a mount that is attached nowhere")

    def restore(self, making: Making) -> int:
        program = making.program
        mount = making.detached(self.mount)
        if self.is_mount:
            return syscalls.duplicate_above(program, mount, 0)
        flags = self.flags & ~CREATION_FLAGS
        if not flags & O_PATH:
            flags |= os.O_NONBLOCK | os.O_NOCTTY
        path = self.path or b"."
        fd = syscalls.openat2(program, path, flags, directory=mount, resolve=_STAY)
        if self.position:
            program.expect(syscalls.lseek(program, fd, self.position), self.position)
        if not flags & O_PATH:
            set_flags(program, fd, self.flags)
        return fd

    def verify(self, descriptor: int) -> None:
        refuse_other_kind(descriptor, self.path, self.file_kind, self.device)
