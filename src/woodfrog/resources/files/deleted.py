"""Open files, directories and links that have been removed. What they are is a DeletedFile."""

import os
import stat
from typing import ClassVar, Self

from woodfrog.errors import ImageError
from woodfrog.kernel import syscalls
from woodfrog.resources.deleted_files import is_placeless
from woodfrog.resources.files.base import FileRecord, Row, set_flags
from woodfrog.resources.files.making import Making
from woodfrog.resources.files.open_file import (
    ACCESS_MODE,
    CREATION_FLAGS,
    O_PATH,
    O_TMPFILE,
    OpenFile,
)
from woodfrog.resources.files.world import World

_OPENED = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFCHR)
_ONLY_BY_PATH = (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK)


class OpenDeletedFile(FileRecord, frozen=True, tag="deleted"):
    """A position in a deleted file."""

    row: ClassVar[Row] = Row(
        called="deleted files, directories, links, devices, and those of O_TMPFILE",
        kept=(
            "what is in them, positions, mappings",
            "a name that is left to them elsewhere (a hard link)",
        ),
        refused=("whose other name is not found",),
    )
    deleted: int
    position: int
    file_kind: int

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        kind = stat.S_IFMT(file.stat.st_mode)
        return (
            file.target.startswith(b"/")
            and kind in (*_OPENED, *(_ONLY_BY_PATH if file.flags & O_PATH else ()))
            and (world.place_of_mount(file.mnt_id) is not None or is_placeless(file.link))
            and world.is_deleted(file)
        )

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        kind = stat.S_IFMT(file.stat.st_mode)
        return cls(
            id=number,
            flags=file.flags,
            deleted=world.deleted_file(file),
            position=file.position if kind != stat.S_IFCHR else 0,
            file_kind=kind,
        )

    @property
    def way(self) -> int:
        """The flags by which it is opened by a name."""
        flags = self.flags & ~CREATION_FLAGS
        if self.access is not None:
            flags &= ~O_TMPFILE
        return flags if flags & O_PATH else flags | os.O_NONBLOCK | os.O_NOCTTY

    @property
    def early(self) -> tuple[str, int]:
        """The key of what was opened by its name, while it had one, or by O_TMPFILE."""
        return "opened deleted file", self.id

    @property
    def access(self) -> int | None:
        """How O_TMPFILE itself opened it, if it did."""
        return self.flags & ACCESS_MODE if self.flags & O_TMPFILE == O_TMPFILE else None

    def restore(self, making: Making) -> int:
        early: int | None = making.shared(self.early)
        if early is not None:
            fd = early
        elif self.file_kind == stat.S_IFLNK and self.flags & os.O_NOFOLLOW:
            # Its flags can be had by a name only; what O_PATH opened has nothing else of its own.
            fd = syscalls.duplicate_above(making.program, making.memory_object(self.deleted), 0)
        else:
            fd = making.reopen(self.deleted, self.way)
        if self.flags & O_PATH:
            return fd
        program = making.program
        if self.position:
            program.expect(syscalls.lseek(program, fd, self.position), self.position)
        set_flags(program, fd, self.flags)
        return fd

    def verify(self, descriptor: int) -> None:
        if stat.S_IFMT(os.fstat(descriptor).st_mode) != self.file_kind:
            raise ImageError("a deleted file of the image is of two kinds")
