"""A layer as a tar archive, by the conventions of OCI images.

What was removed is an empty file `.wh.NAME`, an opaque directory has one named `.wh..wh..opq` in
it. Everything that tar has no field for stands in PAX headers: times to the nanosecond, names of
any bytes, attributes, and where the data of sparse files lie (GNU's format 1.0).
"""

import os
import stat
import tarfile
from collections.abc import Callable
from typing import BinaryIO

from woodfrog.errors import UnsupportedResource
from woodfrog.resources.file_entry import ROOT
from woodfrog.resources.file_tree import Tree, data_ranges, join
from woodfrog.resources.layer import changes
from woodfrog.resources.overlay import Overlay

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_NS = 1_000_000_000
_BLOCK = tarfile.BLOCKSIZE
_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}


def write(overlay: Overlay, rootfs: str, output: BinaryIO, check: Callable[[], None]) -> None:
    """Write what has changed in an overlay that is mounted at `rootfs`; sockets are left out.

    `check` is called again and again, and may raise.
    """
    archive = tarfile.open(
        fileobj=_Counted(output),  # type: ignore[call-overload]
        mode="w",
        format=tarfile.PAX_FORMAT,
        encoding="utf-8",
        errors="surrogateescape",
    )
    files: dict[tuple[int, int], bytes] = {}
    for path, status, opaque in changes(overlay, rootfs):
        check()
        if status is None:
            head, _, name = path.rpartition(b"/")
            archive.addfile(_named(join(head or ROOT, _WHITEOUT + name)))
        elif path != ROOT and not stat.S_ISSOCK(status.st_mode):
            _add(archive, overlay.tree, path, status, files)
            if opaque:
                archive.addfile(_named(join(path, _OPAQUE)))
    archive.close()


def _named(path: bytes) -> tarfile.TarInfo:
    return tarfile.TarInfo(os.fsdecode(path))


def _add(
    archive: tarfile.TarFile,
    tree: Tree,
    path: bytes,
    status: os.stat_result,
    files: dict[tuple[int, int], bytes],
) -> None:
    if path.rpartition(b"/")[2].startswith(_WHITEOUT):
        raise UnsupportedResource(
            f"/{os.fsdecode(path)} has a name that means a removed file in an archive",
            hint="rename it",
        )
    member = _named(path)
    kind = stat.S_IFMT(status.st_mode)
    member.type = _TYPES[kind]
    member.mode = stat.S_IMODE(status.st_mode)
    member.uid, member.gid = status.st_uid, status.st_gid
    seconds, rest = divmod(status.st_mtime_ns, _NS)
    member.mtime = seconds
    headers = {"mtime": f"{seconds}.{rest:09}"} if rest else {}
    for attribute in tree.attributes(path):
        try:
            name = attribute.name.decode()
        except UnicodeDecodeError:
            name = "="
        if "=" in name:
            raise UnsupportedResource(
                f"/{os.fsdecode(path)} has an attribute {os.fsdecode(attribute.name)!r}, whose name"
                " an archive can't hold",
                hint="remove it",
            )
        headers[f"SCHILY.xattr.{name}"] = os.fsdecode(attribute.value)
    member.pax_headers = headers
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        member.devmajor, member.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
    if kind == stat.S_IFLNK:
        member.linkname = os.fsdecode(tree.target(path))
    if kind != stat.S_IFREG:
        archive.addfile(member)
        return
    first = files.setdefault((status.st_dev, status.st_ino), path)
    if first != path:
        member.type = tarfile.LNKTYPE
        member.linkname = os.fsdecode(first)
        archive.addfile(member)
        return
    _add_contents(archive, tree, path, member, status.st_size)


def _add_contents(
    archive: tarfile.TarFile, tree: Tree, path: bytes, member: tarfile.TarInfo, size: int
) -> None:
    file = tree.open_regular(path)
    try:
        ranges = [(start, min(end, size)) for start, end in data_ranges(file, size)]
        stored = sum(end - start for start, end in ranges)
        table = b""
        if size - stored >= _BLOCK:
            table = _make_sparse(member, size, ranges)
        else:
            ranges = [(0, size)]
            stored = size
        member.size = len(table) + stored
        archive.addfile(member, _Contents(file, table, ranges))  # type: ignore[arg-type]
    finally:
        os.close(file)


def _make_sparse(member: tarfile.TarInfo, size: int, ranges: list[tuple[int, int]]) -> bytes:
    """Turn a member into a sparse one; returns the table that goes before its data."""
    head, _, name = member.name.rpartition("/")
    member.pax_headers = {
        **member.pax_headers,
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": member.name,
        "GNU.sparse.realsize": str(size),
    }
    # What it is called for programs that don't know the format.
    member.name = "/".join(filter(None, [head, "GNUSparseFile.0", name]))
    if not ranges or ranges[-1][1] < size:
        ranges = [*ranges, (size, size)]
    numbers = [len(ranges)]
    for start, end in ranges:
        numbers += [start, end - start]
    table = b"".join(b"%d\n" % number for number in numbers)
    return table + bytes(-len(table) % _BLOCK)


class _Counted:
    """A file or pipe that tarfile may write to: it asks where it is."""

    def __init__(self, output: BinaryIO) -> None:
        self._output = output
        self._position = 0

    def write(self, data: bytes) -> int:
        """Write all of the data."""
        self._position += len(data)
        return self._output.write(data)

    def tell(self) -> int:
        """Return how much has been written."""
        return self._position


class _Contents:
    """What tarfile reads of a member: a table, then ranges of a file."""

    def __init__(self, file: int, table: bytes, ranges: list[tuple[int, int]]) -> None:
        self._file = file
        self._table = table
        self._ranges = ranges

    def read(self, count: int) -> bytes:
        """Return the next bytes; zeros if the file has become shorter."""
        found = self._table[:count]
        self._table = self._table[count:]
        while len(found) < count and self._ranges:
            start, end = self._ranges[0]
            wanted = min(end - start, count - len(found))
            data = os.pread(self._file, wanted, start) or bytes(wanted)
            found += data
            self._ranges[0] = (start + len(data), end)
            if start + len(data) == end:
                del self._ranges[0]
        return found
