"""epoll(7): a set of files that are watched."""

import fcntl
import select
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import ClassVar, Self

import msgspec

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.image.record import Part
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.remote.program import Program
from woodfrog.resources.files.base import DescriptorTable, FileRecord, Row
from woodfrog.resources.files.making import Making
from woodfrog.resources.files.open_file import EPOLL, OpenFile
from woodfrog.resources.files.world import World

EPOLL_CTL_ADD, _EPOLL_CTL_DEL, _EPOLL_CTL_MOD = 1, 2, 3
_EPOLLIN, _EPOLLOUT, _EPOLLET = 0x1, 0x4, 1 << 31
# What epoll_ctl(2) takes and no file reports: EPOLLEXCLUSIVE, WAKEUP, ONESHOT, ET.
_PRIVATE = 0xF0000000
EVENT = struct.Struct("<IQ")
_EVENTS_AT_ONCE = 64
KCMP_EPOLL_TFD = 7
# How long it looks for packets itself: a struct epoll_params (since Linux 6.9).
_EPIOCSPARAMS, _EPIOCGPARAMS = 0x40088A01, 0x80088A02
_PARAMS_BYTES = 8


class Watch(Part, frozen=True):
    """One watched file: the descriptor that it was added by, what for, and the program's data.

    `told`: it is edge-triggered, and the program knows already that the file is ready.
    """

    descriptor: int
    file: int
    events: int
    data: int
    told: bool = False

    @property
    def is_disarmed(self) -> bool:
        """Tell whether it is a one-shot (EPOLLONESHOT) that has told its only event."""
        return not self.events & ~_PRIVATE


class Epoll(FileRecord, frozen=True, tag="epoll"):
    """The watched files. Their ids are known only once all files are: see `collect_watches`.

    `busy_poll` is a struct epoll_params, if one was set (linux/eventpoll.h).
    """

    row: ClassVar[Row] = Row(
        called="epoll",
        kept=(
            "what is watched, for what",
            "edges and one-shots that were told",
            "files that only others hold by now",
            "busy polling",
        ),
        refused=("files in flight that no process has, but for one that is in flight itself",),
    )
    may_be_replaced: ClassVar[bool] = True
    watches: list[Watch] = []
    busy_poll: bytes = b""

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        return file.target == EPOLL

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        return cls(id=number, flags=file.flags, busy_poll=_busy_poll(file.descriptor))

    def restore(self, making: Making) -> int:
        program = making.program
        fd = program.call(SYS.EPOLL_CREATE1, 0)
        if self.busy_poll:
            program.may_fail(program.call(SYS.IOCTL, fd, _EPIOCSPARAMS, self.busy_poll))
        return fd

    def refuse_wider(self, bounding: int) -> None:
        if len(self.busy_poll) not in (0, _PARAMS_BYTES):
            raise ImageError("the image has an epoll with impossible parameters")

    def missing(self, descriptor: int) -> str:
        if self.busy_poll and _busy_poll(descriptor) != self.busy_poll:
            return "an epoll does without busy polling, which cannot be set here"
        return ""

    def ties(self) -> set[int]:
        return {watch.file for watch in self.watches}

    def watch_again(
        self, program: Program, fd: int, now: "Epoll", number_now: Callable[[int], int]
    ) -> None:
        """Have an open epoll that watches what `now` says watch what this one did.

        `number_now` gives the id that a file has now. What a watched file was, its descriptor in
        this process still is; a watch of a file that was closed since has gone with it.
        """
        wanted = {(one.descriptor, number_now(one.file)): one for one in self.watches}
        there = {(one.descriptor, one.file): one for one in now.watches}
        for place in there.keys() - wanted.keys():
            program.may_fail(program.call(SYS.EPOLL_CTL, fd, _EPOLL_CTL_DEL, place[0], 0))
        for place, one in wanted.items():
            found = there.get(place)
            if found == msgspec.structs.replace(one, file=place[1]):
                continue
            how = _EPOLL_CTL_MOD if found else EPOLL_CTL_ADD
            event = EVENT.pack(one.events & 0xFFFFFFFF, one.data)
            program.call(SYS.EPOLL_CTL, fd, how, one.descriptor, event)

    def connect(self, program: Program, fd: int, table: DescriptorTable) -> None:
        told, disarmed, others = list[Watch](), list[Watch](), list[Watch]()
        for watch in self.watches:
            (disarmed if watch.is_disarmed else told if watch.told else others).append(watch)
        # While nothing else is there to be told.
        for watch in disarmed:
            with _named(program, watch, table):
                _disarm(program, fd, watch)
        for watch in told:
            with _named(program, watch, table):
                _add(program, fd, watch.descriptor, watch.events, watch.data)
        room = program.address_of(bytes(EVENT.size * min(len(told), _EVENTS_AT_ONCE)))
        for _ in range(0, len(told), _EVENTS_AT_ONCE):
            program.call(SYS.EPOLL_WAIT, fd, room, min(len(told), _EVENTS_AT_ONCE), 0)
        for watch in others:
            with _named(program, watch, table):
                _add(program, fd, watch.descriptor, watch.events, watch.data)


