"""fanotify(7): hearing of what happens to files, mounts and file systems, and allowing it."""

from __future__ import annotations

from woodfrog.kernel.abi.x86_64 import SYS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from woodfrog.kernel.caller import Caller

FAN_CLOEXEC, FAN_NONBLOCK = 1, 2
# FAN_REPORT_FID, …_DIR_FID, …_NAME, …_TARGET_FID: the identity of a file, not a descriptor.
FAN_REPORT_IDENTITY = 0x200 | 0x400 | 0x800 | 0x1000
# FAN_OPEN_PERM, FAN_ACCESS_PERM, FAN_OPEN_EXEC_PERM, FAN_PRE_ACCESS
FAN_PERMISSIONS = 0x10000 | 0x20000 | 0x40000 | 0x100000

FAN_OPEN, FAN_Q_OVERFLOW = 0x20, 0x4000
FAN_EVENT_ON_CHILD, FAN_ONDIR = 0x8000000, 0x40000000
FAN_UNLIMITED_QUEUE = 0x10

FAN_MARK_ADD, FAN_MARK_REMOVE = 0x1, 0x2
FAN_MARK_INODE, FAN_MARK_MOUNT, FAN_MARK_FILESYSTEM = 0, 0x10, 0x100
FAN_MARK_IGNORED_MASK, FAN_MARK_IGNORED_SURV_MODIFY = 0x20, 0x40
FAN_MARK_EVICTABLE, FAN_MARK_IGNORE = 0x200, 0x400


def fanotify_init(on: Caller, flags: int, event_flags: int) -> int:
    """Return a new group, whose events come with descriptors that are opened by `event_flags`."""
    return on.call(SYS.FANOTIFY_INIT, flags, event_flags)


def fanotify_mark(
    on: Caller, group: int, flags: int, mask: int, directory: int, path: bytes
) -> int:
    """Change what a group hears of a file, mount or file system."""
    return on.call(SYS.FANOTIFY_MARK, group, flags, mask, directory, path)
