"""Files as entries of an image: their fields, and what must be true of those from an image."""

import os
import stat
from collections.abc import Iterable
from typing import Self

from woodfrog.errors import ImageError
from woodfrog.image.record import Part
from woodfrog.kernel.abi.x86_64 import PAGE
from woodfrog.remote.address import page_up
from woodfrog.resources.memory import Extent

ROOT = b"."
NS = 1_000_000_000
PATH_MAX = 4096
# Others belong to the machine: labels of its security modules, its measurements.
KEPT_ATTRIBUTES = (b"user.", b"trusted.", b"system.posix_acl_", b"security.capability")

_NAME_MAX = 255
_NOBODY = 0xFFFFFFFF  # by which chown(2) leaves an owner as it is
_KINDS = frozenset(
    (
        stat.S_IFREG,
        stat.S_IFDIR,
        stat.S_IFLNK,
        stat.S_IFCHR,
        stat.S_IFBLK,
        stat.S_IFIFO,
        stat.S_IFSOCK,
    )
)


class Attribute(Part, frozen=True, array_like=True):
    """An extended attribute."""

    name: bytes
    value: bytes


class Moment(Part, frozen=True, array_like=True):
    """A time stamp."""

    seconds: int
    nanoseconds: int

    @classmethod
    def of(cls, nanoseconds: int) -> Self:
        """Return the moment so long after 1970; there are some that 64 bits can't count."""
        seconds, rest = divmod(nanoseconds, NS)
        return cls(seconds=seconds, nanoseconds=rest)


class Entry(Part, frozen=True):
    """One file; `link` is the path of an earlier entry that is the same file.

    An `opaque` directory has nothing in it but what the image has.
    """

    path: bytes
    mode: int
    uid: int
    gid: int
    atime: Moment
    mtime: Moment
    device: int = 0
    size: int = 0
    target: bytes = b""
    link: bytes = b""
    opaque: bool = False
    attributes: list[Attribute] = []
    extents: list[Extent] = []
    store: int = 0


def check(entries: Iterable[Entry], what: str, page_bytes: int) -> None:
    """Check entries from an image before anything is made of them."""
    kinds: dict[bytes, int] = {}
    stored = 0
    for entry in entries:
        where = f"{os.fsdecode(entry.path)!r} in {what}"
        check_path(entry.path, what)
        if not 0 <= entry.mode <= 0o177777 or stat.S_IFMT(entry.mode) not in _KINDS:
            raise ImageError(f"{where} is of no kind of file")
        if (entry.opaque or entry.path == ROOT) and not stat.S_ISDIR(entry.mode):
            raise ImageError(f"{where} is no directory")
        if not (0 <= entry.uid < _NOBODY and 0 <= entry.gid < _NOBODY and entry.device >= 0):
            raise ImageError(f"{where} has an impossible owner or device")
        for moment in (entry.atime, entry.mtime):
            check_moment(moment, where)
        if b"\0" in entry.target or len(entry.target) >= PATH_MAX:
            raise ImageError(f"{where} is an impossible symbolic link")
        kind = stat.S_IFMT(entry.mode)
        if entry.link and (kinds.get(entry.link) != kind or stat.S_ISDIR(kind)):
            raise ImageError(f"{where} is a link to what the image lacks")
        kinds[entry.path] = kind
        check_attributes(entry.attributes, where)
        stored += _check_extents(entry, where, page_bytes)
    # Each file has pages of its own: a small image makes no large files.
    if stored > page_bytes:
        raise ImageError(f"the files in {what} are larger than the page store")


def check_moment(moment: Moment, where: str) -> None:
    """Check a time stamp from an image."""
    if not 0 <= moment.nanoseconds < NS:
        raise ImageError(f"{where} has an impossible time")


def check_attributes(attributes: Iterable[Attribute], where: str) -> None:
    """Check that attributes from an image are of those that are kept."""
    for attribute in attributes:
        if not attribute.name.startswith(KEPT_ATTRIBUTES) or b"\0" in attribute.name:
            raise ImageError(f"{where} has an attribute that no image has")


def check_path(path: bytes, what: str) -> None:
    """Check that a path from an image can only lead below the root."""
    parts = path.split(b"/")
    if path != ROOT and (
        b"\0" in path
        or len(path) >= PATH_MAX
        or any(part in (b"", b".", b"..") or len(part) > _NAME_MAX for part in parts)
    ):
        raise ImageError(f"a file in {what} has an impossible path")


def _check_extents(entry: Entry, where: str, page_bytes: int) -> int:
    """Return the bytes of pages that an entry has."""
    if not 0 <= entry.size < 1 << 63 or (entry.extents and not stat.S_ISREG(entry.mode)):
        raise ImageError(f"{where} has an impossible size")
    position = length = 0
    for extent in entry.extents:
        if extent.start % PAGE or extent.length % PAGE or extent.length <= 0:
            raise ImageError(f"{where} has pages that are not whole")
        if extent.start < position:
            raise ImageError(f"{where} has pages that are out of order")
        position = extent.start + extent.length
        length += extent.length
    if position > page_up(entry.size):
        raise ImageError(f"{where} has pages past its end")
    if entry.store < 0 or entry.store % PAGE or entry.store + length > page_bytes:
        raise ImageError(f"{where} has pages outside the page store")
    return length
