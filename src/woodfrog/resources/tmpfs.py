"""The contents of the container's own tmpfs mounts.

Nothing of the container runs while they are read or written, and no step leaves the mount:
everything is reached from a descriptor of its root, without following symbolic links.
"""

import os
import stat
from collections.abc import Callable, Iterator

from woodfrog.errors import ImageError, UnsupportedResource, while_
from woodfrog.image.record import Part, Record
from woodfrog.kernel import syscalls
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.process_memory import FileContents
from woodfrog.remote.address import PAGE, page_up
from woodfrog.resources.memory import Extent

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_RESOLVE_BENEATH, _RESOLVE_NO_XDEV = 0x08, 0x01
_STAY = _RESOLVE_BENEATH | _RESOLVE_NO_XDEV | syscalls.RESOLVE_NO_SYMLINKS
_COPY = 1 << 20

# Writes pages and returns where the first one stands in the store.
WritePages = Callable[[list[tuple[FileContents, int, int]]], int]


class Entry(Part, frozen=True):
    """One file below the mount; `link` is the path of an earlier entry that is the same file."""

    path: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    device: int = 0
    size: int = 0
    target: bytes = b""
    link: bytes = b""
    xattrs: dict[str, bytes] = {}
    extents: list[Extent] = []
    store: int = 0


class Tmpfs(Record, frozen=True, tag="tmpfs"):
    """All files of one tmpfs, directories before what is in them."""

    destination: str
    entries: list[Entry]


def open_mount(init: int, destination: str) -> int:
    """Open the root of a mount, by its path in the container."""
    root = os.open(f"/proc/{init}/root", _DIRECTORY & ~os.O_NOFOLLOW)
    try:
        path = os.fsencode(destination.lstrip("/") or ".")
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        resolve = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
        return syscalls.openat2(HERE, path, flags, directory=root, resolve=resolve)
    finally:
        os.close(root)


def collect(init: int, destination: str, write_pages: WritePages) -> Tmpfs | None:
    """Read a tmpfs; None if nothing is mounted there."""
    with while_(f"reading the tmpfs at {destination}"):
        try:
            root = open_mount(init, destination)
        except FileNotFoundError:
            return None
        try:
            entries: list[Entry] = []
            device = os.fstat(root).st_dev
            links: dict[int, bytes] = {}
            entries.append(_entry(root, b".", os.fstat(root), write_pages, links))
            entries += _walk(root, b"", device, write_pages, links)
            return Tmpfs(destination=destination, entries=entries)
        finally:
            os.close(root)


def _walk(
    directory: int, prefix: bytes, device: int, write_pages: WritePages, links: dict[int, bytes]
) -> Iterator[Entry]:
    for name in sorted(os.listdir(directory)):
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        # Another device is mounted over this one; a socket is made again by its owner.
        if found.st_dev != device or stat.S_ISSOCK(found.st_mode):
            continue
        path = prefix + os.fsencode(name)
        if stat.S_ISDIR(found.st_mode):
            inner = os.open(name, _DIRECTORY, dir_fd=directory)
            try:
                yield _entry(inner, path, found, write_pages, links)
                yield from _walk(inner, path + b"/", device, write_pages, links)
            finally:
                os.close(inner)
        elif stat.S_ISREG(found.st_mode):
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            try:
                yield _entry(file, path, found, write_pages, links)
            finally:
                os.close(file)
        else:
            target = b""
            if stat.S_ISLNK(found.st_mode):
                target = os.fsencode(os.readlink(name, dir_fd=directory))
            yield _entry(-1, path, found, write_pages, links, target)


def _entry(
    fd: int,
    path: bytes,
    found: os.stat_result,
    write_pages: WritePages,
    links: dict[int, bytes],
    target: bytes = b"",
) -> Entry:
    extents: list[Extent] = []
    store = 0
    link = b""
    is_file = stat.S_ISREG(found.st_mode)
    if is_file and found.st_nlink > 1:
        link = links.get(found.st_ino, b"")
        links.setdefault(found.st_ino, path)
    if is_file and not link:
        extents = _data(fd, found.st_size)
        contents = FileContents(fd)
        store = write_pages([(contents, extent.start, extent.length) for extent in extents])
    return Entry(
        path=path,
        mode=found.st_mode,
        uid=found.st_uid,
        gid=found.st_gid,
        mtime_ns=found.st_mtime_ns,
        device=found.st_rdev,
        size=found.st_size if is_file else 0,
        target=target,
        link=link,
        xattrs={name: os.getxattr(fd, name) for name in os.listxattr(fd)} if fd >= 0 else {},
        extents=extents,
        store=store,
    )


def _data(fd: int, size: int) -> list[Extent]:
    found = []
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError:
            break  # ENXIO: only a hole is left
        position = os.lseek(fd, start, os.SEEK_HOLE)
        start &= -PAGE
        found.append(Extent(start=start, length=page_up(position) - start))
    return found


_CAP_SYS_ADMIN, _CAP_SETFCAP = 21, 31


