"""Files are read as a child sees them, without a fork of all that we have."""

import os
from pathlib import Path

import pytest

from needs import needs
from started import UNSHARE, child_of, line, started
from woodfrog.kernel.reading_elsewhere import read_by_child
from woodfrog.resources import namespaces


def test_files_are_read_as_by_us(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"something\0else")
    two.write_bytes(b"")
    had = len(os.listdir("/proc/self/fd"))
    found = read_by_child([str(one), str(tmp_path / "none"), str(two)])
    assert found == [
        (one.stat().st_ino, b"something\0else"),
        (0, b""),
        (two.stat().st_ino, b""),
    ]
    assert len(os.listdir("/proc/self/fd")) == had
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    with pytest.raises(OSError, match="Is a directory"):
        read_by_child([str(tmp_path)])


@needs("root")
def test_the_child_is_born_where_children_are_to_be() -> None:
    with started(*UNSHARE, "sh", "-c", "echo ready; read word") as unshare:
        assert line(unshare) == "ready"
        init = child_of(unshare.pid)
        with namespaces.inside(init, "pid"):
            [(_, text)] = read_by_child(["/proc/sys/kernel/ns_last_pid"])
        assert 0 < int(text) < 20  # in ours it is much more, or was
        assert os.readlink("/proc/self/ns/pid_for_children") == os.readlink("/proc/self/ns/pid")
