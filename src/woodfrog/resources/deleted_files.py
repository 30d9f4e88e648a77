"""Files and directories that were removed while somebody had them open, mapped, or stood in them.

Each is made once more under its old name, opened, and removed again, so that it is as nameless as
it was. One that still has another name (a hard link) gets the old one back for that moment.
"""

import os
import stat
import struct
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec

from woodfrog.errors import ImageError
from woodfrog.image.record import Record
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE, Caller
from woodfrog.kernel.huge_pages import page_size
from woodfrog.kernel.mounts import (
    AT_EMPTY_PATH,
    FSCONFIG_CMD_CREATE,
    PROC_SUPER_MAGIC,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    file_system_type,
)
from woodfrog.remote.program import Program
from woodfrog.resources import file_entry, shared_memory
from woodfrog.resources.file_entry import Attribute, Moment
from woodfrog.resources.file_tree import attributes
from woodfrog.resources.memory import Extent, PageRange

DELETED = b" (deleted)"
# Those who have one of these get it back: (major, minor) of null zero full random urandom.
_DEVICES = frozenset(((1, 3), (1, 5), (1, 7), (1, 8), (1, 9)))
_KINDS = frozenset(
    (stat.S_IFREG, stat.S_IFDIR, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFLNK, stat.S_IFSOCK)
)
_FLAGS = {
    stat.S_IFREG: os.O_RDONLY | os.O_NONBLOCK,
    stat.S_IFDIR: os.O_RDONLY | os.O_DIRECTORY,
    stat.S_IFIFO: os.O_RDWR | os.O_NONBLOCK,
}
_O_TMPFILE = 0o20200000
AT_REMOVEDIR = 0x200
_UTIME_OMIT = (1 << 30) - 2
PARENT = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
RESOLVE_NO_LINKS = RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS
# Marks what stands in a file system of ours, since the container has no place to put it.
PLACELESS = b"trusted.woodfrog.placeless"


class DeletedFile(Record, frozen=True, tag="deleted-file"):
    """A file without a name; its pages (by offset) stand in the page store from `store` on.

    `path` is the name that it had, `link` another name that it still has, or empty; `unnamed`:
    O_TMPFILE made it, and it may get a name. Its id is one with those of shared memory.
    """

    id: int
    path: bytes
    link: bytes
    unnamed: bool
    mode: int
    uid: int
    gid: int
    mtime: Moment
    device: int
    target: bytes
    attributes: list[Attribute]
    size: int
    extents: list[Extent]
    store: int
    huge_page: int = 0  # the size of its pages, if it is in a hugetlbfs
    atime: Moment | None = None
    mounts: int = 0  # the id of the nested mount namespace that the path is of

    @property
    def kind(self) -> int:
        return stat.S_IFMT(self.mode)

    @property
    def pages(self) -> list[PageRange]:
        """Return all pages, in order, and where each stands in the page store."""
        return shared_memory.placed(self.extents, self.store)


class Found:
    """A deleted file of a held container: our descriptor for it, and what is in it."""

    def __init__(
        self,
        number: int,
        fd: int,
        path: bytes,
        link: bytes,
        *,
        unnamed: bool,
        mounts: int,
        is_leased: bool = False,
    ) -> None:
        """Take over `fd`; if the file `is_leased`, that is the lessee's, which must not seek."""
        self.fd = fd
        self._mounts = mounts
        # Before it is read.
        self._read_at = Moment.of(os.fstat(fd).st_atime_ns)
        self._link = link
        self._path = path
        self.number = number
        self._unnamed = unnamed
        self.size, self.extents, self._huge_page = 0, list[Extent](), 0
        if stat.S_ISREG(os.fstat(fd).st_mode) and not link:
            self._huge_page = page_size(fd)
            if is_leased:
                self.size = os.fstat(fd).st_size
                self.extents = shared_memory.written_pages(fd, self.size)
            else:
                self.size, self.extents = shared_memory.extents(fd)

    def record(self, store: int) -> DeletedFile:
        """Return the record, once the store's offset of the first page is known."""
        found = os.fstat(self.fd)
        is_link = stat.S_ISLNK(found.st_mode)
        return DeletedFile(
            id=self.number,
            path=self._path,
            link=self._link,
            unnamed=self._unnamed,
            mode=found.st_mode,
            uid=found.st_uid,
            gid=found.st_gid,
            mtime=Moment.of(found.st_mtime_ns),
            device=found.st_rdev,
            target=os.fsencode(os.readlink("", dir_fd=self.fd)) if is_link else b"",
            attributes=[] if is_link or self._link else _attributes(self.fd),
            size=self.size,
            extents=self.extents,
            store=store,
            huge_page=self._huge_page,
            atime=self._read_at,
            mounts=self._mounts,
        )


