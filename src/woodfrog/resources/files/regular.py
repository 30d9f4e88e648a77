"""Files with a path: regular files, directories, harmless devices, and all by O_PATH."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Self

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.kernel import directory, syscalls
from woodfrog.kernel.procfs import mountinfo
from woodfrog.resources.files import pressure
from woodfrog.resources.files.base import FileRecord, Row, set_flags
from woodfrog.resources.files.making import Making
from woodfrog.resources.files.open_file import CREATION_FLAGS, O_PATH, OpenFile
from woodfrog.resources.files.world import World
from woodfrog.resources.memory_flags import SECRET

# (major, minor): null zero full random urandom tty
DEVICES = frozenset(((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0)))


class RegularFile(FileRecord, frozen=True, tag="regular"):
    """A file that is opened again by its path. `file_kind` is its S_IFMT.

    If it is `covered`, a mount that the container has made hides it: it is found before that. Of a
    directory that is made anew, positions are others: `last_read` is the name before this one.
    A file of pressure may have a `trigger`.
    """

    row: ClassVar[Row] = Row(
        called="files, directories, /dev/null, zero, full, random, urandom and tty",
        kept=(
            "path, position, flags; what a mount hides by now; settings (/proc/sys);"
            " anything with a path by O_PATH",
            "that a file of pressure (PSI) has a trigger",
        ),
        refused=(
            "in a file system that a program mounted, and that another one covers",
            "from outside the container's mounts, or in one that was taken away (umount -l) and is"
            " seen nowhere else",
            "settings of a network or ipc namespace that a program made",
        ),
    )
    may_be_replaced: ClassVar[bool] = True
    path: bytes
    position: int
    file_kind: int
    device: int
    covered: bool = False
    last_read: bytes = b""
    trigger: pressure.Trigger = ""

    @property
    def place(self) -> tuple[bytes, bytes]:
        """Return a directory that leads to it whatever is mounted meanwhile, and its name there."""
        if stat.S_ISDIR(self.file_kind):
            return self.path, b"."
        return os.path.split(self.path)

    @property
    def is_data(self) -> bool:
        """Tell whether what it holds can be read or written through it."""
        return stat.S_ISREG(self.file_kind) and not self.flags & O_PATH

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        if not file.target.startswith(b"/"):
            return False
        kind = stat.S_IFMT(file.stat.st_mode)
        if file.flags & O_PATH:
            return True
        if kind == stat.S_IFCHR:
            rdev = file.stat.st_rdev
            return (os.major(rdev), os.minor(rdev)) in DEVICES
        return kind in (stat.S_IFREG, stat.S_IFDIR)

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        found = file.stat
        covered = _is_covered(file, world)
        kind = stat.S_IFMT(found.st_mode)
        path = file.target
        if kind == stat.S_IFSOCK and (name := world.sockets.name_of_file(found.st_ino)):
            from woodfrog.resources.files import unix_names

            # It gets the path back that it has by now when all others stand.
            path = unix_names.path_at_first(name, path)
        return cls(
            id=number,
            flags=file.flags,
            path=path,
            position=file.position if kind != stat.S_IFCHR else 0,
            file_kind=kind,
            device=found.st_rdev,
            covered=covered,
            last_read=_last_read(file, world) if kind == stat.S_IFDIR else b"",
            trigger=pressure.trigger(file, world.place_of_mount(file.mnt_id).mounts[file.mnt_id]),
        )

    def losses(self) -> dict[str, int]:
        return {pressure.LOSS: bool(self.trigger)}

    def turn(self) -> int:
        # Who is bound to a socket's path makes it.
        return 3 if self.file_kind == stat.S_IFSOCK else 0

    def restore(self, making: Making) -> int:
        program = making.program
        flags = self.flags & ~CREATION_FLAGS
        where, path = -100, self.path  # AT_FDCWD
        if self.covered:
            above, path = self.place
            where = making.uncovered(above)
        if self.flags & O_PATH:
            return syscalls.openat2(program, path, flags, directory=where)
        # Should a FIFO stand there now, the open must not wait for its other end; no terminal
        # becomes ours.
        flags |= os.O_NONBLOCK | os.O_NOCTTY
        fd = syscalls.openat2(program, path, flags, directory=where)
        if self.trigger:
            pressure.set_usual(program, fd, self.trigger, self.position)
        elif self.position:
            program.expect(syscalls.lseek(program, fd, self.position), self.position)
        set_flags(program, fd, self.flags)
        return fd

    def verify(self, descriptor: int) -> None:
        refuse_other_kind(descriptor, self.path, self.file_kind, self.device)
        if self.last_read:
            with _opened(f"/proc/self/fd/{descriptor}") as anew:
                for name, position in directory.entries(anew):
                    if name == self.last_read:
                        os.lseek(descriptor, position, os.SEEK_SET)


@contextmanager
def _opened(link: str) -> Iterator[int]:
    """Open a directory by a magic link, from its beginning."""
    descriptor = os.open(link, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def refuse_other_kind(descriptor: int, path: bytes, kind: int, device: int) -> None:
    """Refuse an open file that is not of a kind (S_IFMT), or of a character device's number."""
    found = os.fstat(descriptor)
    if stat.S_IFMT(found.st_mode) != kind or (kind == stat.S_IFCHR and found.st_rdev != device):
        raise ImageError(f"{os.fsdecode(path)} is not the kind of file that it was")


def _last_read(file: OpenFile, world: World) -> bytes:
    """Return the last name that was read from a directory whose file system will be another."""
    if not file.position or file.flags & O_PATH or not world.is_copied(file.mnt_id):
        return b""
    with _opened(file.link) as anew:
        found = (name for name, position in directory.entries(anew) if position == file.position)
        return next(found, b"")


def _is_setting(file: OpenFile, world: World) -> bool:
    """Tell whether a file is below /proc/sys: we see those of our own namespaces there."""
    mount = world.mounts.get(file.mnt_id)
    if mount is None or mount.type != "proc":
        return False
    covers = (one.point for number, one in world.mounts.items() if number != file.mnt_id)
    return mountinfo.inside(mount, file.target).startswith(b"/sys/") and not any(
        os.path.commonpath([mount.point, point]) == mount.point
        and os.path.commonpath([point, file.target]) == point
        for point in covers
    )


def _is_covered(file: OpenFile, world: World) -> bool:
    """Tell whether a mount hides a file; refuse one that can't be found again by its path."""
    name = os.fsdecode(file.target)
    place = world.place_of_mount(file.mnt_id)
    if place is None:
        if file.target == SECRET:
            raise UnsupportedResource(
                "is secret memory (memfd_secret), which nobody else can read",
                hint="close it, and take memory that can be saved",
            )
        raise UnsupportedResource(
            f"{name} was opened outside the container's mounts, or in one that was taken away",
            hint="only descriptors 0 to 2 may come from outside; they become the new container's",
        )
    if place.names.stands_at(file.target, file.stat) or _is_setting(file, world):
        return False
    if file.mnt_id in world.given_mounts and world.is_covered_by_own(file.target):
        return True
    raise UnsupportedResource(
        f"{name} has moved while it is open, or something that was not there before the container"
        " began is mounted over it, which cannot be saved yet"
    )
