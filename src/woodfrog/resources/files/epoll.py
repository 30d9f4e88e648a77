"""epoll(7): a set of files that are watched."""

import struct
from typing import Self

from woodfrog.errors import UnsupportedResource
from woodfrog.image.record import Part
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.remote.program import Program
from woodfrog.resources.files.base import DescriptorTable, FileRecord, Making, OpenFile, World

_EPOLL_CTL_ADD = 1
KCMP_EPOLL_TFD = 7


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

    def may_connect(self, table: DescriptorTable) -> bool:
        present = set(table.files.values())
        return all(watch.file in present for watch in self.watches)

    def connect(self, program: Program, fd: int, table: DescriptorTable) -> None:
        for watch in self.watches:
            # The number is part of what is watched: a file under two numbers is two watches.
            # It may have been closed since, or name another file now, while the file lives on.
            event = struct.pack("<IQ", watch.events, watch.data)
            if table.files.get(watch.descriptor) == watch.file:
                program.call(SYS.EPOLL_CTL, fd, _EPOLL_CTL_ADD, watch.descriptor, event)
                continue
            other = next((n for n, file in table.files.items() if file == watch.file), None)
            if other is None:
                raise UnsupportedResource(
                    "an epoll watches a file that the process which holds the epoll has not"
                )
            aside = None
            if watch.descriptor in table.files:
                aside = syscalls.duplicate_above(program, watch.descriptor, max(table.files) + 1)
            syscalls.duplicate_to(program, other, watch.descriptor, cloexec=True)
            program.call(SYS.EPOLL_CTL, fd, _EPOLL_CTL_ADD, watch.descriptor, event)
            if aside is None:
                syscalls.close(program, watch.descriptor)
            else:
                cloexec = watch.descriptor in table.cloexec
                syscalls.duplicate_to(program, aside, watch.descriptor, cloexec=cloexec)
                syscalls.close(program, aside)


def parse_watches(lines: list[str]) -> list[tuple[int, int, int, int]]:
    """Parse the tfd lines of fdinfo into (descriptor, events, data, inode)."""
    found = []
    for line in lines:
        if line.startswith("tfd:"):
            words = line.replace(":", " ").split()
            found.append((int(words[1]), int(words[3], 16), int(words[5], 16), int(words[9], 16)))
    return found
