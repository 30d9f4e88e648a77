"""Many reads at once give what each one by itself would."""

import errno
import os
from pathlib import Path

import pytest

from woodfrog.kernel.reading_many import Reads


def test_each_read_gives_what_pread_does(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(200)))
    file = os.open(path, os.O_RDONLY)
    closed = os.dup(file)
    os.close(closed)
    into = bytearray(b"." * 64)
    reads = Reads([(file, 16, 0), (closed, 16, 0), (file, 16, 190), (file, 16, 100)], into)
    assert reads.run() == [16, -errno.EBADF, 10, 16]
    whole = bytes(range(200))
    assert into == whole[:16] + b"." * 16 + whole[190:] + b"." * 6 + whole[100:116]
    path.write_bytes(bytes(8))
    assert reads.run() == [8, -errno.EBADF, 0, 0]
    assert into[:8] == bytes(8)
    os.close(file)


def test_nothing_is_written_beyond_what_there_is_room_for() -> None:
    assert Reads([], bytearray()).run() == []
    with pytest.raises(ValueError, match="more is to be read"):
        Reads([(0, 16, 0), (0, 1, 0)], bytearray(16))
