"""signalfd(2): signals read from a descriptor."""

from typing import ClassVar, Self

from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.resources.files.base import FileRecord, Row, set_flags
from woodfrog.resources.files.making import Making
from woodfrog.resources.files.open_file import OpenFile
from woodfrog.resources.files.world import World


class SignalFd(FileRecord, frozen=True, tag="signalfd"):
    """The set of signals that can be read; bit N-1 is signal N."""

    row: ClassVar[Row] = Row(
        called="signalfd",
        kept=("masks",),
    )
    may_be_replaced: ClassVar[bool] = True
    mask: int

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        return file.target == b"anon_inode:[signalfd]"

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        return cls(id=number, flags=file.flags, mask=int(file.fdinfo["sigmask"], 16))

    def restore(self, making: Making) -> int:
        program = making.program
        mask = self.mask.to_bytes(8, "little")
        fd = program.call(SYS.SIGNALFD4, -1, mask, len(mask), 0)
        set_flags(program, fd, self.flags)
        return fd
