"""mq_open(3): a POSIX message queue behind a descriptor. The queue is a PosixQueue record."""

import os
import stat
from typing import ClassVar, Self

from woodfrog.errors import UnsupportedResource
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.resources.files.base import (
    CREATION_FLAGS,
    FileRecord,
    Making,
    OpenFile,
    Row,
    World,
    set_flags,
)


class MessageQueueFile(FileRecord, frozen=True, tag="message-queue"):
    """A message queue, opened by its name."""

    row: ClassVar[Row] = Row(
        called="POSIX message queues",
        kept=("by name",),
        refused=("unlinked while open",),
    )
    name: bytes

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        # What was opened below /dev/mqueue is on a mount of the container: a regular file.
        return (
            file.target.startswith(b"/")
            and file.stat.st_dev in world.queue_devices
            and stat.S_ISREG(file.stat.st_mode)
            and file.mnt_id not in world.mounts
        )

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        if file.stat.st_nlink == 0:
            raise UnsupportedResource(
                f"is the POSIX message queue {os.fsdecode(file.target)}, which was unlinked while"
                " it is open; it cannot be saved yet"
            )
        return cls(id=number, flags=file.flags, name=file.target[1:])

    def restore(self, making: Making) -> int:
        program = making.program
        fd = program.call(SYS.MQ_OPEN, self.name, self.flags & ~CREATION_FLAGS, 0, 0)
        set_flags(program, fd, self.flags)
        return fd
