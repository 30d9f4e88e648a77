"""The queue of a fanotify group that has run over (FAN_Q_OVERFLOW).

Events that nobody had read can't be made again; fanotify(7) has programs expect that some are lost.
"""

import os
import struct

from woodfrog.errors import UnsupportedResource
from woodfrog.kernel import fanotify, mounts
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.mounts import AT_FDCWD

_MOST_EVENTS = "/proc/sys/fs/fanotify/max_queued_events"
_EVENT = struct.Struct("<IBBHQii")  # struct fanotify_event_metadata
_READ_AT_ONCE, _SOME_EVENTS = 1 << 14, 256


def make(group: int) -> None:
    """Fill the queue of a new group of ours until it runs over, and empty it but for that news.

    Many directories of a file system that nobody sees are opened: each is an event of its own.
    """
    with open(_MOST_EVENTS, encoding="ascii") as file:
        most = int(file.read())
    root = mounts.new_mount(HERE, "tmpfs", 0)
    try:
        path = b"/proc/self/fd/%d\0" % root
        mask = fanotify.FAN_OPEN | fanotify.FAN_ONDIR | fanotify.FAN_EVENT_ON_CHILD
        fanotify.fanotify_mark(HERE, group, fanotify.FAN_MARK_ADD, mask, AT_FDCWD, path)
        for number in range(most + 1):
            name = f"{number:08}"  # events of equal length
            os.mkdir(name, dir_fd=root)
            os.close(os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root))
        fanotify.fanotify_mark(HERE, group, fanotify.FAN_MARK_REMOVE, mask, AT_FDCWD, path)
        _empty(group, most)
    finally:
        os.close(root)


def _empty(group: int, left: int) -> None:
    """Read so many events."""
    length = 0
    while left:
        data = os.read(group, min(left * length, _READ_AT_ONCE) if length else _SOME_EVENTS)
        at = 0
        while at < len(data):
            length, _, _, _, mask, fd, _ = _EVENT.unpack_from(data, at)
            if fd >= 0:
                os.close(fd)
            if mask & fanotify.FAN_Q_OVERFLOW:
                raise UnsupportedResource("a fanotify queue runs over too early")
            at += length
            left -= 1
