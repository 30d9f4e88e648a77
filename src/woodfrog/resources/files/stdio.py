"""What came from outside as standard input, output or error, and is replaced by the new one."""

import stat
from typing import ClassVar, Self

from woodfrog.errors import ImageError
from woodfrog.resources.files.base import FileRecord, Row
from woodfrog.resources.files.making import Making
from woodfrog.resources.files.open_file import OpenFile
from woodfrog.resources.files.pipe import other_end_is_open
from woodfrog.resources.files.world import World


class Stdio(FileRecord, frozen=True, tag="stdio"):
    """What the container got from outside as descriptor `number`: 0, 1 or 2.

    Programs open it once more by /dev/stdout, or keep it elsewhere and give the number away.
    """

    row: ClassVar[Row] = Row(
        called="what came from outside as descriptor 0, 1 or 2",
        kept=(
            "becomes the new container's, also where it was opened again by /dev/stdout, or moved",
        ),
    )
    may_be_replaced: ClassVar[bool] = True
    number: int
    was: bytes
    opened_inside: bool

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        return world.stdio_number(file) is not None and _is_outside(file, world)

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        which = world.stdio_number(file)
        assert which is not None
        return cls(
            id=number,
            flags=file.flags,
            number=which,
            was=file.target,
            opened_inside=world.is_stdio_opened_inside(file),
        )

    def refuse_wider(self, bounding: int) -> None:
        if not 0 <= self.number <= 2:
            raise ImageError("the image has a standard stream of an impossible number")

    def restore(self, making: Making) -> int:
        if self.opened_inside and making.stdio_can_be_opened(self.number):
            making.refuse_forbidden(making.stdio(self.number), self.flags)
            return making.reopen_descriptor(making.stdio(self.number), self.flags)
        return making.stdio(self.number)


def _is_outside(file: OpenFile, world: World) -> bool:
    mode = file.stat.st_mode
    if file.target.startswith(b"/"):
        return world.place_of_mount(file.mnt_id) is None
    if stat.S_ISFIFO(mode):
        return world.one_sided(file) and other_end_is_open(file.descriptor)
    if stat.S_ISSOCK(mode):
        return world.sockets.is_outside(file.stat.st_ino)  # type: ignore[no-any-return]
    return False
