"""fanotify(7): files, mounts and file systems that are watched, and perhaps guarded."""

import array
import fcntl
import os
import termios
from collections.abc import Mapping
from typing import ClassVar, Self

from woodfrog.errors import ImageError, UnsupportedResource, while_
from woodfrog.image.record import Part
from woodfrog.kernel import fanotify, syscalls
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.capability import CAP_SYS_ADMIN
from woodfrog.kernel.mounts import AT_FDCWD, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS
from woodfrog.kernel.procfs.fdinfo import read_fdinfo
from woodfrog.resources.files import fanotify_overflow
from woodfrog.resources.files.base import FileRecord, Row, set_flags
from woodfrog.resources.files.making import Making
from woodfrog.resources.files.open_file import OpenFile
from woodfrog.resources.files.world import World

_MINOR_BITS = 20
_KINDS = (fanotify.FAN_MARK_INODE, fanotify.FAN_MARK_MOUNT, fanotify.FAN_MARK_FILESYSTEM)
_MARK_FLAGS = (
    fanotify.FAN_MARK_IGNORED_SURV_MODIFY | fanotify.FAN_MARK_EVICTABLE | fanotify.FAN_MARK_IGNORE
)
_WORD = (1 << 32) - 1
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class FanotifyMark(Part, frozen=True):
    """What is heard of a file, mount or file system: its path, or the id of a deleted file.

    `kind` is FAN_MARK_INODE, …_MOUNT or …_FILESYSTEM, `flags` others of FAN_MARK_….
    """

    kind: int
    flags: int
    mask: int
    ignored: int
    path: bytes
    deleted: int


class Fanotify(FileRecord, frozen=True, tag="fanotify"):
    """A group: flags of fanotify_init(2), flags that its events' files are opened by, and marks.

    Events that nobody had read can't be kept: the queue has then run over.
    """

    row: ClassVar[Row] = Row(
        called="fanotify",
        kept=("marks on files, mounts and file systems, with what is ignored; permission classes",),
        refused=("with events that nobody has read, if they may want an answer",),
    )
    init_flags: int
    event_flags: int
    marks: list[FanotifyMark]
    overflow: bool

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        return file.target == b"anon_inode:[fanotify]"

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        waiting = array.array("i", [0])
        fcntl.ioctl(file.descriptor, termios.FIONREAD, waiting)
        lines = [_fields(line) for line in file.lines if line.startswith("fanotify ")]
        head = next(fields for fields in lines if "event-flags" in fields)
        marks = [_mark(fields, world) for fields in lines if fields is not head]
        init_flags = int(head["flags"], 16) & ~(fanotify.FAN_CLOEXEC | fanotify.FAN_NONBLOCK)
        if waiting[0] and any(one.mask & fanotify.FAN_PERMISSIONS for one in marks):
            raise UnsupportedResource(
                "is a fanotify with events that nobody has read, and that may want an answer",
                hint="try again in a moment",
            )
        if waiting[0] and init_flags & fanotify.FAN_UNLIMITED_QUEUE:
            raise UnsupportedResource(
                "is a fanotify with events that nobody has read, whose queue can't run over"
                " (FAN_UNLIMITED_QUEUE)",
                hint="try again in a moment",
            )
        return cls(
            id=number,
            flags=file.flags,
            init_flags=init_flags,
            event_flags=int(head["event-flags"], 16),
            marks=marks,
            overflow=bool(waiting[0]),
        )

    def losses(self) -> dict[str, int]:
        return {"fanotify queues with unread events are restored as overflown": int(self.overflow)}

    def refuse_wider(self, bounding: int) -> None:
        if any(one.kind not in _KINDS or one.flags & ~_MARK_FLAGS for one in self.marks):
            raise ImageError("the image has an impossible mark of fanotify")
        if any(not 0 <= word <= _WORD for word in (self.init_flags, self.event_flags)):
            raise ImageError("the image has an impossible fanotify")
        # What anybody may have (fanotify_init(2)): the identities of single files' news.
        anybody = bool(self.init_flags) and not self.init_flags & ~fanotify.FAN_REPORT_IDENTITY
        for one in self.marks:
            asks = (one.mask | one.ignored) & fanotify.FAN_PERMISSIONS
            anybody = anybody and one.kind == fanotify.FAN_MARK_INODE and not asks
        if not anybody and not bounding >> CAP_SYS_ADMIN & 1:
            raise UnsupportedResource(
                "the image has a fanotify that needs CAP_SYS_ADMIN in the new container",
                hint="add it to process.capabilities.bounding in the bundle's config.json",
            )

    def restore(self, making: Making) -> int:
        program = making.program
        fd = fanotify.fanotify_init(program, self.init_flags, self.event_flags)
        set_flags(program, fd, self.flags)
        for one in self.marks:
            if not one.deleted:
                # Marked it is by our rights; so it must be one that the container may read.
                seen = syscalls.openat2(program, one.path, _LOOK)
                making.refuse_forbidden(seen, os.O_RDONLY)
                syscalls.close(program, seen)
        return fd

    def needs_deleted(self) -> set[int]:
        return {one.deleted for one in self.marks} - {0}

    def complete(
        self, descriptor: int, root: int, deleted: Mapping[int, int], files: Mapping[int, int]
    ) -> None:
        if self.overflow:
            fanotify_overflow.make(descriptor)
        # The kernel shows the newest first.
        for one in reversed(self.marks):
            with while_(f"marking {os.fsdecode(one.path)}"):
                if one.deleted:
                    _add(descriptor, one, deleted[one.deleted])
                    continue
                resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
                fd = syscalls.openat2(HERE, one.path, _LOOK, directory=root, resolve=resolve)
                try:
                    _add(descriptor, one, fd)
                finally:
                    os.close(fd)


