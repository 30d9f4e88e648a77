"""Files made from the entries of an image, below a directory and nowhere else."""

import errno
import mmap
import os
import stat
from collections.abc import Iterable, Iterator

from woodfrog.errors import ImageError, UnsupportedResource, while_
from woodfrog.image.pages import read_exactly
from woodfrog.kernel.capability import CAP_MKNOD
from woodfrog.kernel.huge_pages import page_size, pool_directory
from woodfrog.resources.file_entry import NS, ROOT, Entry
from woodfrog.resources.file_tree import Tree, join, place_of

_COPY = 1 << 20
_CAPABILITIES_FOR = {b"security": ("CAP_SETFCAP", 31), b"trusted": ("CAP_SYS_ADMIN", 21)}


def refuse_wider(entries: Iterable[Entry], tree: Tree | None, bounding: int, what: str) -> None:
    """Refuse what a process of the new container could not make itself, unless it is there.

    Without a tree nothing is there yet.
    """
    for entry in entries:
        where = f"{os.fsdecode(entry.path)} in {what}"
        # Anyone may make 0:0, by which an overlay notes what was removed.
        if _is_device(entry.mode) and entry.device and not bounding >> CAP_MKNOD & 1:
            found = tree.look(entry.path) if tree else None
            if found is None or not _is_device(found.st_mode) or found.st_rdev != entry.device:
                raise UnsupportedResource(
                    f"{where} is a device, which the new container may not make (CAP_MKNOD)"
                )
        forbidden = [
            (attribute, needed[0])
            for attribute in entry.attributes
            if (needed := _CAPABILITIES_FOR.get(attribute.name.partition(b".")[0]))
            and not bounding >> needed[1] & 1
        ]
        if not forbidden:
            continue
        there = tree.attributes(entry.path) if tree and tree.look(entry.path) else []
        for attribute, needed_name in forbidden:
            if attribute not in there:
                raise UnsupportedResource(
                    f"{where} has the attribute {os.fsdecode(attribute.name)}, which the new"
                    f" container may not set ({needed_name})"
                )


def _is_device(mode: int) -> bool:
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