def open_found(path: str) -> int:
    """Open what a magic link of /proc leads to, so that its contents can be read."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        try:
            flags = os.O_RDONLY | os.O_NOATIME | os.O_CLOEXEC
            return os.open(f"/proc/self/fd/{fd}", flags)
        finally:
            os.close(fd)
    return fd


def is_placeless(path: str) -> bool:
    """Tell whether a file stands in a file system of ours."""
    try:
        return bool(os.getxattr(path, PLACELESS))
    except OSError:
        return False


def _attributes(fd: int) -> list[Attribute]:
    found = attributes(b"/proc/self/fd/%d" % fd, follow=True)
    return [one for one in found if one.name != PLACELESS]


def check(one: DeletedFile, page_bytes: int) -> None:
    """Check a record from an image before anything is made of it."""
    for path in (one.path, one.link or b"/-"):
        parts = path.split(b"/")
        if parts[0] or not all(parts[1:]) or {b".", b".."} & {*parts} or b"\0" in path:
            raise ImageError("a deleted file has an impossible path")
    if not 0 <= one.mode <= 0o177777 or not 0 <= one.device < 1 << 32:
        raise ImageError("a deleted file is of no kind of file")
    device = (os.major(one.device), os.minor(one.device))
    if one.kind not in _KINDS or (one.kind == stat.S_IFCHR and device not in _DEVICES):
        raise ImageError("a deleted file is of a kind that is never saved")
    file_entry.check_attributes(one.attributes, "a deleted file")
    for moment in (one.mtime, one.atime):
        if moment is not None:
            file_entry.check_moment(moment, "a deleted file")
    shared_memory.check_huge_page(one.huge_page, one.size, one.extents)
    shared_memory.check_extents(one.extents, one.size, one.store, page_bytes)


class _Place(msgspec.Struct, frozen=True):
    """Where a file can be made: below a directory that exists, perhaps in others that don't."""

    parent: bytes  # empty: in a file system of ours
    missing: list[bytes]
    name: bytes


def _look_for_place(init: int, one: DeletedFile) -> _Place:
    root = os.open(f"/proc/{init}/root", PARENT)
    parts = one.path[1:].split(b"/")
    name = parts.pop()
    try:
        for depth in range(len(parts), -1, -1):
            parent = b"/" + b"/".join(parts[:depth])
            resolve = RESOLVE_NO_LINKS | RESOLVE_IN_ROOT
            try:
                fd = syscalls.openat2(HERE, parent, PARENT, directory=root, resolve=resolve)
            except (FileNotFoundError, NotADirectoryError):
                continue
            try:
                if _is_closed(fd):
                    break
                first, *below = [*parts[depth:], name]
                *missing, last = [_free_name(fd, first), *below]
                return _Place(parent, missing, last)
            finally:
                os.close(fd)
        return _Place(b"", parts, name)
    finally:
        os.close(root)


def _is_closed(directory: int) -> bool:
    """Tell whether nothing can be made in a directory, whoever wants to."""
    read_only = os.fstatvfs(directory).f_flag & os.ST_RDONLY
    return bool(read_only) or file_system_type(HERE, directory) == PROC_SUPER_MAGIC


def _free_name(directory: int, name: bytes) -> bytes:
    """Return a name like this that nothing has."""
    names = (name, *(b"%s.%d" % (name, number) for number in range(1, 1000)))
    return next((one for one in names if not _exists(directory, one)), name)


