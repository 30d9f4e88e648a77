"""The container's own terminal: its other end is outside, with whoever holds the console."""

import fcntl
import os
import stat
import termios
from typing import Self

from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.resources.files.base import (
    CREATION_FLAGS,
    O_PATH,
    FileRecord,
    Making,
    OpenFile,
    World,
    set_flags,
)

_WINSIZE_BYTES = 8
_PTS_MAJORS = range(136, 144)
_TERMIOS_BYTES = 36  # struct termios of the kernel: four words, line discipline, 19 characters


class Terminal(FileRecord, frozen=True, tag="terminal"):
    """The console, with its settings (struct termios) and its size (struct winsize).

    A new terminal that has a size already, its user's, keeps that.
    """

    settings: bytes
    size: bytes

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        # One of another mount namespace was inherited: that is stdio.
        return (
            not file.flags & O_PATH
            and stat.S_ISCHR(file.stat.st_mode)
            and os.major(file.stat.st_rdev) in _PTS_MAJORS
            and file.mnt_id in world.mounts
        )

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        settings = bytearray(_TERMIOS_BYTES)
        fcntl.ioctl(file.descriptor, termios.TCGETS, settings)
        size = bytearray(_WINSIZE_BYTES)
        fcntl.ioctl(file.descriptor, termios.TIOCGWINSZ, size)
        return cls(id=number, flags=file.flags, settings=bytes(settings), size=bytes(size))

    def restore(self, making: Making) -> int:
        program = making.program
        flags = self.flags & ~CREATION_FLAGS
        path = making.terminal()
        fd = syscalls.openat2(program, path, flags | os.O_NOCTTY | os.O_NONBLOCK)
        program.call(SYS.IOCTL, fd, termios.TCSETS, self.settings)
        if not making.terminal_has_size():
            program.call(SYS.IOCTL, fd, termios.TIOCSWINSZ, self.size)
        set_flags(program, fd, self.flags)
        return fd