def _busy_poll(descriptor: int) -> bytes:
    """Return the parameters of an epoll of ours, or nothing if none were set."""
    found = bytearray(_PARAMS_BYTES)
    try:
        fcntl.ioctl(descriptor, _EPIOCGPARAMS, found)
    except OSError:
        return b""  # a kernel that has none
    return bytes(found) if any(found) else b""


def _add(program: Program, fd: int, number: int, events: int, data: int) -> None:
    program.call(SYS.EPOLL_CTL, fd, EPOLL_CTL_ADD, number, EVENT.pack(events, data))


def _disarm(program: Program, fd: int, watch: Watch) -> None:
    """Add a one-shot and have it tell its event now.

    If the file is ready for nothing, it can't; it waits for errors then, as the kernel has every
    watch do.
    """
    # What is told overwrites the operation of the last call, which fails then.
    told = program.address_of(EVENT.pack(_EPOLL_CTL_MOD, 0))
    _add(program, fd, watch.descriptor, watch.events | _EPOLLIN | _EPOLLOUT, watch.data)
    program.call(SYS.EPOLL_WAIT, fd, told, 1, 0)
    event = EVENT.pack(watch.events, watch.data)
    operation = program.load(told)
    program.may_fail(program.call(SYS.EPOLL_CTL, fd, operation, watch.descriptor, event))


@contextmanager
def _named(program: Program, watch: Watch, table: DescriptorTable) -> Iterator[None]:
    """Have a watched file be there under the number by which it was added.

    The number is part of what is watched: a file under two numbers is two watches. It may have been
    closed since, or name another file now, while the file lives on.
    """
    if table.files.get(watch.descriptor) == watch.file:
        yield
        return
    other = next((n for n, file in table.files.items() if file == watch.file), None)
    if other is None:
        raise UnsupportedResource(
            "an epoll watches a file that the process which holds the epoll has not"
        )
    aside = None
    if watch.descriptor in table.files:
        aside = syscalls.duplicate_above(program, watch.descriptor, max(table.files) + 1)
    syscalls.duplicate_to(program, other, watch.descriptor, cloexec=True)
    yield
    if aside is None:
        syscalls.close(program, watch.descriptor)
    else:
        cloexec = watch.descriptor in table.cloexec
        syscalls.duplicate_to(program, aside, watch.descriptor, cloexec=cloexec)
        syscalls.close(program, aside)


def tell_told(epoll: int, watches: Iterable[tuple[Watch, int]]) -> list[Watch]:
    """Mark what the program has been told; descriptors of ours of the epoll and what it watches.

    Nobody can ask an epoll what is left to be told of one file, but whether there is anything.
    """
    marked = [
        msgspec.structs.replace(one, told=True)
        if one.events & _EPOLLET and not one.is_disarmed and _is_ready(fd, one.events & ~_PRIVATE)
        else one
        for one, fd in watches
    ]
    # Asked last: what becomes ready meanwhile is news.
    if any(one.told for one in marked) and _is_ready(epoll, _EPOLLIN):
        return [msgspec.structs.replace(one, told=False) for one in marked]
    return marked


def _is_ready(descriptor: int, events: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, events)
    return bool(poll.poll(0))


def parse_watches(lines: list[str]) -> list[tuple[int, int, int, int]]:
    """Parse the tfd lines of fdinfo into (descriptor, events, data, inode)."""
    found = []
    for line in lines:
        if line.startswith("tfd:"):
            words = line.replace(":", " ").split()
            found.append((int(words[1]), int(words[3], 16), int(words[5], 16), int(words[9], 16)))
    return found