def _exists(directory: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


class Maker(Protocol):
    """What runs the calls: `run` runs what `program` has collected, and sets a new one."""

    program: Program

    def run(self) -> None: ...


class Made(NamedTuple):
    """Descriptors of a new file: `fd` for both ways, if it is a regular one without a link.

    `opened` are those that were opened by its name, before that was removed. One that O_TMPFILE
    made is open as was asked for.
    """

    fd: int
    opened: list[int]


def make(
    making: Maker, one: DeletedFile, init: int, ways: Sequence[int], access: int = os.O_RDWR
) -> Made:
    """Make the file, without contents, in the root stub of `init`.

    `ways` are flags by which to open a regular one, too, if that can be; `access` is how one that
    O_TMPFILE made is open.
    """
    place = _look_for_place(init, one)
    if one.link:
        return Made(_link(making, one, place), [])
    program = making.program
    above, directory = _open_place(program, place)
    if one.kind == stat.S_IFREG:
        # The name "." and not O_NOFOLLOW, which the file would keep.
        how, name = (_O_TMPFILE, b".") if one.unnamed else (os.O_CREAT | os.O_EXCL, place.name)
        flags = how | (access if one.unnamed else os.O_RDWR) | os.O_CLOEXEC
        fd = syscalls.openat2(program, name, flags, directory=directory, mode=0o600)
    else:
        make_special(program, one, directory, place.name)
        fd = open_made(program, directory, place.name, one.kind)
    give_to_owner(program, one, fd, directory, place.name)
    if not place.parent and one.kind in (stat.S_IFREG, stat.S_IFDIR):
        program.call(SYS.FSETXATTR, fd, PLACELESS, b"1", 1, 0)
    opened = []
    if not one.unnamed and one.kind == stat.S_IFREG:
        opened = [syscalls.openat2(program, place.name, w, directory=directory) for w in ways]
    if not one.unnamed:
        how = AT_REMOVEDIR if one.kind == stat.S_IFDIR else 0
        program.call(SYS.UNLINKAT, directory, place.name, how)
    _leave_place(program, place, above, directory)
    return Made(fd, opened)


def fill(program: Program, one: DeletedFile, fd: int, pages: int, base: int) -> None:
    """Give a new file its size and its contents from the page store, as for shared memory."""
    syscalls.ftruncate(program, fd, one.size)
    offset = base + one.store
    if one.huge_page:
        shared_memory.fill_huge(program, one.extents, fd, pages, offset)
        return
    shared_memory.fill_extents(program, one.extents, one.size, fd, pages, offset)
    syscalls.lseek(program, fd, 0)


def finish(program: Program, one: DeletedFile, fd: int) -> None:
    """Set what writing the contents has changed, or would have."""
    if one.kind == stat.S_IFREG and one.mode & (stat.S_ISUID | stat.S_ISGID):
        # In a user namespace, each write takes these away, whoever makes it.
        program.call(SYS.FCHMOD, fd, stat.S_IMODE(one.mode))
    for attribute in one.attributes:
        value = attribute.value
        program.call(SYS.FSETXATTR, fd, attribute.name, value, len(value), 0)
    atime = one.atime or Moment(seconds=0, nanoseconds=_UTIME_OMIT)
    times = struct.pack("<2q", atime.seconds, atime.nanoseconds)
    times += struct.pack("<2q", one.mtime.seconds, one.mtime.nanoseconds)
    program.call(SYS.UTIMENSAT, fd, b"", times, AT_EMPTY_PATH)


def _link(making: Maker, one: DeletedFile, place: _Place) -> int:
    """Open a file that has another name under the one that it had, if it can get that back."""
    parent, _, name = one.link.rpartition(b"/")
    above, directory, linked = list[int](), 0, False
    if place.parent:
        program = making.program
        above, directory = _open_place(program, place)
        other = syscalls.openat2(program, parent or b"/", PARENT, resolve=RESOLVE_NO_LINKS)
        result = program.call(SYS.LINKAT, other, name, directory, place.name, 0)
        program.may_fail(result)
        syscalls.close(program, other)
        making.run()
        linked = program[result] == 0
        above, directory = program.results(above), program[directory]
    program = making.program
    if not linked:
        fd = syscalls.openat2(program, one.link, _FLAGS[stat.S_IFREG], resolve=RESOLVE_NO_LINKS)
    else:
        fd = open_made(program, directory, place.name, stat.S_IFREG)
        program.call(SYS.UNLINKAT, directory, place.name, 0)
    if place.parent:
        _leave_place(program, place, above, directory)
    return fd


def _leave_place(program: Program, place: _Place, above: list[int], directory: int) -> None:
    for parent, name in reversed(list(zip(above, place.missing, strict=True))):
        program.call(SYS.UNLINKAT, parent, name, AT_REMOVEDIR)
    for opened in (*above, directory):
        syscalls.close(program, opened)


def _open_place(program: Program, place: _Place) -> tuple[list[int], int]:
    """Return the directories above the one that is for the file, and that one."""
    if place.parent:
        directory = syscalls.openat2(program, place.parent, PARENT, resolve=RESOLVE_NO_LINKS)
    else:
        context = program.call(SYS.FSOPEN, b"tmpfs", 1)
        program.call(SYS.FSCONFIG, context, FSCONFIG_CMD_CREATE, 0, 0, 0)
        directory = program.call(SYS.FSMOUNT, context, 1, 0)
        syscalls.close(program, context)
    above = []
    for name in place.missing:
        program.call(SYS.MKDIRAT, directory, name, 0o700)
        above.append(directory)
        directory = syscalls.openat2(program, name, PARENT, directory=directory)
    return above, directory


def give_to_owner(program: Program, one: DeletedFile, fd: int, directory: int, name: bytes) -> None:
    """Set the owner and mode of a new file, which has a name in a directory, if it has any."""
    program.call(SYS.FCHOWNAT, fd, b"", one.uid, one.gid, AT_EMPTY_PATH)
    if one.unnamed:
        program.call(SYS.FCHMOD, fd, stat.S_IMODE(one.mode))
    elif one.kind != stat.S_IFLNK:
        program.call(SYS.FCHMODAT, directory, name, stat.S_IMODE(one.mode))


def make_special(on: Caller, one: DeletedFile, directory: int, name: bytes) -> None:
    """Make what is no regular file."""
    if one.kind == stat.S_IFDIR:
        on.call(SYS.MKDIRAT, directory, name, 0o700)
    elif one.kind == stat.S_IFLNK:
        on.call(SYS.SYMLINKAT, one.target, directory, name)
    else:
        on.call(SYS.MKNODAT, directory, name, one.mode, one.device)


def open_made(program: Program, directory: int, name: bytes, kind: int) -> int:
    """Open a file that has just been made."""
    flags = _FLAGS.get(kind, os.O_PATH) | os.O_NOFOLLOW | os.O_CLOEXEC
    return syscalls.openat2(program, name, flags, directory=directory)
