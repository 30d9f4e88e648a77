"""pipe(7): both ends, with what is in them."""

import array
import fcntl
import os
import select
import termios
from collections.abc import Iterable
from typing import ClassVar, Self

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.resources.files.base import Row, set_flags
from woodfrog.resources.files.making import Making
from woodfrog.resources.files.open_file import ACCESS_MODE, OpenFile
from woodfrog.resources.files.owned import Owned, owner_of
from woodfrog.resources.files.world import World

F_SETPIPE_SZ, F_GETPIPE_SZ = 1031, 1032
_LARGEST = 1 << 31


class PipeEnd(Owned, frozen=True, tag="pipe"):
    """One end of a pipe. `packets` are its contents, in one piece unless in packet mode."""

    row: ClassVar[Row] = Row(
        called="pipes",
        kept=("contents, packets, sizes, owner and mode",),
        refused=("with the other end outside, but as descriptor 0, 1 or 2",),
    )
    may_be_replaced: ClassVar[bool] = True
    pipe: int
    capacity: int
    packets: list[bytes]
    packet_mode: bool

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        return file.target.startswith(b"pipe:")

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        capacity = fcntl.fcntl(file.descriptor, F_GETPIPE_SZ)
        if world.one_sided(file) and other_end_is_open(file.descriptor):
            raise UnsupportedResource(
                "the other end of this pipe is outside the container",
                hint="only descriptors 0 to 2 may come from outside",
            )
        reads = file.flags & ACCESS_MODE in (os.O_RDONLY, os.O_RDWR)
        packets = peek(file.descriptor, capacity) if reads else []
        return cls(
            id=number,
            flags=file.flags,
            pipe=file.stat.st_ino,
            capacity=capacity,
            packets=packets,
            packet_mode=file.stat.st_ino in world.packet_pipes,
            **owner_of(file),
        )

    def bonds(self) -> Iterable[object]:
        return [("pipe", self.pipe)]

    def restore(self, making: Making) -> int:
        program = making.program
        key = ("pipe", self.pipe)
        ends = making.shared(key)
        side = 0 if self.flags & ACCESS_MODE == 0 else 1
        if ends is None:
            ends = making.pipe()
            making.share(key, ends)
            if self.capacity != 65536:
                program.call(SYS.FCNTL, ends[1], F_SETPIPE_SZ, self.capacity)
        if self.packets and not making.shared((*key, "filled")):
            # Every description of the read end has seen the same contents.
            making.share((*key, "filled"), True)
            write_contents(
                making, ends[1], self.packets, self.capacity, packet_mode=self.packet_mode
            )
            if (flags := making.shared((*key, "writer"))) is not None:
                set_flags(program, ends[1], flags)
        if self.flags & ACCESS_MODE == os.O_RDWR:
            # For both ways, as only /proc/PID/fd/N gives it.
            return self._reopened(making, ends[1])
        if side == 1:
            making.share((*key, "writer"), self.flags)
        taken = ("pipe", self.pipe, side)
        if making.shared(taken):
            # A second description of this end, made by opening /proc/PID/fd/N.
            return self._reopened(making, ends[side])
        making.share(taken, True)
        set_flags(program, ends[side], self.flags)
        return ends[side]  # type: ignore[no-any-return]

    def _reopened(self, making: Making, end: int) -> int:
        fd = making.reopen_descriptor(end, self.flags)
        # It was opened so that nobody would wait.
        set_flags(making.program, fd, self.flags)
        return fd


def peek(fd: int, capacity: int) -> list[bytes]:
    """Read what is in a pipe and leave it there (tee(2))."""
    waiting = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, waiting)
    if not waiting[0]:
        return []
    # One read takes all, or one packet: they keep their boundaries in the copy.
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.fcntl(writer, F_SETPIPE_SZ, capacity)
        HERE.call(SYS.TEE, fd, writer, waiting[0], 2)  # SPLICE_F_NONBLOCK
        packets = []
        got = 0
        while got < waiting[0]:
            try:
                data = os.read(reader, waiting[0] - got)
            except BlockingIOError:
                break
            packets.append(data)
            got += len(data)
        return packets
    finally:
        os.close(reader)
        os.close(writer)


def write_contents(
    making: Making, writer: int, packets: list[bytes], capacity: int, *, packet_mode: bool
) -> None:
    """Put recorded contents into a new pipe or FIFO."""
    if sum(map(len, packets)) > capacity or capacity > _LARGEST:
        raise ImageError("a pipe in the image holds more than its capacity")
    mode = os.O_DIRECT if packet_mode else 0
    syscalls.set_status_flags(making.program, writer, mode | os.O_NONBLOCK)
    for packet in packets:
        written = syscalls.write(making.program, writer, packet)
        making.program.expect(written, len(packet))


def other_end_is_open(descriptor: int) -> bool:
    """Tell whether anyone holds the other end of this end of a pipe."""
    poll = select.poll()
    poll.register(descriptor, 0)
    events = poll.poll(0)
    return not events or not events[0][1] & (select.POLLHUP | select.POLLERR)
