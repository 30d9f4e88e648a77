"""userfaultfd(2): somebody else brings the pages that a process touches."""

from __future__ import annotations

import ctypes
import os
import struct

from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from woodfrog.kernel.caller import Caller

PAGEFAULT, FORK, REMAP, REMOVE, UNMAP = 0x12, 0x13, 0x14, 0x15, 0x16

_API = 0xAA
_FEATURE_EVENT_FORK, _FEATURE_EVENT_REMAP = 1 << 1, 1 << 2
_FEATURE_EVENT_REMOVE, _FEATURE_EVENT_UNMAP = 1 << 3, 1 << 6
_EVENTS = _FEATURE_EVENT_FORK | _FEATURE_EVENT_REMAP | _FEATURE_EVENT_REMOVE | _FEATURE_EVENT_UNMAP
_FEATURE_WP_UNPOPULATED, _FEATURE_WP_ASYNC = 1 << 13, 1 << 15
_REGISTER_MODE_MISSING, _REGISTER_MODE_WP = 1, 2
DEVICE = "/dev/userfaultfd"
_IOCTL_NEW = 0xAA00
_USER_MODE_ONLY = 1
LINK = "anon_inode:[userfaultfd]"
_MARK = os.O_APPEND

_IOCTL_API, _IOCTL_REGISTER, _IOCTL_WAKE = 0xC018AA3F, 0xC020AA00, 0x8010AA02
_IOCTL_COPY, _IOCTL_ZEROPAGE = 0xC028AA03, 0xC020AA04

# struct uffdio_api, uffdio_register, uffdio_range, uffdio_copy, uffdio_zeropage
_API_CALL = struct.Struct("<3Q")
_REGISTER = struct.Struct("<4Q")
_RANGE = struct.Struct("<2Q")
_COPY = struct.Struct("<4Qq")
_ZEROPAGE = struct.Struct("<3Qq")
# struct uffd_msg: the event, and three words that depend on it.
_MESSAGE = struct.Struct("<B7x3Q")
_MESSAGES_AT_ONCE = 64


def create(on: Caller, *, kernel_too: bool) -> int:
    """Return a descriptor for the memory of the process where this runs, not waiting when read.

    If it is for faults in the kernel, too, that needs CAP_SYS_PTRACE.
    """
    only = 0 if kernel_too else _USER_MODE_ONLY
    return on.call(SYS.USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK | only)


def mark(on: Caller, descriptor: int) -> int:
    """Mark a new one as ours, by a flag that means nothing to it; see `is_marked`."""
    return syscalls.set_status_flags(on, descriptor, os.O_NONBLOCK | _MARK)


def is_marked(info: Mapping[str, str]) -> bool:
    """Tell by its fdinfo whether one is marked, and nothing has begun with it."""
    _, features, _ = info["API"].split(":")
    return bool(int(info["flags"], 8) & _MARK) and features == "0"


def create_by_device(on: Caller, device: int) -> int:
    """Return the same, for faults in the kernel, too, from an open DEVICE (Linux 6.1)."""
    return on.call(SYS.IOCTL, device, _IOCTL_NEW, os.O_CLOEXEC | os.O_NONBLOCK)


def begin(on: Caller, descriptor: int, *, events: bool) -> None:
    """Comes before everything else; asking for all events needs CAP_SYS_PTRACE."""
    features = _EVENTS if events else 0
    on.call(SYS.IOCTL, descriptor, _IOCTL_API, bytearray(_API_CALL.pack(_API, features, 0)))


def begin_to_note(on: Caller, descriptor: int) -> None:
    """Ask for asynchronous write protection; since Linux 6.7, else EINVAL."""
    features = _FEATURE_WP_ASYNC | _FEATURE_WP_UNPOPULATED
    on.call(SYS.IOCTL, descriptor, _IOCTL_API, bytearray(_API_CALL.pack(_API, features, 0)))


def note(on: Caller, descriptor: int, start: int, length: int) -> None:
    """Have the kernel note there, page by page, what is written to; `Pagemap.protect` begins it.

    Nobody waits for anything, and a mapping that is already noted stays as it is. EBUSY if a
    program has registered it for itself.
    """
    call = bytearray(_REGISTER.pack(start, length, _REGISTER_MODE_WP, 0))
    on.call(SYS.IOCTL, descriptor, _IOCTL_REGISTER, call)


def register(on: Caller, descriptor: int, start: int, length: int) -> None:
    """Have whoever touches a missing page there wait until it is brought."""
    call = bytearray(_REGISTER.pack(start, length, _REGISTER_MODE_MISSING, 0))
    on.call(SYS.IOCTL, descriptor, _IOCTL_REGISTER, call)


def copy(
    on: Caller,
    descriptor: int,
    start: int,
    source: bytearray | memoryview,
    offset: int,
    length: int,
) -> int:
    """Bring pages, and wake who waits for them; returns how many bytes, or a negative errno.

    It ends before a page that is there, before an event that nobody has read, and does nothing
    unless all pages belong to one mapping.
    """
    address = ctypes.addressof(ctypes.c_char.from_buffer(source)) + offset
    call = bytearray(_COPY.pack(start, address, length, 0, 0))
    return _result(on, descriptor, _IOCTL_COPY, call, length)


def bring_zeros(on: Caller, descriptor: int, start: int, length: int) -> int:
    """Bring empty pages, like `copy`."""
    call = bytearray(_ZEROPAGE.pack(start, length, 0, 0))
    return _result(on, descriptor, _IOCTL_ZEROPAGE, call, length)


def wake(on: Caller, descriptor: int, start: int, length: int) -> None:
    """Have those who wait for these pages look again."""
    on.call(SYS.IOCTL, descriptor, _IOCTL_WAKE, bytearray(_RANGE.pack(start, length)))


def _result(on: Caller, descriptor: int, request: int, call: bytearray, length: int) -> int:
    """Return what such a call has done, which its last word tells if it has done a part."""
    try:
        on.call(SYS.IOCTL, descriptor, request, call)
    except OSError as error:
        done = int.from_bytes(call[-8:], "little", signed=True)
        return done or -(error.errno or 0)
    return length


def messages(descriptor: int) -> Iterator[tuple[int, int, int, int]]:
    """Go through what there is to be heard, as (event, and up to three words).

    PAGEFAULT: flags, address. FORK: descriptor of the child's memory. REMAP: from, to, length.
    REMOVE and UNMAP: start, end.
    """
    try:
        data = os.read(descriptor, _MESSAGES_AT_ONCE * _MESSAGE.size)
    except BlockingIOError:
        return
    yield from _MESSAGE.iter_unpack(data)
