"""Mounts: mount(2), pivot_root(2), and opening a path inside another root."""

from __future__ import annotations

import os
import stat
import struct

from woodfrog.kernel.abi.x86_64 import SYS

TYPE_CHECKING = False  # the typing module would cost every command 7 ms
if TYPE_CHECKING:
    from collections.abc import Sequence

    from woodfrog.kernel.caller import Caller

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_SYNCHRONOUS = 0x10
MS_REMOUNT = 0x20
MS_MANDLOCK = 0x40
MS_DIRSYNC = 0x80
MS_NOSYMFOLLOW = 0x100
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_SILENT = 0x8000
MS_POSIXACL = 0x10000
MS_UNBINDABLE = 0x20000
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000
MS_SHARED = 0x100000
MS_RELATIME = 0x200000
MS_I_VERSION = 0x800000
MS_STRICTATIME = 0x1000000
MS_LAZYTIME = 0x2000000

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

OPEN_TREE_CLONE = 1
FSOPEN_CLOEXEC = 1
FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, FSCONFIG_SET_FD, FSCONFIG_CMD_CREATE = 0, 1, 5, 6
FSMOUNT_CLOEXEC = 1
MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOVE_MOUNT_T_EMPTY_PATH = 0x40
MOVE_MOUNT_SET_GROUP = 0x100

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR__ATIME = 0x70
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_IDMAP = 0x100000
MOUNT_ATTR_NOSYMFOLLOW = 0x200000

PROC_SUPER_MAGIC = 0x9FA0

_TRIES = 200


def _text(path: str | bytes | None) -> bytes | int:
    return 0 if path is None else os.fsencode(path) + b"\0"


def mount(
    on: Caller,
    source: str | bytes | None,
    target: str | bytes,
    fstype: str | None,
    flags: int,
    data: str | None = None,
) -> None:
    """Mount, remount, bind or change propagation, as `flags` say."""
    on.call(
        SYS.MOUNT, _text(source), _text(target) or b"\0", _text(fstype), flags, _text(data or None)
    )


def umount(on: Caller, target: str | bytes, flags: int = 0) -> None:
    """Take a mount away; MNT_DETACH takes it out of sight at once and away when unused."""
    on.call(SYS.UMOUNT2, _text(target), flags)


def pivot_root(on: Caller, new_root: str, put_old: str) -> None:
    """Make `new_root` the root of this mount namespace and put the old one under `put_old`."""
    on.call(SYS.PIVOT_ROOT, _text(new_root), _text(put_old))


def open_in_root(
    on: Caller, root: int, path: str | bytes, flags: int, *, resolve: int = 0, mode: int = 0
) -> int:
    """Open a path as if `root` were "/": neither "..", nor symbolic links lead outside."""
    how = struct.pack(
        "3Q",
        flags | os.O_CLOEXEC,
        mode,
        RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | resolve,
    )
    return look_up(on, root, _text(path), how)


def open_regular_in_root(on: Caller, root: int, path: str | bytes) -> int:
    """Open a regular file likewise, to be read; returns -1 if it is of another kind.

    Who may change it can make it what never opens (a FIFO), what acts when opened, or is endless (a
    device), at any moment.
    """
    for flags in (os.O_PATH, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY):
        file = open_in_root(on, root, path, flags)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            return -1
        if flags == os.O_PATH:
            os.close(file)
    return file


def look_up(on: Caller, directory: int, path: bytes | int, how: bytes) -> int:
    """Run openat2(2) with a struct open_how that says where a path must stay."""
    for _ in range(_TRIES):
        try:
            return on.call(SYS.OPENAT2, directory, path, how, len(how))
        except BlockingIOError:
            # Somebody, anywhere, mounted or renamed while ".." was looked at: it may have escaped.
            continue
    return on.call(SYS.OPENAT2, directory, path, how, len(how))


def mount_setattr(
    on: Caller,
    descriptor: int,
    *,
    set_: int = 0,
    clear: int = 0,
    propagation: int = 0,
    recursive: bool = False,
    ids: int = 0,
) -> None:
    """Change the attributes of the mount that a descriptor names, and perhaps of all below it.

    With MOUNT_ATTR_IDMAP, `ids` is a descriptor of the user namespace whose id maps it gets.
    """
    attributes = struct.pack("4Q", set_, clear, propagation, ids)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    on.call(SYS.MOUNT_SETATTR, descriptor, b"\0", flags, attributes, len(attributes))


def clone_tree(on: Caller, path: str, *, recursive: bool) -> int:
    """Return a copy of the mount at `path`, which is attached nowhere yet."""
    flags = OPEN_TREE_CLONE | os.O_CLOEXEC | (AT_RECURSIVE if recursive else 0)
    return on.call(SYS.OPEN_TREE, AT_FDCWD, _text(path), flags)


def clone_mount(on: Caller, place: int) -> int:
    """Return a copy of the mount that a descriptor is in, whose root is what the descriptor names.

    It is attached nowhere yet, and nothing is mounted in it.
    """
    flags = OPEN_TREE_CLONE | os.O_CLOEXEC | AT_EMPTY_PATH
    return on.call(SYS.OPEN_TREE, place, b"\0", flags)


def attach(on: Caller, tree: int, at: int) -> None:
    """Attach what `clone_tree` gave at the place that a descriptor names."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    on.call(SYS.MOVE_MOUNT, tree, b"\0", at, b"\0", flags)


def join_group(on: Caller, member: int, mount: int) -> None:
    """Let a private mount spread its changes as another one of the same file system does."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH | MOVE_MOUNT_SET_GROUP
    on.call(SYS.MOVE_MOUNT, member, b"\0", mount, b"\0", flags)


def new_procfs(on: Caller) -> int:
    """Return the root of a procfs of our pid namespace that is mounted nowhere."""
    return new_mount(on, "proc", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC)


def new_mount(
    on: Caller,
    fstype: str,
    attributes: int,
    *,
    settings: Sequence[tuple[bytes, bytes]] = (),
    descriptors: Sequence[tuple[bytes, int]] = (),
    switches: Sequence[bytes] = (),
) -> int:
    """Return the root of a new file system that is mounted nowhere.

    `settings` are its own options and `source`, what a mount table shows in its place;
    `descriptors` are options that take one, `switches` those that take nothing.
    """
    context = on.call(SYS.FSOPEN, _text(fstype), FSOPEN_CLOEXEC)
    try:
        for key, value in settings:
            text = key + b"\0", value + b"\0"
            on.call(SYS.FSCONFIG, context, FSCONFIG_SET_STRING, *text, 0)
        for switch in switches:
            on.call(SYS.FSCONFIG, context, FSCONFIG_SET_FLAG, switch + b"\0", 0, 0)
        for key, descriptor in descriptors:
            on.call(SYS.FSCONFIG, context, FSCONFIG_SET_FD, key + b"\0", 0, descriptor)
        on.call(SYS.FSCONFIG, context, FSCONFIG_CMD_CREATE, 0, 0, 0)
        return on.call(SYS.FSMOUNT, context, FSMOUNT_CLOEXEC, attributes)
    finally:
        on.call(SYS.CLOSE, context)


def file_system_type(on: Caller, descriptor: int) -> int:
    """Return the magic number of the file system that a descriptor is in."""
    buffer = bytearray(120)
    on.call(SYS.FSTATFS, descriptor, buffer)
    return int.from_bytes(buffer[:8], "little")
