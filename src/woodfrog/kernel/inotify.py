"""inotify(7): hearing of what happens in a directory."""

from __future__ import annotations

import os
import struct

from woodfrog.kernel.abi.x86_64 import SYS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from woodfrog.kernel.caller import Caller

IN_MOVED_TO, IN_CREATE, IN_DELETE, IN_DELETE_SELF = 0x80, 0x100, 0x200, 0x400
_EVENT = struct.Struct("iIII")


def watch(on: Caller, path: str, events: int) -> int:
    """Return a descriptor that tells of events in a directory."""
    descriptor = on.call(SYS.INOTIFY_INIT1, os.O_CLOEXEC)
    try:
        on.call(SYS.INOTIFY_ADD_WATCH, descriptor, os.fsencode(path) + b"\0", events)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def names(descriptor: int) -> list[str]:
    """Wait for events, and return the names of the files that they are about."""
    data = os.read(descriptor, 65536)
    found = []
    at = 0
    while at < len(data):
        length = _EVENT.unpack_from(data, at)[3]
        at += _EVENT.size
        found.append(os.fsdecode(data[at : at + length].rstrip(b"\0")))
        at += length
    return found
