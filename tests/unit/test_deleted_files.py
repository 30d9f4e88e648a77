"""Records of deleted files in an image are checked before anything is made of them."""

import os
import stat
from typing import Any

import msgspec
import pytest

from woodfrog.errors import ImageError
from woodfrog.resources import deleted_files
from woodfrog.resources.deleted_files import DeletedFile
from woodfrog.resources.file_entry import Attribute, Moment
from woodfrog.resources.memory import Extent

FILE = DeletedFile(
    id=1,
    path=b"/var/log/frog",
    link=b"",
    unnamed=False,
    mode=stat.S_IFREG | 0o600,
    uid=0,
    gid=0,
    mtime=Moment.of(0),
    device=0,
    target=b"",
    attributes=[],
    size=5000,
    extents=[Extent(start=4096, length=4096)],
    store=8192,
)


def changed(**fields: Any) -> DeletedFile:
    """Return the record with other fields."""
    return msgspec.structs.replace(FILE, **fields)


def test_sound_files_pass() -> None:
    null = os.makedev(1, 3)
    for one in (FILE, changed(link=b"/other"), changed(mode=stat.S_IFCHR, device=null)):
        deleted_files.check(one, 12288)


@pytest.mark.parametrize(
    "one",
    [
        changed(path=b"frog"),
        changed(path=b"/"),
        changed(path=b"/a/../b"),
        changed(path=b"/a//b"),
        changed(path=b"/a\0b"),
        changed(link=b"/a/./b"),
        changed(mode=stat.S_IFBLK, device=os.makedev(8, 0)),
        changed(mode=stat.S_IFCHR, device=os.makedev(1, 1)),
        changed(mode=stat.S_IFBLK),
        changed(store=12288),
        changed(size=4096),
        changed(size=-1),
        changed(mtime=Moment(seconds=0, nanoseconds=-1)),
        changed(attributes=[Attribute(name=b"security.selinux", value=b"")]),
        changed(extents=[Extent(start=1, length=4096)]),
    ],
)
def test_impossible_files_are_refused(one: DeletedFile) -> None:
    with pytest.raises(ImageError):
        deleted_files.check(one, 12288)
