"""Files that become others between two looks, as another container or an io_uring can do."""

import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_hostile_layers import directory, file

from needs import needs
from woodfrog.resources.file_entry import Entry
from woodfrog.resources.file_maker import Maker
from woodfrog.resources.file_tree import Collector, Tree

pytestmark = needs("root")
_SOON = 10.0


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    (tmp_path / "root").mkdir()
    found = Tree(os.open(tmp_path / "root", os.O_RDONLY | os.O_DIRECTORY))
    yield found
    os.close(found.root)


def swapped(path: Path, other: Callable[[Path], None]) -> None:
    """Put something else in a file's place."""
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink()
    other(path)


def zero(path: Path) -> None:
    """Make a device: one that lets itself be read and written."""
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))


@pytest.mark.parametrize("other", [os.mkfifo, zero], ids=["fifo", "device"])
def test_nothing_but_a_file_is_read(
    tree: Tree, tmp_path: Path, other: Callable[[Path], None]
) -> None:
    path = tmp_path / "root" / "one"
    path.write_bytes(b"x" * 5000)
    status = path.stat()
    swapped(path, other)
    ends: list[BaseException] = []

    def read() -> None:
        try:
            Collector(tree, lambda pieces: 0).entry(b"one", status)
        except OSError as error:
            ends.append(error)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(_SOON)
    assert [type(end) for end in ends] == [FileNotFoundError]


def test_nothing_but_a_file_is_written(tree: Tree, tmp_path: Path) -> None:
    zero(tmp_path / "root" / "one")
    with pytest.raises(FileNotFoundError):
        Maker(tree, -1, 0)._write(file(b"one"))


@pytest.mark.parametrize("made", [file(b"one"), directory(b"one")], ids=["file", "directory"])
def test_no_mode_is_given_to_what_a_link_leads_to(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Entry
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("another's")
    secret.chmod(0o600)
    chown = os.chown

    def swap_and_chown(name: bytes, *owner: int, **where: int) -> None:
        swapped(tmp_path / "root" / "one", lambda path: path.symlink_to(secret))
        chown(name, *owner, **where)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "chown", swap_and_chown)
    with pytest.raises(OSError, match="not supported"):
        Maker(tree, -1, 0).make([made])
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
