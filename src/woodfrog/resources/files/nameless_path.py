"""Pipes, sockets and others without a path that were opened by O_PATH, through /proc/PID/fd."""

import os
from typing import ClassVar, Self

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.resources.files.base import FileRecord, Row
from woodfrog.resources.files.making import Making
from woodfrog.resources.files.open_file import BY_PATH, O_PATH, OpenFile
from woodfrog.resources.files.world import World

# These are made when all others stand.
_LATE = (b"anon_inode:[pidfd]", b"anon_inode:[io_uring]")


class NamelessPath(FileRecord, frozen=True, tag="nameless-path"):
    """What names another open file, `file`, but can neither read nor write it."""

    row: ClassVar[Row] = Row(
        called="pipes, sockets and others without a path by O_PATH",
        kept=("what they name",),
        refused=("pidfds, io_urings, and what nobody inside has open otherwise",),
    )
    file: int

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        return file.target.startswith(BY_PATH)

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        target = file.target.removeprefix(BY_PATH)
        # All of one kind of anonymous inodes are the same by O_PATH: the kernel has one for all.
        found = 0 if target in _LATE else world.named(target)
        if not found:
            raise UnsupportedResource(
                f"is {os.fsdecode(target)} by O_PATH, which cannot be saved yet",
                hint="files with a path, pipes and sockets can be held so, while they are open",
            )
        return cls(id=number, flags=file.flags, file=found)

    def refuse_wider(self, bounding: int) -> None:
        if self.flags != O_PATH:
            raise ImageError("the image has a file by O_PATH that can do more than that")

    def turn(self) -> int:
        return 16  # when what it names stands

    def restore(self, making: Making) -> int:
        if self.file not in making.files:
            raise ImageError("the image lacks a file that another one names")
        return making.reopen_descriptor(making.files[self.file], self.flags)
