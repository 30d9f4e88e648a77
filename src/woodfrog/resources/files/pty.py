"""pty(7): pseudoterminals with both ends in the container, as tmux, script and sshd have them.

The container's own terminal, whose other end is outside, is in terminal.py.
"""

import errno
import fcntl
import os
import select
import stat
import termios
from collections.abc import Iterable, Mapping
from typing import ClassVar, Self

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.image.record import Part
from woodfrog.kernel import pty, syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.capability import CAP_SYS_ADMIN
from woodfrog.kernel.console import TIOCGPTPEER, TIOCSPTLCK
from woodfrog.resources.files.base import FileRecord, Row, set_flags
from woodfrog.resources.files.making import Late, Making
from woodfrog.resources.files.open_file import CREATION_FLAGS, O_PATH, PTS_MAJORS, OpenFile
from woodfrog.resources.files.world import World

_TIOCGDEV = 0x80045432
_DEV_TTY = os.makedev(5, 0)
_N_TTY = 0
_MOST = 4096


class InputLine(Part, frozen=True):
    """Input as one read gets it; `ended` by the end-of-file character instead of a line end."""

    data: bytes
    ended: bool


class PtyMaster(FileRecord, frozen=True, tag="pty-master"):
    """The master, and all that belongs to the pair: settings, size, what is queued both ways.

    `terminal` is the path of the other end, which was `opened` at some time.
    """

    row: ClassVar[Row] = Row(
        called="pseudoterminals with both ends inside (tmux, script, sshd)",
        kept=(
            "settings, size, locks, packet mode with its news, sessions, foreground groups",
            "what is queued, and whether output is stopped",
            "hung up",
        ),
        refused=(
            "in packet mode with news that nobody has read, if nobody has opened them yet",
            "another line discipline than N_TTY",
        ),
    )
    may_be_replaced: ClassVar[bool] = True
    path: bytes
    index: int
    terminal: bytes
    uid: int
    gid: int
    mode: int
    settings: bytes
    size: bytes
    locked: bool
    packet_mode: bool
    opened: bool
    input: list[InputLine]
    output: bytes
    stopped: bool
    exclusive: bool = False
    news: int = 0  # of packet mode (TIOCPKT), that nobody has read
    locked_settings: bytes = b""  # a mask of struct termios; empty if nothing is locked

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        return "tty-index" in file.fdinfo and file.mnt_id in world.mounts

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        master = file.descriptor
        index = pty.index(master)
        opened = bool(pty.events(master) & select.POLLHUP) or index in world.terminals
        if not opened and pty.has_news(master):
            raise UnsupportedResource(
                "is a terminal in packet mode that nobody has opened yet, with news that nobody"
                " has read",
                hint="try again",
            )
        queues, exclusive = pty.Queues([], b"", stopped=False), False
        if opened:
            queues = pty.peek(master)
            with pty.peer(master) as other:
                exclusive = pty.is_exclusive(other)
        locked_settings = pty.locked_settings(master)
        terminal = _path_of_terminal(file, index, world)
        node = os.stat(os.fsencode(world.root) + terminal)
        return cls(
            id=number,
            flags=file.flags,
            path=file.target,
            index=index,
            terminal=terminal,
            uid=node.st_uid,
            gid=node.st_gid,
            mode=stat.S_IMODE(node.st_mode),
            settings=pty.settings(master),
            size=pty.size(master),
            locked=pty.is_locked(master),
            packet_mode=pty.has_packet_mode(master),
            opened=opened,
            input=[InputLine(data=line.data, ended=line.ended) for line in queues.input],
            output=queues.output,
            stopped=queues.stopped,
            news=queues.news,
            exclusive=exclusive,
            locked_settings=locked_settings if any(locked_settings) else b"",
        )

    def refuse_wider(self, bounding: int) -> None:
        if self.locked_settings and not bounding >> CAP_SYS_ADMIN & 1:
            raise UnsupportedResource(
                "the image has a terminal with locked settings (TIOCSLCKTRMIOS), for which the new"
                " container lacks CAP_SYS_ADMIN"
            )

    def restore(self, making: Making) -> int:
        of_settings = {len(self.settings), len(self.locked_settings) or pty.SETTINGS_BYTES}
        if of_settings != {pty.SETTINGS_BYTES} or len(self.size) != pty.SIZE_BYTES:
            raise ImageError("the settings of a terminal have an impossible size")
        fd = open_master(making, self.path, self.index)
        program = making.program
        program.call(SYS.IOCTL, fd, TIOCSPTLCK, bytes(4))
        program.call(SYS.IOCTL, fd, termios.TCSETS, self.settings)
        program.call(SYS.IOCTL, fd, termios.TIOCSWINSZ, self.size)
        if self.packet_mode:
            program.call(SYS.IOCTL, fd, termios.TIOCPKT, (1).to_bytes(4, "little"))
        if self.opened:
            flags = os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK
            with making.by_all_rights():
                terminal = program.call(SYS.IOCTL, fd, TIOCGPTPEER, flags)
                program.call(SYS.FCHOWN, terminal, self.uid, self.gid)
                program.call(SYS.FCHMOD, terminal, self.mode)
            syscalls.close(program, terminal)
        if self.locked:
            making.at_end(self._lock)
        set_flags(program, fd, self.flags)
        return fd

    def _lock(self, making: Making) -> None:
        lock = (1).to_bytes(4, "little")
        making.program.call(SYS.IOCTL, making.files[self.id], TIOCSPTLCK, lock)

    @property
    def may_be_set_back(self) -> bool:
        return not self.locked_settings

    def set_back(self, descriptor: int) -> None:
        if self.opened:
            pty.empty(descriptor)
        fcntl.ioctl(descriptor, termios.TCSETS, self.settings)
        if pty.size(descriptor) != self.size:
            fcntl.ioctl(descriptor, termios.TIOCSWINSZ, self.size)
        if self.opened:
            self._fill(descriptor)

    def bonds(self) -> Iterable[object]:
        return [("pty", self.index)]

    def _fill(self, descriptor: int) -> None:
        lines = [pty.Line(line.data, line.ended) for line in self.input]
        pty.fill(descriptor, pty.Queues(lines, self.output, self.stopped, self.news))

    def complete(
        self, descriptor: int, root: int, deleted: Mapping[int, int], files: Mapping[int, int]
    ) -> None:
        if self.opened:
            self._fill(descriptor)
            if self.exclusive:
                with pty.peer(descriptor) as terminal:
                    fcntl.ioctl(terminal, termios.TIOCEXCL)
        if self.locked_settings:
            pty.lock_settings(descriptor, self.locked_settings)


