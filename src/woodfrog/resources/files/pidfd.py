"""pidfd_open(2): a process or thread behind a descriptor."""

import fcntl
import os
import struct
from typing import ClassVar, Self

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.resources import signals
from woodfrog.resources.files.base import FileRecord, Row
from woodfrog.resources.files.making import Late
from woodfrog.resources.files.open_file import OpenFile
from woodfrog.resources.files.world import World

_PIDFD_THREAD = os.O_EXCL
_GET_INFO = 0xC040FF0B  # PIDFD_GET_INFO with the 64 bytes of Linux 6.13
_INFO = struct.Struct("<Q52xi")
_INFO_EXIT = 1 << 3


class PidFd(FileRecord, frozen=True, tag="pidfd"):
    """`pid` is the container's id of a task; 0: it has ended, by `status`, and was waited for."""

    row: ClassVar[Row] = Row(
        called="pidfd",
        kept=("of processes and threads, of ended ones with their status",),
        refused=("of processes outside",),
    )
    pid: int
    status: int
    late: ClassVar[bool] = True

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        return file.target == b"anon_inode:[pidfd]"

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        seen = int(file.fdinfo["Pid"])
        pid = world.identify(seen) if seen > 0 else 0
        if seen >= 0 and not pid:
            raise UnsupportedResource("is a pidfd of a process outside the container")
        status = 0 if pid else _exit_status(file.descriptor)
        return cls(id=number, flags=file.flags, pid=pid, status=status)

    def refuse_wider(self, bounding: int) -> None:
        if not signals.can_end_by(self.status):
            raise ImageError("the image has a process that ended in an impossible way")

    def is_of_ended(self) -> bool:
        return not self.pid

    def restore_late(self, late: Late) -> int:
        flags = self.flags & (_PIDFD_THREAD | os.O_NONBLOCK)
        if self.pid:
            return late.open_process(self.pid, flags)
        return late.open_ended_process(self.status, flags)


def _exit_status(descriptor: int) -> int:
    """Return the status, as wait(2) gives it, of an ended process; 0 if the kernel forgot it."""
    information = bytearray(_INFO.size)
    _INFO.pack_into(information, 0, _INFO_EXIT, 0)
    try:
        fcntl.ioctl(descriptor, _GET_INFO, information)
    except OSError:
        return 0  # before Linux 6.15, or without pidfs
    mask, status = _INFO.unpack(information)
    return int(status) if mask & _INFO_EXIT else 0
