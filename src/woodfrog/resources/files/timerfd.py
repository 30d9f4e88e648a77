"""timerfd_create(2): a timer behind a descriptor."""

import re
import struct
import time
from typing import ClassVar, Self

from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE, Caller
from woodfrog.kernel.procfs.fdinfo import read_fdinfo
from woodfrog.remote.program import Program
from woodfrog.resources.files.base import DescriptorTable, FileRecord, Row, set_flags
from woodfrog.resources.files.making import Making
from woodfrog.resources.files.open_file import OpenFile
from woodfrog.resources.files.world import World

_CLOCKS_OF_THE_WORLD = (0, 8)  # CLOCK_REALTIME, CLOCK_REALTIME_ALARM
_TFD_TIMER_ABSTIME = 1
_TFD_IOC_SET_TICKS = 0x40085400
_PAIR = r"\((\d+), (\d+)\)"


class TimerFd(FileRecord, frozen=True, tag="timerfd"):
    """A timer, with its expirations that nobody has read; times in nanoseconds."""

    row: ClassVar[Row] = Row(
        called="timerfd",
        kept=("the time left (or the absolute time), and what has expired",),
    )
    may_be_replaced: ClassVar[bool] = True
    clock: int
    ticks: int
    left_ns: int
    interval_ns: int
    settime_flags: int = 0
    at_ns: int = 0  # when it rings, of the world's time, if that is how it was set

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        return file.target == b"anon_inode:[timerfd]"

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        fdinfo, _ = read_fdinfo(file.pid, file.fd)
        now = time.time_ns()

        def nanoseconds(name: str) -> int:
            match = re.search(_PAIR, fdinfo[name])
            return int(match[1]) * 1_000_000_000 + int(match[2]) if match else 0

        clock, left = int(fdinfo["clockid"]), nanoseconds("it_value")
        flags = int(fdinfo["settime flags"], 8)
        of_world = clock in _CLOCKS_OF_THE_WORLD and flags & _TFD_TIMER_ABSTIME
        return cls(
            id=number,
            flags=file.flags,
            clock=clock,
            ticks=int(fdinfo["ticks"]),
            left_ns=left,
            interval_ns=nanoseconds("it_interval"),
            settime_flags=flags if of_world else 0,
            at_ns=now + left if of_world and left else 0,
        )

    def restore(self, making: Making) -> int:
        program = making.program
        fd = program.call(SYS.TIMERFD_CREATE, self.clock, 0)
        set_flags(program, fd, self.flags)
        return fd

    def connect(self, program: Program, fd: int, table: DescriptorTable) -> None:
        self._arm(program, fd)

    @property
    def may_be_set_back(self) -> bool:
        return True

    def set_back(self, descriptor: int) -> None:
        HERE.call(SYS.TIMERFD_SETTIME, descriptor, 0, bytes(32), 0)  # which forgets its ticks
        self._arm(HERE, descriptor)

    def _arm(self, on: Caller, fd: int) -> None:
        if self.left_ns or self.interval_ns:
            value = struct.pack(
                "<4q",
                *divmod(self.interval_ns, 1_000_000_000),
                *divmod(self.at_ns or self.left_ns or 1, 1_000_000_000),
            )
            on.call(SYS.TIMERFD_SETTIME, fd, self.settime_flags, value, 0)
        if self.ticks:
            on.call(SYS.IOCTL, fd, _TFD_IOC_SET_TICKS, self.ticks.to_bytes(8, "little"))
