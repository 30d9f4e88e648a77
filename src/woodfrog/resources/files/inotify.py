"""inotify(7): files and directories that are watched."""

import array
import fcntl
import os
import termios
from collections.abc import Mapping
from typing import ClassVar, Self

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.image.record import Part
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.inotify import IN_DELETE_SELF
from woodfrog.kernel.mounts import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS
from woodfrog.resources.files.base import FileRecord, Row, set_flags
from woodfrog.resources.files.making import Making
from woodfrog.resources.files.open_file import OpenFile
from woodfrog.resources.files.world import World

_SETNEXTWD = 0x40044900  # INOTIFY_IOC_SETNEXTWD
_EVENT_BYTES = 16  # struct inotify_event without a name
_MOST_EVENTS = "/proc/sys/fs/inotify/max_queued_events"
_MINOR_BITS = 20
# What says how to add a watch, and is no part of one: IN_MASK_ADD, IN_MASK_CREATE, IN_DONT_FOLLOW.
_OTHER_WAYS = 0x20000000 | 0x10000000 | 0x02000000


class InotifyWatch(Part, frozen=True):
    """One watch: its number, what for, and the path, or the id of a deleted or a nameless file."""

    number: int
    mask: int
    path: bytes
    deleted: int
    file: int = 0


class Inotify(FileRecord, frozen=True, tag="inotify"):
    """The watches. Events that nobody had read can't be kept: the queue has then run over.

    inotify(7) has programs expect that at any time, and look anew by themselves.
    """

    row: ClassVar[Row] = Row(
        called="inotify",
        kept=("watches, by their numbers, also of memfds, pipes and sockets",),
    )
    watches: list[InotifyWatch]
    overflow: bool

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        return file.target == b"anon_inode:inotify"

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        waiting = array.array("i", [0])
        fcntl.ioctl(file.descriptor, termios.FIONREAD, waiting)
        watches = [_watch(line, world) for line in file.lines if line.startswith("inotify ")]
        return cls(
            id=number,
            flags=file.flags,
            watches=sorted(watches, key=lambda watch: watch.number),
            overflow=bool(waiting[0]),
        )

    def losses(self) -> dict[str, int]:
        return {"inotify queues with unread events are restored as overflown": int(self.overflow)}

    def refuse_wider(self, bounding: int) -> None:
        if any(
            not 0 < one.number < 1 << 31 or not 0 <= one.mask < 1 << 32 or one.mask & _OTHER_WAYS
            for one in self.watches
        ):
            raise ImageError("the image has an impossible watch of inotify")

    def restore(self, making: Making) -> int:
        fd = making.program.call(SYS.INOTIFY_INIT1, 0)
        set_flags(making.program, fd, self.flags)
        return fd

    def needs_deleted(self) -> set[int]:
        return {watch.deleted for watch in self.watches} - {0}

    def needs_files(self) -> set[int]:
        return {watch.file for watch in self.watches} - {0}

    def complete(
        self, descriptor: int, root: int, deleted: Mapping[int, int], files: Mapping[int, int]
    ) -> None:
        if self.overflow:
            _overflow(descriptor)
        for watch in self.watches:
            if watch.file or watch.deleted:
                fd = files[watch.file] if watch.file else deleted[watch.deleted]
                _add(descriptor, fd, watch.number, watch.mask)
                continue
            fd = _open(root, watch.path)
            try:
                _add(descriptor, fd, watch.number, watch.mask)
            finally:
                os.close(fd)


def _watch(line: str, world: World) -> InotifyWatch:
    # inotify wd:1 ino:3f7e8 sdev:fe00000 mask:fff ignored_mask:0 fhandle-bytes:8 fhandle-type:1
    # f_handle:e8f7030000000000
    fields = dict(word.split(":") for word in line.split()[1:])
    number, mask, inode = (int(fields[name], 16) for name in ("wd", "mask", "ino"))
    device = int(fields["sdev"], 16)
    place = device >> _MINOR_BITS, device & (1 << _MINOR_BITS) - 1
    if file := world.nameless(place, inode):
        return InotifyWatch(number=number, mask=mask, path=b"", deleted=0, file=file)
    kind = int(fields.get("fhandle-type", "0"), 16)
    handle = bytes.fromhex(fields.get("f_handle", ""))
    path, deleted = world.find_inode(place, inode, kind, handle)
    return InotifyWatch(number=number, mask=mask, path=path, deleted=deleted)


def _open(root: int, path: bytes) -> int:
    resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return syscalls.openat2(HERE, path, flags, directory=root, resolve=resolve)
    except OSError as error:
        raise UnsupportedResource(
            f"cannot watch {os.fsdecode(path)} in the new container: {error.strerror}",
            hint="a container needs the files that it watched (inotify), where they were",
        ) from error


def _add(descriptor: int, fd: int, number: int, mask: int) -> None:
    """Watch what a descriptor of ours names, under a number."""
    fcntl.ioctl(descriptor, _SETNEXTWD, number)
    HERE.call(SYS.INOTIFY_ADD_WATCH, descriptor, b"/proc/self/fd/%d\0" % fd, mask)


def _overflow(descriptor: int) -> None:
    """Fill the queue of a new inotify until it runs over, and empty it but for the news of that."""
    with open(_MOST_EVENTS, encoding="ascii") as file:
        most = int(file.read())
    fd = os.open("/", os.O_PATH | os.O_CLOEXEC)
    try:
        for _ in range(most + 1):
            # A watch that is removed says so.
            _add(descriptor, fd, 1, IN_DELETE_SELF)
            HERE.call(SYS.INOTIFY_RM_WATCH, descriptor, 1)
    finally:
        os.close(fd)
    left = most * _EVENT_BYTES
    while left:
        left -= len(os.read(descriptor, min(left, 1 << 20)))