def refuse_wider(tmpfs: Tmpfs, bounding: int) -> None:
    """Refuse attributes that a process of the new container could not set itself."""
    for entry in tmpfs.entries:
        for name in entry.xattrs:
            space = name.partition(".")[0]
            needed = {"security": _CAP_SETFCAP, "trusted": _CAP_SYS_ADMIN}.get(space)
            if needed is not None and not bounding >> needed & 1:
                raise UnsupportedResource(
                    f"{os.fsdecode(entry.path)} in the tmpfs at {tmpfs.destination} has the"
                    f" attribute {name}, which the new container may not set"
                )


def check(tmpfs: Tmpfs, page_bytes: int) -> None:
    """Check a tmpfs from an image before anything is made of it."""
    for entry in tmpfs.entries:
        parts = entry.path.split(b"/")
        if b".." in parts or b"" in parts or b"\0" in entry.path:
            raise ImageError(f"a file of the tmpfs at {tmpfs.destination} has an impossible path")
        length = 0
        for extent in entry.extents:
            if extent.start % PAGE or extent.length % PAGE or not 0 < extent.length <= page_bytes:
                raise ImageError("a file of a tmpfs has pages that are not whole")
            if not 0 <= extent.start <= page_up(entry.size) - extent.length:
                raise ImageError("a file of a tmpfs has pages past its end")
            length += extent.length
        if entry.store < 0 or entry.store % PAGE or entry.store + length > page_bytes:
            raise ImageError("the pages of a tmpfs lie outside the page store")


def restore(init: int, tmpfs: Tmpfs, pages: int, base: int, *, may_make_devices: bool) -> None:
    """Put all files into the new container's tmpfs; `pages` is the page store, 0 being at `base`.

    What is not in the image, but in a new tmpfs as `create` makes it, stays.
    """
    with while_(f"filling the tmpfs at {tmpfs.destination}"):
        root = open_mount(init, tmpfs.destination)
        try:
            for entry in tmpfs.entries:
                _restore_entry(root, entry, pages, base, may_make_devices=may_make_devices)
            for entry in reversed(tmpfs.entries):
                if not entry.link:
                    _set_time(root, entry)
        finally:
            os.close(root)


def _parent(root: int, path: bytes) -> tuple[int, bytes]:
    head, _, name = path.rpartition(b"/")
    return syscalls.openat2(HERE, head or b".", _DIRECTORY, directory=root, resolve=_STAY), name


def _restore_entry(
    root: int, entry: Entry, pages: int, base: int, *, may_make_devices: bool
) -> None:
    directory, name = _parent(root, entry.path)
    try:
        kind = stat.S_IFMT(entry.mode)
        if entry.path != b".":
            try:
                if entry.link:
                    source, source_name = _parent(root, entry.link)
                    try:
                        os.link(
                            source_name,
                            name,
                            src_dir_fd=source,
                            dst_dir_fd=directory,
                            follow_symlinks=False,
                        )
                    finally:
                        os.close(source)
                    return
                if kind == stat.S_IFDIR:
                    os.mkdir(name, 0o700, dir_fd=directory)
                elif kind == stat.S_IFLNK:
                    os.symlink(entry.target, name, dir_fd=directory)
                elif kind == stat.S_IFREG:
                    _write_file(directory, name, entry, pages, base)
                elif kind == stat.S_IFIFO or may_make_devices:
                    os.mknod(name, entry.mode, entry.device, dir_fd=directory)
                elif not _exists(directory, name):
                    raise UnsupportedResource(
                        f"{os.fsdecode(entry.path)} is a device, which the new container may"
                        " not make (CAP_MKNOD)"
                    )
            except FileExistsError:
                # Devices and links that the new container already has stay as they are.
                if kind not in (stat.S_IFDIR, stat.S_IFREG):
                    return
        os.chown(name, entry.uid, entry.gid, dir_fd=directory, follow_symlinks=False)
        if kind != stat.S_IFLNK:
            os.chmod(name, stat.S_IMODE(entry.mode), dir_fd=directory)
            _set_xattrs(directory, name, entry)
    finally:
        os.close(directory)


def _exists(directory: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _write_file(directory: int, name: bytes, entry: Entry, pages: int, base: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    file = syscalls.openat2(HERE, name, flags, directory=directory, mode=0o600, resolve=_STAY)
    try:
        os.ftruncate(file, entry.size)
        offset = base + entry.store
        for extent in entry.extents:
            end = min(extent.start + extent.length, entry.size)
            position = extent.start
            while position < end:
                data = os.pread(pages, min(_COPY, end - position), offset + position - extent.start)
                position += os.pwrite(file, data, position)
            offset += extent.length
    finally:
        os.close(file)


def _set_xattrs(directory: int, name: bytes, entry: Entry) -> None:
    if not entry.xattrs:
        return
    file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        for key, value in entry.xattrs.items():
            os.setxattr(file, key, value)
    finally:
        os.close(file)


def _set_time(root: int, entry: Entry) -> None:
    directory, name = _parent(root, entry.path)
    try:
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        pass
    finally:
        os.close(directory)