class Maker:
    """Makes entries below a root; `pages` is the page store, whose offset 0 is at `base`.

    A file of another kind that is in the way is replaced. `kept` are paths that are not removed:
    where the new container has mounted something. With `keep_links` a file that is there is written
    even if it has other names. One that `empties` empties all those before it writes to any: others
    may need their room.
    """

    def __init__(
        self,
        tree: Tree,
        pages: int,
        base: int,
        *,
        kept: frozenset[bytes] = frozenset(),
        keep_links: bool = False,
        empties: bool = False,
    ) -> None:
        self._tree = tree
        self._pages = pages
        self._base = base
        self._kept = {one for path in kept for one in _with_parents(path)}
        self._keep_links = keep_links
        self._empties = empties
        # Further names of files that are to be made.
        self._names: dict[bytes, list[bytes]] = {}

    def make(self, entries: list[Entry]) -> None:
        """Make everything."""
        inside: dict[bytes, set[bytes]] = {entry.path: set() for entry in entries if entry.opaque}
        for entry in entries:
            head, _, name = entry.path.rpartition(b"/")
            if (head or ROOT) in inside:
                inside[head or ROOT].add(name)
        for entry in entries:
            if entry.link:
                self._names.setdefault(entry.link, []).append(entry.path)
        for entry in entries if self._empties else ():
            if stat.S_ISREG(entry.mode) and not entry.link:
                with while_(f"emptying {os.fsdecode(entry.path)}"):
                    self._empty(entry)
        for entry in entries:
            with while_(f"making {os.fsdecode(entry.path)}"):
                self._make(entry)
                for name in self._tree.names(entry.path) if entry.opaque else ():
                    if name not in inside[entry.path]:
                        self.remove(join(entry.path, name))
        # What is made in a directory changes its time: from the inside out.
        for entry in reversed(entries):
            if not entry.link:
                self._set_times(entry)

    def _empty(self, entry: Entry) -> None:
        found = self._tree.look(entry.path)
        if found is not None and found.st_size and self._is_usable(entry, found):
            os.close(self._tree.open_regular(entry.path, os.O_RDWR | os.O_TRUNC))

    def remove(self, path: bytes) -> None:
        """Remove a file, or a directory with all that is in it, if it is there."""
        found = self._tree.look(path)
        if found is None:
            return
        doomed = [(path, found)]
        if stat.S_ISDIR(found.st_mode):
            doomed += self._tree.walk(path)
        for one, status in reversed(doomed):
            if one in self._kept:
                continue
            directory, name = self._tree.parent(one)
            try:
                if stat.S_ISDIR(status.st_mode):
                    os.rmdir(name, dir_fd=directory)
                else:
                    os.unlink(name, dir_fd=directory)
            finally:
                os.close(directory)

    def _make(self, entry: Entry) -> None:
        kind = stat.S_IFMT(entry.mode)
        if entry.path != ROOT and not self._make_node(entry, kind):
            return
        directory, name = self._tree.parent(entry.path)
        try:
            os.chown(name, entry.uid, entry.gid, dir_fd=directory, follow_symlinks=False)
            if kind != stat.S_IFLNK:
                self._set_mode(entry)
            self._set_attributes(directory, name, entry)
        finally:
            os.close(directory)

    def _make_node(self, entry: Entry, kind: int) -> bool:
        """Make the file itself; tells whether its owner, mode and so on are to be set."""
        found = self._tree.look(entry.path)
        if found is not None and self._is_usable(entry, found):
            if kind == stat.S_IFREG and not entry.link:
                self._write(entry)
            return not entry.link
        if found is not None:
            self._remove_other(entry.path)
        directory, name = self._tree.parent(entry.path)
        try:
            if entry.link:
                self._link(entry, directory, name)
                return False
            match kind:
                case stat.S_IFDIR:
                    os.mkdir(name, 0o700, dir_fd=directory)
                case stat.S_IFLNK:
                    os.symlink(entry.target, name, dir_fd=directory)
                case stat.S_IFREG:
                    self._write(entry)
                case _:
                    os.mknod(name, kind | 0o600, entry.device, dir_fd=directory)
        finally:
            os.close(directory)
        return True

    def _is_usable(self, entry: Entry, found: os.stat_result) -> bool:
        """Tell whether what is there can become the entry's file."""
        if stat.S_IFMT(entry.mode) != stat.S_IFMT(found.st_mode):
            return False
        if entry.link:
            other = self._tree.look(entry.link)
            return other is not None and os.path.samestat(other, found)
        match stat.S_IFMT(entry.mode):
            case stat.S_IFREG:
                names = [entry.path, *self._names.get(entry.path, ())]
                same = [name for name in names if self._is_at(name, found)]
                # Else what is written would be seen under other names, too.
                is_alone = found.st_nlink == len(same)
                return is_alone or self._keep_links or entry.path in self._kept
            case stat.S_IFLNK:
                return self._tree.target(entry.path) == entry.target
            case stat.S_IFCHR | stat.S_IFBLK:
                return entry.device == found.st_rdev
        return True

    def _is_at(self, path: bytes, file: os.stat_result) -> bool:
        found = self._tree.look(path)
        return found is not None and os.path.samestat(found, file)

    def _remove_other(self, path: bytes) -> None:
        self.remove(path)
        if self._tree.look(path) is not None:
            raise UnsupportedResource(
                f"the new container has mounted something at or below /{os.fsdecode(path)}, where"
                " the image has another kind of file"
            )

    def _link(self, entry: Entry, directory: int, name: bytes) -> None:
        source, source_name = self._tree.parent(entry.link)
        try:
            os.link(
                source_name, name, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False
            )
        finally:
            os.close(source)

    def _write(self, entry: Entry) -> None:
        try:
            file = self._tree.open(entry.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            file = self._tree.open_regular(entry.path, os.O_RDWR | os.O_TRUNC)
        try:
            os.ftruncate(file, entry.size)
            if page_size(file):
                self._write_huge(entry, file)
                return
            self._fill(entry, file)
        finally:
            os.close(file)

    def _fill(self, entry: Entry, file: int) -> None:
        """Write a file's contents."""
        offset = self._base + entry.store
        for extent in entry.extents:
            end = min(extent.start + extent.length, entry.size)
            position = extent.start
            while position < end:
                data = os.pread(
                    self._pages, min(_COPY, end - position), offset + position - extent.start
                )
                if not data:
                    raise ImageError("the image became shorter while it was read")
                position += os.pwrite(file, data, position)
            offset += extent.length

    def _write_huge(self, entry: Entry, file: int) -> None:
        """Fill a file of hugetlbfs, which can't be written, only mapped."""
        offset = self._base + entry.store
        for extent in entry.extents:
            try:
                mapped = mmap.mmap(file, extent.length, offset=extent.start)
            except OSError as error:
                if error.errno != errno.ENOMEM:
                    raise
                raise UnsupportedResource(
                    f"too few huge pages are free for {os.fsdecode(entry.path)}",
                    hint=f"set more aside in {pool_directory(page_size(file))}/nr_hugepages",
                ) from error
            with mapped as pages, memoryview(pages) as view:
                for position in range(0, extent.length, _COPY):
                    with view[position : position + _COPY] as piece:
                        read_exactly(self._pages, piece, offset + position)
            offset += extent.length

    def _set_attributes(self, directory: int, name: bytes, entry: Entry) -> None:
        """Set what the entry has, and nothing else: a default ACL above may have given more."""
        wanted = set(entry.attributes)
        there = set(self._tree.attributes(entry.path))
        place = place_of(directory, name)
        for attribute in there - wanted:
            if attribute.name not in {one.name for one in wanted}:
                os.removexattr(place, attribute.name, follow_symlinks=False)
        for attribute in entry.attributes:
            if attribute not in there:
                os.setxattr(place, attribute.name, attribute.value, follow_symlinks=False)

    def _set_mode(self, entry: Entry) -> None:
        # By a name, a link that somebody puts there meanwhile would be followed: from our root.
        place = self._tree.open(entry.path, os.O_PATH)
        try:
            os.chmod(f"/proc/self/fd/{place}", stat.S_IMODE(entry.mode))
        finally:
            os.close(place)

    def _set_times(self, entry: Entry) -> None:
        directory, name = self._tree.parent(entry.path)
        times = tuple(one.seconds * NS + one.nanoseconds for one in (entry.atime, entry.mtime))
        try:
            os.utime(name, ns=times, dir_fd=directory, follow_symlinks=False)  # type: ignore[arg-type]
        finally:
            os.close(directory)


def _with_parents(path: bytes) -> Iterator[bytes]:
    """Yield a path and all directories above it, below the root."""
    while path:
        yield path
        path = path.rpartition(b"/")[0]
