"""mq_open(3): a POSIX message queue behind a descriptor. The queue is a PosixQueue record."""

import itertools
import os
import stat
from typing import ClassVar, Self

from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.resources import posix_queues
from woodfrog.resources.deleted_files import DELETED
from woodfrog.resources.files.base import FileRecord, Row, set_flags
from woodfrog.resources.files.making import Making
from woodfrog.resources.files.open_file import CREATION_FLAGS, O_PATH, OpenFile
from woodfrog.resources.files.world import World
from woodfrog.resources.posix_queues import PosixQueue


class MessageQueueFile(FileRecord, frozen=True, tag="message-queue"):
    """A message queue, opened by its name.

    One that was unlinked has `unlinked`, and a number of its own.
    """

    row: ClassVar[Row] = Row(
        called="POSIX message queues",
        kept=("by name, or unlinked",),
    )
    name: bytes
    queue: int = 0
    unlinked: PosixQueue | None = None

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
        name = file.target[1:]
        if file.stat.st_nlink:
            return cls(id=number, flags=file.flags, name=name)
        ours = os.open(file.link, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            name = name.removesuffix(DELETED)
            others = (b"%s.%d" % (name, n) for n in itertools.count(1))
            names = itertools.chain([name], others)
            free = next(one for one in names if one not in world.queue_names)
            unlinked = posix_queues.look_at(ours, free, world.notices)
        finally:
            os.close(ours)
        inode = file.stat.st_ino
        return cls(id=number, flags=file.flags, name=name, queue=inode, unlinked=unlinked)

    def refuse_wider(self, bounding: int) -> None:
        if self.unlinked:
            posix_queues.check([self.unlinked])

    def restore(self, making: Making) -> int:
        program = making.program
        if self.unlinked is None:
            # mq_open(2) knows no O_PATH.
            flags = os.O_RDWR if self.flags & O_PATH else self.flags & ~CREATION_FLAGS
            named = program.call(SYS.MQ_OPEN, self.name, flags, 0, 0)
            if self.flags & O_PATH:
                return making.reopen_descriptor(making.spare(named), self.flags)
            set_flags(program, named, self.flags)
            return named
        key = ("unlinked message queue", self.queue)
        made = making.shared(key)
        if made is None:
            made = making.spare(posix_queues.make(program, self.unlinked))
            program.call(SYS.MQ_UNLINK, self.unlinked.name)
            making.share(key, made)
        fd = making.reopen_descriptor(made, self.flags)
        if not self.flags & O_PATH:
            set_flags(making.program, fd, self.flags)
        return fd