def _fields(line: str) -> dict[str, str]:
    # fanotify flags:10 event-flags:0
    # fanotify mnt_id:12 mflags:40 mask:38 ignored_mask:40000003
    # fanotify sdev:800013 mflags:0 mask:38 ignored_mask:0
    # fanotify ino:4f969 sdev:800013 mflags:0 mask:3b ignored_mask:0 fhandle-bytes:8 fhandle-type:1
    # f_handle:69f90400c275b5b4
    return dict(word.split(":") for word in line.split()[1:])


def _mark(fields: dict[str, str], world: World) -> FanotifyMark:
    deleted = 0
    if "ino" in fields:
        kind = fanotify.FAN_MARK_INODE
        path, deleted = world.find_inode(
            _device(fields),
            int(fields["ino"], 16),
            int(fields.get("fhandle-type", "0"), 16),
            bytes.fromhex(fields.get("f_handle", "")),
        )
    elif "mnt_id" in fields:
        kind = fanotify.FAN_MARK_MOUNT
        path = _mount_point(int(fields["mnt_id"], 16), world)
    elif "sdev" in fields:
        kind = fanotify.FAN_MARK_FILESYSTEM
        path = _place_of(_device(fields), world)
    else:
        raise UnsupportedResource(
            f"is a fanotify with a mark of another kind ({', '.join(fields)})"
        )
    return FanotifyMark(
        kind=kind,
        flags=int(fields["mflags"], 16) & _MARK_FLAGS,
        mask=int(fields["mask"], 16),
        ignored=int(fields["ignored_mask"], 16),
        path=path,
        deleted=deleted,
    )


def _device(fields: dict[str, str]) -> tuple[int, int]:
    device = int(fields["sdev"], 16)
    return device >> _MINOR_BITS, device & (1 << _MINOR_BITS) - 1


def _mount_point(mnt_id: int, world: World) -> bytes:
    """Return where a mount is seen."""
    mount = world.mounts.get(mnt_id)
    if mount is not None and _shown_at(mount.point, world) == mnt_id:
        return mount.point
    raise UnsupportedResource(
        "is a fanotify that watches a mount which is not the container's, or is mounted over"
    )


def _place_of(device: tuple[int, int], world: World) -> bytes:
    """Return where a file system is seen."""
    for mnt_id, mount in world.mounts.items():
        if mount.device == device and _shown_at(mount.point, world) == mnt_id:
            return mount.point
    raise UnsupportedResource(
        "is a fanotify that watches a file system which the container has mounted nowhere"
    )


def _shown_at(point: bytes, world: World) -> int:
    """Return the id of the mount that is seen at a path of the container."""
    root = os.open(world.root, os.O_PATH | os.O_CLOEXEC)
    try:
        fd = syscalls.openat2(HERE, point, _LOOK, directory=root, resolve=RESOLVE_IN_ROOT)
    except OSError:
        return 0
    finally:
        os.close(root)
    try:
        return int(read_fdinfo(os.getpid(), fd)[0]["mnt_id"])
    finally:
        os.close(fd)


def _add(group: int, mark: FanotifyMark, fd: int) -> None:
    path = b"/proc/self/fd/%d\0" % fd
    kept = mark.flags & fanotify.FAN_MARK_EVICTABLE
    flags = fanotify.FAN_MARK_ADD | mark.kind | kept
    if mark.mask:
        fanotify.fanotify_mark(HERE, group, flags, mark.mask, AT_FDCWD, path)
    if mark.ignored:
        how = mark.flags & (fanotify.FAN_MARK_IGNORE | fanotify.FAN_MARK_IGNORED_SURV_MODIFY)
        if not how & fanotify.FAN_MARK_IGNORE:
            how |= fanotify.FAN_MARK_IGNORED_MASK
        fanotify.fanotify_mark(HERE, group, flags | how, mark.ignored, AT_FDCWD, path)