class Pty(FileRecord, frozen=True, tag="pty"):
    """An open file of the terminal end."""

    row: ClassVar[Row] = PtyMaster.row
    may_be_replaced: ClassVar[bool] = True
    path: bytes
    index: int

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        return (
            not file.flags & O_PATH
            and stat.S_ISCHR(file.stat.st_mode)
            and os.major(file.stat.st_rdev) in PTS_MAJORS
            and file.mnt_id in world.mounts
            and str(os.minor(file.stat.st_rdev)) in world.pty_masters
            and not is_hung_up(file)
        )

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        if pty.number(file.descriptor, termios.TIOCGETD) != _N_TTY:
            raise UnsupportedResource("is a terminal with another line discipline than N_TTY")
        index = os.minor(file.stat.st_rdev)
        return cls(id=number, flags=file.flags, path=file.target, index=index)

    def turn(self) -> int:
        return 1  # after the masters

    def restore(self, making: Making) -> int:
        flags = self.flags & ~CREATION_FLAGS | os.O_NOCTTY | os.O_NONBLOCK
        fd = syscalls.openat2(making.program, self.path, flags)
        set_flags(making.program, fd, self.flags)
        return fd


class ControllingTerminal(FileRecord, frozen=True, tag="controlling-terminal"):
    """/dev/tty, opened by a process of a session, but for that of the container's own terminal."""

    row: ClassVar[Row] = PtyMaster.row
    path: bytes
    index: int
    late: ClassVar[bool] = True

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        if file.flags & O_PATH or file.stat.st_rdev != _DEV_TTY:
            return False
        return world.controls_sessions(_real_index(file))

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        return cls(id=number, flags=file.flags, path=file.target, index=_real_index(file))

    def restore_late(self, late: Late) -> int:
        flags = self.flags & ~CREATION_FLAGS | os.O_NOCTTY | os.O_NONBLOCK
        fd = late.open_in_session(self.index, self.path, flags, self.flags)
        found = os.fstat(fd)
        # Opened by more rights than the container may have, so it must be nothing else.
        if not stat.S_ISCHR(found.st_mode) or not (
            found.st_rdev == _DEV_TTY or os.major(found.st_rdev) in PTS_MAJORS
        ):
            os.close(fd)
            raise ImageError(f"{os.fsdecode(self.path)} is not a terminal")
        return fd


