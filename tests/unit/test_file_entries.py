"""Files of an image are checked before anything is made of them."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.image.layout import PAGE
from woodfrog.resources import file_entry, file_tree, layer
from woodfrog.resources.file_entry import Attribute, Entry, Moment
from woodfrog.resources.layer import Layer
from woodfrog.resources.memory import Extent

NOW = Moment(seconds=1, nanoseconds=2)
STORE = 10 * PAGE


def file(path: bytes = b"file", mode: int = stat.S_IFREG | 0o644, **fields: Any) -> Entry:
    """Return a file that is as it should be, but for some fields."""
    fields = {"uid": 0, "gid": 0, "atime": NOW, "mtime": NOW} | fields
    return Entry(path=path, mode=mode, **fields)


def check(*entries: Entry) -> None:
    file_entry.check(entries, "a test", STORE)


def pages(*ranges: tuple[int, int]) -> list[Extent]:
    """Return extents, counted in pages."""
    return [Extent(start=start * PAGE, length=length * PAGE) for start, length in ranges]


def test_what_a_checkpoint_writes_passes() -> None:
    check(
        file(b".", stat.S_IFDIR | 0o755, opaque=True),
        file(b"odd \xff\n..", size=5 * PAGE - 1, extents=pages((0, 1), (4, 1)), store=8 * PAGE),
        file(b"again", link=b"odd \xff\n.."),
        file(b"..link", stat.S_IFLNK | 0o777, target=b"../../anywhere"),
        file(
            b"d/" * 2000 + b"deep",
            stat.S_IFSOCK | 0o600,
            attributes=[Attribute(name=b"user.a", value=b"")],
        ),
    )


@pytest.mark.parametrize(
    "path",
    [*b"|/|/a|..|a/..|../a|a//b|a/|./a|a/.|a\x00b".split(b"|"), b"n" * 256, b"a/" * 2048 + b"a"],
)
def test_impossible_paths_are_refused(path: bytes) -> None:
    with pytest.raises(ImageError, match="impossible path"):
        check(file(path))
    with pytest.raises(ImageError, match="impossible path"):
        layer.check(Layer(entries=[], removed=[path]), STORE)


@pytest.mark.parametrize(
    "fields",
    [
        {"mode": 0o644},
        {"mode": 0o1000000 | stat.S_IFREG},
        {"mode": -1},
        {"path": b"."},
        {"opaque": True},
        {"uid": -1},
        {"gid": 0xFFFFFFFF},
        {"device": -1},
        {"mtime": Moment(seconds=0, nanoseconds=10**9)},
        {"atime": Moment(seconds=0, nanoseconds=-1)},
        {"mode": stat.S_IFLNK, "target": b"a\0b"},
        {"link": b"not-there"},
        {"link": b"file"},
        {"attributes": [Attribute(name=b"security.selinux", value=b"")]},
        {"attributes": [Attribute(name=b"system.other", value=b"")]},
        {"size": -1},
        {"size": 1 << 63},
        {"mode": stat.S_IFDIR, "size": PAGE, "extents": pages((0, 1))},
        {"size": PAGE, "extents": [Extent(start=1, length=PAGE)]},
        {"size": PAGE, "extents": [Extent(start=0, length=0)]},
        {"size": PAGE, "extents": pages((-1, 2))},
        {"size": 4 * PAGE, "extents": pages((1, 2), (2, 1))},
        {"size": PAGE, "extents": pages((1, 1))},
        {"size": PAGE, "extents": pages((0, 1)), "store": -PAGE},
        {"size": PAGE, "extents": pages((0, 1)), "store": 1},
        {"size": PAGE, "extents": pages((0, 1)), "store": STORE},
    ],
    ids=str,
)
def test_impossible_files_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ImageError):
        check(file(**fields))


def test_small_images_make_no_large_files() -> None:
    whole = {"size": STORE, "extents": pages((0, 10))}
    check(file(b"one", **whole))
    with pytest.raises(ImageError, match="larger than the page store"):
        check(file(b"one", **whole), file(b"two", **whole))


def test_files_with_more_attributes_than_an_image_holds_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_tree, "MOST_RECORD_BYTES", 100)
    root = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        collector = file_tree.Collector(file_tree.Tree(root), lambda extents: 0)
        for name in ("a" * 60, "b" * 60):
            (tmp_path / name).touch()
        found = list(file_tree.Tree(root).walk(b"."))
        collector.entry(*found[0])
        with pytest.raises(UnsupportedResource, match="more than an image can hold"):
            collector.entry(*found[1])
    finally:
        os.close(root)
