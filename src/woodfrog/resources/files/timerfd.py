"""timerfd_create(2): a timer behind a descriptor."""

import re
import struct
from typing import ClassVar, Self

from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.remote.program import Program
from woodfrog.resources.files.base import (
    DescriptorTable,
    FileRecord,
    Making,
    OpenFile,
    Row,
    World,
    set_flags,
)

_TFD_IOC_SET_TICKS = 0x40085400
_PAIR = re.compile(r"\((\d+), (\d+)\)")


class TimerFd(FileRecord, frozen=True, tag="timerfd"):
    """A timer, with its expirations that nobody has read; times in nanoseconds."""

    row: ClassVar[Row] = Row(
        called="timerfd",
        kept=("the time left, and what has expired",),
    )
    clock: int
    ticks: int
    left_ns: int
    interval_ns: int

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        return file.target == b"anon_inode:[timerfd]"

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        def nanoseconds(name: str) -> int:
            match = _PAIR.search(file.fdinfo[name])
            return int(match[1]) * 1_000_000_000 + int(match[2]) if match else 0

        return cls(
            id=number,
            flags=file.flags,
            clock=int(file.fdinfo["clockid"]),
            ticks=int(file.fdinfo["ticks"]),
            left_ns=nanoseconds("it_value"),
            interval_ns=nanoseconds("it_interval"),
        )

    def restore(self, making: Making) -> int:
        program = making.program
        fd = program.call(SYS.TIMERFD_CREATE, self.clock, 0)
        set_flags(program, fd, self.flags)
        return fd

    def connect(self, program: Program, fd: int, table: DescriptorTable) -> None:
        if self.left_ns or self.interval_ns:
            value = struct.pack(
                "<4q",
                *divmod(self.interval_ns, 1_000_000_000),
                *divmod(self.left_ns or 1, 1_000_000_000),
            )
            program.call(SYS.TIMERFD_SETTIME, fd, 0, value, 0)
        if self.ticks:
            ticks = self.ticks.to_bytes(8, "little")
            program.call(SYS.IOCTL, fd, _TFD_IOC_SET_TICKS, ticks)
