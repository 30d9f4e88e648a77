"""What came from outside as standard input, output or error, and is replaced by the new one."""

import stat
from typing import Self

from woodfrog.resources.files.base import FileRecord, Making, OpenFile, World
from woodfrog.resources.files.pipe import other_end_is_open


class Stdio(FileRecord, frozen=True, tag="stdio"):
    """One of the descriptors that the container got from outside; `number` is 0, 1 or 2."""

    number: int
    was: bytes

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        return any(fd <= 2 for _, fd in file.holders) and _is_outside(file, world)

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        lowest = min(fd for _, fd in file.holders)
        return cls(id=number, flags=file.flags, number=lowest, was=file.target)

    def restore(self, making: Making) -> int:
        return making.stdio(self.number)


def _is_outside(file: OpenFile, world: World) -> bool:
    mode = file.stat.st_mode
    if file.target.startswith(b"/"):
        return file.mnt_id not in world.mounts
    if stat.S_ISFIFO(mode):
        return world.one_sided(file) and other_end_is_open(file.descriptor)
    if stat.S_ISSOCK(mode):
        return world.sockets.is_outside(file.stat.st_ino)  # type: ignore[no-any-return]
    return False
