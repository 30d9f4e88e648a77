"""Terminals whose other end is outside: the container's own, and those of `exec`."""

import fcntl
import os
import stat
import termios
from typing import ClassVar, Self

from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.console import TIOCSPTLCK
from woodfrog.resources.files.base import FileRecord, Row, set_flags
from woodfrog.resources.files.making import Making
from woodfrog.resources.files.open_file import CREATION_FLAGS, O_PATH, PTS_MAJORS, OpenFile
from woodfrog.resources.files.pty import open_master
from woodfrog.resources.files.world import World

_WINSIZE_BYTES = 8
_TERMIOS_BYTES = 36  # struct termios of the kernel: four words, line discipline, 19 characters


class Terminal(FileRecord, frozen=True, tag="terminal"):
    """A terminal with its settings (struct termios) and its size (struct winsize).

    It comes back as the new container's own; one that has a size already, its user's, keeps that.
    If the new container has none, one of `exec` (not `own`) comes back with nobody at its other
    end, and is hung up when all processes run.
    """

    row: ClassVar[Row] = Row(
        called="the container's own terminal, and that of an `exec`",
        kept=(
            "settings, size, foreground group",
            "it is the new container's",
        ),
    )
    path: bytes
    index: int
    own: bool
    settings: bytes
    size: bytes

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        # One of another mount namespace was inherited: that is stdio.
        return (
            not file.flags & O_PATH
            and stat.S_ISCHR(file.stat.st_mode)
            and os.major(file.stat.st_rdev) in PTS_MAJORS
            and file.mnt_id in world.mounts
        )

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        settings = bytearray(_TERMIOS_BYTES)
        fcntl.ioctl(file.descriptor, termios.TCGETS, settings)
        size = bytearray(_WINSIZE_BYTES)
        fcntl.ioctl(file.descriptor, termios.TIOCGWINSZ, size)
        index = os.minor(file.stat.st_rdev)
        return cls(
            id=number,
            flags=file.flags,
            path=file.target,
            index=index,
            own=index == world.own_terminal,
            settings=bytes(settings),
            size=bytes(size),
        )

    def restore(self, making: Making) -> int:
        flags = self.flags & ~CREATION_FLAGS
        if not self.own and not making.has_terminal():
            path = self._make(making)
        else:
            path = making.terminal()
        program = making.program
        fd = syscalls.openat2(program, path, flags | os.O_NOCTTY | os.O_NONBLOCK)
        program.call(SYS.IOCTL, fd, termios.TCSETS, self.settings)
        if path == self.path or not making.terminal_has_size():
            program.call(SYS.IOCTL, fd, termios.TIOCSWINSZ, self.size)
        set_flags(program, fd, self.flags)
        return fd

    def _make(self, making: Making) -> bytes:
        """Make a terminal of the same number, whose master is ours; returns its path."""
        key = ("terminal of exec", self.index)
        if not making.shared(key):
            making.share(key, True)
            directory = os.path.dirname(self.path)
            master = open_master(making, os.path.join(directory, b"ptmx"), self.index)
            making.program.call(SYS.IOCTL, master, TIOCSPTLCK, bytes(4))
            making.hold_to_the_end(master)
        return self.path