class HungUpTerminal(FileRecord, frozen=True, tag="hung-up-terminal"):
    """A terminal whose other end was closed. `master` is a path to make another such one by."""

    row: ClassVar[Row] = PtyMaster.row
    master: bytes

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        return (
            not file.flags & O_PATH
            and stat.S_ISCHR(file.stat.st_mode)
            and os.major(file.stat.st_rdev) in PTS_MAJORS
            and file.mnt_id in world.mounts
            and is_hung_up(file)
        )

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        point = world.mounts[file.mnt_id].point
        return cls(id=number, flags=file.flags, master=os.path.join(point, b"ptmx"))

    def turn(self) -> int:
        return 2  # no index that another one needs

    def restore(self, making: Making) -> int:
        flags = os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK
        master = making.spare(syscalls.openat2(making.program, self.master, flags))
        making.program.call(SYS.IOCTL, master, TIOCSPTLCK, bytes(4))
        flags |= self.flags & ~CREATION_FLAGS
        fd = making.program.call(SYS.IOCTL, master, TIOCGPTPEER, flags)
        set_flags(making.program, fd, self.flags)
        return fd


def is_hung_up(file: OpenFile) -> bool:
    """Tell whether the master of a terminal was closed."""
    try:
        fcntl.ioctl(file.descriptor, termios.TCGETS, bytes(pty.SETTINGS_BYTES))
    except OSError as error:
        return error.errno == errno.EIO
    return False


def _real_index(file: OpenFile) -> int:
    """Return N of the /dev/pts/N that /dev/tty was when it was opened; -1 if it is none."""
    try:
        device = pty.number(file.descriptor, _TIOCGDEV)
    except OSError:
        return -1
    return os.minor(device) if os.major(device) in PTS_MAJORS else -1


def _path_of_terminal(file: OpenFile, index: int, world: World) -> bytes:
    if index in world.terminals:
        return world.terminals[index]
    device = file.stat.st_dev
    for mount in world.mounts.values():
        if mount.type == "devpts" and mount.device == (os.major(device), os.minor(device)):
            return os.path.join(mount.point, b"%d" % index)
    raise UnsupportedResource(f"is the master of a terminal, {index}, that has no path")


def open_master(making: Making, path: bytes, index: int) -> int:
    """Make pseudoterminals until one has this index; the others are for later, or closed."""
    spare: dict[int, int] | None = making.shared("ptys")
    if spare is None:
        spare = {}
        making.share("ptys", spare)
        making.at_end(lambda making: _close_spare(making, spare))
    flags = os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK
    while index not in spare:
        found = bytearray(4)
        fd = syscalls.openat2(making.program, path, flags)
        making.program.call(SYS.IOCTL, fd, pty.TIOCGPTN, found)
        fd = making.settle(fd)
        got = int.from_bytes(found, "little")
        if got > index or len(spare) > _MOST:
            making.spare(fd)
            raise UnsupportedResource(f"the new container has a terminal {index} already")
        spare[got] = fd
    return spare.pop(index)


def _close_spare(making: Making, spare: Mapping[int, int]) -> None:
    for fd in spare.values():
        making.spare(fd)
