"""memfd_create(2): memory behind a descriptor. The contents are a SharedMemory record."""

from typing import ClassVar, Self

from woodfrog.kernel import syscalls
from woodfrog.resources.files.base import FileRecord, Row, set_flags
from woodfrog.resources.files.making import Making
from woodfrog.resources.files.open_file import ACCESS_MODE, O_PATH, OpenFile
from woodfrog.resources.files.world import World


class MemFd(FileRecord, frozen=True, tag="memfd"):
    """A position in a piece of shared memory."""

    row: ClassVar[Row] = Row(
        called="memfd",
        kept=("name, contents, mode, owner, seals, positions",),
    )
    memory: int
    position: int

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        return file.target.startswith(b"/memfd:")

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        return cls(
            id=number,
            flags=file.flags,
            memory=world.memory_object(file.descriptor, file.target),
            position=file.position,
        )

    def restore(self, making: Making) -> int:
        if self.flags & O_PATH:
            return making.reopen(self.memory, self.flags)
        program = making.program
        if self.flags & ACCESS_MODE == 2 and not making.shared(("memfd", self.memory)):
            # memfd_create() itself made this one; it was open for reading and writing.
            making.share(("memfd", self.memory), True)
            fd = syscalls.duplicate_above(program, making.memory_object(self.memory), 0)
        else:
            fd = making.reopen(self.memory, self.flags)
            program = making.program
        syscalls.lseek(program, fd, self.position)
        set_flags(program, fd, self.flags)
        return fd
