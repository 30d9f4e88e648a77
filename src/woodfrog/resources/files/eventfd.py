"""eventfd(2): a kernel counter behind a descriptor."""

import os
import select
from typing import ClassVar, Self

from woodfrog.kernel import features, syscalls
from woodfrog.resources.files.base import FileRecord, Row, set_flags
from woodfrog.resources.files.making import Making
from woodfrog.resources.files.open_file import OpenFile
from woodfrog.resources.files.world import World


class EventFd(FileRecord, frozen=True, tag="eventfd"):
    """An event counter."""

    row: ClassVar[Row] = Row(
        called="eventfd",
        kept=("counters",),
    )
    may_be_replaced: ClassVar[bool] = True
    counter: int
    semaphore: bool

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        return file.target == b"anon_inode:[eventfd]"

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        counter = int(file.fdinfo["eventfd-count"], 16)
        return cls(
            id=number, flags=file.flags, counter=counter, semaphore=_is_semaphore(file, counter)
        )

    def restore(self, making: Making) -> int:
        program = making.program
        fd = syscalls.eventfd(program, os.EFD_SEMAPHORE if self.semaphore else 0)
        # eventfd() takes 32 bits and the counter has 64, so write it instead.
        if self.counter:
            syscalls.write(program, fd, self.counter.to_bytes(8, "little"))
        set_flags(program, fd, self.flags)
        return fd

    @property
    def may_be_set_back(self) -> bool:
        return True

    def set_back(self, descriptor: int) -> None:
        # Nobody else reads or writes it meanwhile. What there is, is taken at once, or one by one.
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while poll.poll(0):
            os.eventfd_read(descriptor)
        if self.counter:
            os.eventfd_write(descriptor, self.counter)


def _is_semaphore(file: OpenFile, counter: int) -> bool:
    # Since Linux 6.5 (commit 33d8b5d78285 "eventfd: show the EFD_SEMAPHORE flag in fdinfo").
    told = file.fdinfo.get("eventfd-semaphore")
    if told is not None and features.wanted(features.EVENTFD_SEMAPHORE):
        return told == "1"
    # Before, only a read tells: with the counter at 2 or more it takes 1, or all. Nobody else can
    # read or write meanwhile, as all holders are held.
    fd = file.descriptor
    if counter < 2:
        os.eventfd_write(fd, 2)
    taken = os.eventfd_read(fd)
    if taken == 1:
        left = counter + 2 - 1 if counter < 2 else counter - 1
        for _ in range(max(0, left - counter)):
            os.eventfd_read(fd)
        if left < counter:
            os.eventfd_write(fd, counter - left)
        return True
    if counter:
        os.eventfd_write(fd, counter)
    return False
