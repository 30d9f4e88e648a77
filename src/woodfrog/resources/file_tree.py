"""Files below a directory, read into entries.

Nothing of the container runs meanwhile. Everything is reached from a descriptor of the directory,
and no step follows a symbolic link or crosses into another mount.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence

from woodfrog.errors import UnsupportedResource
from woodfrog.image.layout import MOST_RECORD_BYTES
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import PAGE
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.huge_pages import page_size
from woodfrog.kernel.mounts import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV
from woodfrog.kernel.process_memory import FileContents, SharableFile
from woodfrog.remote.address import page_up
from woodfrog.resources import shared_memory
from woodfrog.resources.file_entry import (
    KEPT_ATTRIBUTES,
    PATH_MAX,
    ROOT,
    Attribute,
    Entry,
    Moment,
)
from woodfrog.resources.memory import Extent

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_STAY = RESOLVE_BENEATH | RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS

# Smaller files lie in a few blocks, whose sharing would cost more than their copying.
_LEAST_SHARED = 1 << 20

# Writes pages and returns where the first one stands in the store.
WritePages = Callable[[Sequence[tuple[FileContents, int, int]]], int]


class CoveredError(Exception):
    """A path leads to what is mounted there, and not to a file of the tree."""


class Tree:
    """The files below a directory, by paths without a leading slash; `ROOT` is itself."""

    def __init__(self, root: int) -> None:
        self.root = root

    def open(self, path: bytes, flags: int, mode: int = 0) -> int:
        """Open a path, which leads nowhere but below the root."""
        flags |= os.O_CLOEXEC | os.O_NOFOLLOW
        return syscalls.openat2(HERE, path, flags, directory=self.root, mode=mode, resolve=_STAY)

    def open_regular(self, path: bytes, flags: int = os.O_RDONLY | os.O_NOATIME) -> int:
        """Open a regular file, if it still is one; raises FileNotFoundError if not.

        Nothing else is opened: a FIFO could keep us for ever, and devices that the container itself
        may not open could act. Even of a held container, an io_uring's requests can change files.
        """
        place = self.open(path, os.O_PATH)
        try:
            if not stat.S_ISREG(os.fstat(place).st_mode):
                raise FileNotFoundError(f"{os.fsdecode(path)} was replaced while it was read")
            return os.open(f"/proc/self/fd/{place}", flags | os.O_CLOEXEC)
        finally:
            os.close(place)

    def parent(self, path: bytes) -> tuple[int, bytes]:
        """Open the directory of a path; returns it and the name in it."""
        head, _, name = path.rpartition(b"/")
        return self.open(head or ROOT, _DIRECTORY), name

    def look(self, path: bytes) -> os.stat_result | None:
        """Return the status of a path, or None if nothing is there.

        Raises CoveredError where something is mounted.
        """
        if len(path) >= PATH_MAX:
            raise UnsupportedResource(
                f"{os.fsdecode(path[:100])}… has a path of {len(path)} bytes, which cannot be saved"
            )
        try:
            file = self.open(path, os.O_PATH)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.EXDEV:
                raise CoveredError from None
            raise
        try:
            return os.fstat(file)
        finally:
            os.close(file)

    def names(self, path: bytes) -> list[bytes]:
        """Return the names in a directory."""
        directory = self.open(path, _DIRECTORY)
        try:
            return sorted(map(os.fsencode, os.listdir(directory)))
        finally:
            os.close(directory)

    def walk(self, path: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
        """Yield all below a directory but what is mounted there, directories first."""
        # Not by recursion: directories can be deeper than Python's stack.
        waiting = [path]
        while waiting:
            directory = waiting.pop()
            for name in self.names(directory):
                inner = join(directory, name)
                try:
                    found = self.look(inner)
                except CoveredError:
                    continue
                if found is not None:
                    yield inner, found
                    if stat.S_ISDIR(found.st_mode):
                        waiting.append(inner)

    def target(self, path: bytes) -> bytes:
        """Return what a symbolic link holds."""
        directory, name = self.parent(path)
        try:
            return os.readlink(name, dir_fd=directory)
        finally:
            os.close(directory)

    def attributes(self, path: bytes) -> list[Attribute]:
        """Return the extended attributes that are kept, of any kind of file."""
        directory, name = self.parent(path)
        try:
            return attributes(place_of(directory, name), follow=False)
        finally:
            os.close(directory)


def attributes(path: bytes, *, follow: bool) -> list[Attribute]:
    """Return the extended attributes that are kept, of any kind of file."""
    try:
        names = os.listxattr(path, follow_symlinks=follow)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return []
    return [
        Attribute(name=name, value=os.getxattr(path, name, follow_symlinks=follow))
        for name in map(os.fsencode, names)
        if name.startswith(KEPT_ATTRIBUTES)
    ]


def place_of(directory: int, name: bytes) -> bytes:
    """Return a path by which calls that take no directory find a name in one."""
    return os.fsencode(f"/proc/self/fd/{directory}/") + name


def join(directory: bytes, name: bytes) -> bytes:
    """Return the path of a name in a directory."""
    return name if directory == ROOT else directory + b"/" + name


class Collector:
    """Turns files of a tree into entries, each file's contents stored once.

    `open_blocks` opens a file where its blocks are, if they can be shared, or returns -1. What is
    `leased` is read by these descriptors, by inode: to open it would break its lease.
    """

    def __init__(
        self,
        tree: Tree,
        write_pages: WritePages,
        open_blocks: Callable[[bytes], int] = lambda path: -1,
        leased: Mapping[tuple[int, int], int] | None = None,
    ) -> None:
        self._leased = leased or {}
        self._tree = tree
        self._write_pages = write_pages
        self._open_blocks = open_blocks
        self._known: dict[tuple[int, int], bytes] = {}
        self._room = MOST_RECORD_BYTES

    def entry(self, path: bytes, found: os.stat_result, *, opaque: bool = False) -> Entry:
        """Return the entry of one file."""
        extents: list[Extent] = []
        store = 0
        link = b""
        kept = self._tree.attributes(path)
        # Noticed before our own memory is full of what a container has made for that.
        self._room -= len(path) + sum(len(one.name) + len(one.value) for one in kept)
        if self._room < 0:
            raise UnsupportedResource(
                "the files' names and extended attributes are more than an image can hold"
            )
        is_file = stat.S_ISREG(found.st_mode)
        if not stat.S_ISDIR(found.st_mode) and found.st_nlink > 1:
            first = self._known.setdefault((found.st_dev, found.st_ino), path)
            link = first if first != path else b""
        if is_file and not link and found.st_size:
            lessee = self._leased.get((found.st_dev, found.st_ino))
            if lessee is None:
                extents, store = self._contents(path, found.st_size)
            else:
                extents = shared_memory.written_pages(lessee, found.st_size)
                store = self._write(FileContents(lessee), extents)
        return Entry(
            path=path,
            mode=found.st_mode,
            uid=found.st_uid,
            gid=found.st_gid,
            atime=Moment.of(found.st_atime_ns),
            mtime=Moment.of(found.st_mtime_ns),
            device=found.st_rdev,
            size=found.st_size if is_file else 0,
            target=self._tree.target(path) if stat.S_ISLNK(found.st_mode) else b"",
            link=link,
            opaque=opaque,
            attributes=kept,
            extents=extents,
            store=store,
        )

    def _contents(self, path: bytes, size: int) -> tuple[list[Extent], int]:
        file = self._tree.open_regular(path)
        blocks = -1
        try:
            if page_size(file):
                _, extents = shared_memory.extents(file)
            else:
                extents = [
                    Extent(start=first, length=end - first)
                    for first, end in data_ranges(file, size)
                ]
            contents = FileContents(file)
            if size >= _LEAST_SHARED and (blocks := self._open_blocks(path)) >= 0:
                contents = SharableFile(file, blocks)
            return extents, self._write(contents, extents)
        finally:
            os.close(file)
            if blocks >= 0:
                os.close(blocks)

    def _write(self, contents: FileContents, extents: list[Extent]) -> int:
        return self._write_pages([(contents, one.start, one.length) for one in extents])


def data_ranges(file: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of whole pages that aren't holes."""
    position = 0
    while position < size:
        try:
            start = os.lseek(file, position, os.SEEK_DATA)
        except OSError:
            return  # ENXIO: only a hole is left
        end = page_up(os.lseek(file, start, os.SEEK_HOLE))
        # File systems of small blocks may have data and a hole in one page.
        yield max(start & -PAGE, page_up(position)), end
        position = end
