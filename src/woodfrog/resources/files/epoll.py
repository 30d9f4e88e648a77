"""epoll(7): a set of files that are watched."""

import struct
from collections.abc import Mapping
from typing import Self

from woodfrog.errors import UnsupportedResource
from woodfrog.image.record import Part
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.remote.program import Program
from woodfrog.resources.files.base import FileRecord, Making, OpenFile, World

_EPOLL_CTL_ADD = 1


class Watch(Part, frozen=True):
    """One watched file: the descriptor that it was added by, what for, and the program's data."""

    descriptor: int
    file: int
    events: int
    data: int


class Epoll(FileRecord, frozen=True, tag="epoll"):
    """The watched files. Their ids are known only once all files are: see `collect_watches`."""

    watches: list[Watch] = []

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        return file.target == b"anon_inode:[eventpoll]"

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        return cls(id=number, flags=file.flags, watches=[])

    def restore(self, making: Making) -> int:
        return making.program.call(SYS.EPOLL_CREATE1, 0)

    def connect(self, program: Program, fd: int, table: Mapping[int, int]) -> None:
        for watch in self.watches:
            # The number is part of what is watched: a file under two numbers is two watches.
            if table.get(watch.descriptor) != watch.file:
                raise UnsupportedResource(
                    f"an epoll watches descriptor {watch.descriptor},"
                    " which is not that file in the process that holds it"
                )
            event = struct.pack("<IQ", watch.events, watch.data)
            program.call(SYS.EPOLL_CTL, fd, _EPOLL_CTL_ADD, watch.descriptor, event)


def parse_watches(lines: list[str]) -> list[tuple[int, int, int]]:
    """Parse the tfd lines of fdinfo into (descriptor, events, data)."""
    found = []
    for line in lines:
        if line.startswith("tfd:"):
            words = line.replace(":", " ").split()
            found.append((int(words[1]), int(words[3], 16), int(words[5], 16)))
    return found
