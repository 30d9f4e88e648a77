"""fifo(7): named pipes, with what is in them."""

import fcntl
import os
import stat
import termios
from typing import ClassVar, Self

from woodfrog.errors import ImageError
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.resources.files.base import FileRecord, Row, set_flags
from woodfrog.resources.files.making import Making
from woodfrog.resources.files.open_file import ACCESS_MODE, CREATION_FLAGS, O_PATH, OpenFile
from woodfrog.resources.files.pipe import F_GETPIPE_SZ, F_SETPIPE_SZ, peek, write_contents
from woodfrog.resources.files.world import World


class Fifo(FileRecord, frozen=True, tag="fifo"):
    """One open file of a FIFO. The contents stand with the first reader, or else writer.

    `deleted` is the id of its DeletedFile if it has no name any more, else 0.
    """

    row: ClassVar[Row] = Row(
        called="FIFOs",
        kept=(
            "contents, packets, sizes",
            "deleted ones",
        ),
    )
    path: bytes
    inode: int
    capacity: int
    packets: list[bytes]
    deleted: int = 0

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        return (
            file.target.startswith(b"/")
            and stat.S_ISFIFO(file.stat.st_mode)
            and not file.flags & O_PATH
            and world.place_of_mount(file.mnt_id) is not None
        )

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        capacity = fcntl.fcntl(file.descriptor, F_GETPIPE_SZ)
        return cls(
            id=number,
            flags=file.flags,
            path=file.target,
            deleted=world.deleted_file(file) if world.is_deleted(file) else 0,
            inode=file.stat.st_ino,
            capacity=capacity,
            packets=_packets(file, capacity) if world.is_first_to_read(file) else [],
        )

    def restore(self, making: Making) -> int:
        program = making.program
        # An end of our own, so that neither open waits and the contents have a way in; closed with
        # what else is left over once all files stand.
        key = ("fifo", self.deleted or (making.mounts, self.path))
        ours = making.shared(key)
        if ours is None:
            ours = making.spare(self._open(making, os.O_RDWR | os.O_NONBLOCK))
            program = making.program
            making.share(key, ours)
            if self.capacity != 65536:
                program.call(SYS.FCNTL, ours, F_SETPIPE_SZ, self.capacity)
        if self.packets and not making.shared((*key, "filled")):
            making.share((*key, "filled"), True)
            write_contents(making, ours, self.packets, self.capacity, packet_mode=False)
        fd = self._open(making, self.flags & ~CREATION_FLAGS | os.O_NONBLOCK)
        set_flags(making.program, fd, self.flags)
        return fd

    def _open(self, making: Making, flags: int) -> int:
        if self.deleted:
            return making.reopen(self.deleted, flags)
        return syscalls.openat2(making.program, self.path, flags)

    def verify(self, descriptor: int) -> None:
        if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            raise ImageError(f"{os.fsdecode(self.path)} is not a FIFO any more")


def _packets(file: OpenFile, capacity: int) -> list[bytes]:
    """Read what is in a FIFO, without taking it."""
    if file.flags & ACCESS_MODE != os.O_WRONLY:
        return peek(file.descriptor, capacity)
    waiting = bytearray(4)
    fcntl.ioctl(file.descriptor, termios.FIONREAD, waiting)
    if not any(waiting):
        return []
    # Its readers have gone and left that.
    reader = os.open(file.link, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return peek(reader, capacity)
    finally:
        os.close(reader)
