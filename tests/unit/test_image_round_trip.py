"""What is written to an image comes back, whatever its size and however it was handed over."""

import os
import random
import stat
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from image_building import PAGE, Animal, Memory, MiB, Stone, write_image

from woodfrog.errors import ImageError
from woodfrog.image.container_file import Reader, Writer


def stored(reader: Reader) -> bytes:
    fd, base = reader.open_pages()
    return os.pread(fd, reader.page_bytes, base)


@pytest.mark.parametrize("compression", ["none", "flate-best-speed", "zstd"])
@pytest.mark.parametrize("compressible", [False, True])
@pytest.mark.parametrize("length", [0, PAGE, MiB - PAGE, MiB, MiB + PAGE, 5 * MiB + 3 * PAGE])
def test_an_image_gives_back_what_was_written(
    tmp_path: Path, compression: str, length: int, compressible: bool
) -> None:
    memory = Memory(length, compressible=compressible)
    write_image(str(tmp_path), memory, compression=compression)

    with Reader(str(tmp_path)) as reader:
        reader.verify_pages()
        assert reader.page_bytes == length
        assert stored(reader) == memory.bytes
        assert reader.records(Animal | Stone) == [
            Animal(name=b"frog \xff", legs=4),
            Stone(weight=1.5),
        ]
        assert [record["kind"] for record in reader.raw_records()] == ["animal", "stone"]


def test_an_image_may_be_rehearsed(tmp_path: Path) -> None:
    memory = Memory(MiB + PAGE)
    with Writer(str(tmp_path), compression="none", sync="none", replace=False) as writer:
        writer.write_pages([(memory, 0, MiB + PAGE)])
        writer.add(Stone(weight=1.5))
        writer.rehearse(MiB)
        writer.add(Animal(name=b"frog", legs=4))
        writer.seal()

    with Reader(str(tmp_path)) as reader:
        reader.verify_pages()
        assert stored(reader) == memory.bytes
        assert reader.records(Animal | Stone) == [Stone(weight=1.5), Animal(name=b"frog", legs=4)]


def test_the_header_tells_when_where_and_by_what(tmp_path: Path) -> None:
    write_image(str(tmp_path), Memory(2 * MiB, compressible=True), compression="zstd")
    with Reader(str(tmp_path)) as reader:
        header = reader.header
    assert header.version == (1, 0)
    assert (header.hostname, header.kernel) == (os.uname().nodename, os.uname().release)
    assert header.machine == os.uname().machine
    assert (header.compression, header.page_bytes, header.record_count) == ("zstd", 2 * MiB, 2)
    assert header.file_bytes == (tmp_path / "checkpoint.img").stat().st_size < MiB


@pytest.mark.parametrize("compression", ["none", "flate-best-speed", "zstd"])
@pytest.mark.parametrize("seed", range(5))
def test_extents_of_many_sources_and_calls_lie_one_after_the_other(
    tmp_path: Path, seed: int, compression: str
) -> None:
    dice = random.Random(seed)
    sources = [Memory(3 * MiB, seed=number) for number in range(3)]
    expected = b""
    with Writer(str(tmp_path), compression=compression, sync="none", replace=False) as image:
        for _ in range(dice.randint(1, 12)):
            extents = []
            for _ in range(dice.randint(0, 20)):
                source = dice.choice(sources)
                length = dice.choice([0, 1, 2, 3, 255, 256, 257, 500]) * PAGE
                start = dice.randrange(0, 3 * MiB - length + 1, PAGE)
                extents.append((source, start, length))
            at = image.write_pages(extents)
            assert at == len(expected)
            for source, start, length in extents:
                expected += source.bytes[start : start + length]
        image.seal()

    with Reader(str(tmp_path)) as reader:
        reader.verify_pages()
        assert stored(reader) == expected


def test_extents_of_half_pages_are_refused(tmp_path: Path) -> None:
    with (
        Writer(str(tmp_path), compression="none", sync="none", replace=False) as image,
        pytest.raises(ValueError, match="whole pages"),
    ):
        image.write_pages([(Memory(PAGE), 0, 100)])


def test_the_page_store_begins_and_lies_on_page_borders(tmp_path: Path) -> None:
    write_image(str(tmp_path), Memory(PAGE))
    data = (tmp_path / "checkpoint.img").read_bytes()
    assert data[PAGE : 2 * PAGE] == Memory(PAGE).bytes


def test_the_page_store_cannot_be_reopened_for_writing(tmp_path: Path) -> None:
    for compression in ("none", "flate-best-speed", "zstd"):
        directory = tmp_path / compression
        write_image(str(directory), Memory(PAGE, compressible=True), compression=compression)
        with Reader(str(directory)) as reader:
            fd, base = reader.open_pages()
            with pytest.raises(OSError):
                os.pwrite(fd, b"x", base)
            try:
                again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
            except OSError:
                continue
            with pytest.raises(OSError):  # a sealed memfd opens, but refuses the write
                os.pwrite(again, b"x", base)
            os.close(again)


def test_unknown_kinds_and_wrong_types_are_refused(tmp_path: Path) -> None:
    write_image(str(tmp_path))
    with Reader(str(tmp_path)) as reader, pytest.raises(ImageError, match=r"make no sense.*kind"):
        reader.records(Animal)

    class Animal2(msgspec.Struct, tag_field="kind", tag="animal"):
        legs: str

    with Reader(str(tmp_path)) as reader, pytest.raises(ImageError, match=r"legs"):
        reader.records(Animal2 | Stone)


# ---- how an image comes to be ----------------------------------------------------------------


def test_directories_are_made_and_the_file_is_private(tmp_path: Path) -> None:
    where = tmp_path / "a" / "b" / "c"
    umask = os.umask(0)
    try:
        write_image(str(where), sync="full")
    finally:
        os.umask(umask)
    assert [entry.name for entry in where.iterdir()] == ["checkpoint.img"]
    assert stat.S_IMODE((where / "checkpoint.img").stat().st_mode) == 0o600


@pytest.mark.parametrize("nameless", [True, False])
def test_an_image_that_is_not_sealed_leaves_nothing(
    tmp_path: Path, nameless: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not nameless:
        refuse_nameless_files(monkeypatch)
    (tmp_path / "there").mkdir()
    for where in ("there", "there/a/b", "new", "x/y/z"):
        with Writer(str(tmp_path / where), compression="none", sync="none", replace=False) as image:
            image.write_pages([(Memory(3 * MiB), 0, 3 * MiB)])
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def refuse_nameless_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make O_TMPFILE fail as on NFS."""
    real = os.open

    def without(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "Operation not supported")
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", without)


@pytest.mark.parametrize("nameless", [True, False])
def test_a_checkpoint_that_is_there_is_refused_and_stays(
    tmp_path: Path, nameless: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not nameless:
        refuse_nameless_files(monkeypatch)
    write_image(str(tmp_path), Memory(PAGE))
    before = (tmp_path / "checkpoint.img").read_bytes()
    with pytest.raises(ImageError, match="already holds a checkpoint"):
        write_image(str(tmp_path), Memory(2 * PAGE))
    assert (tmp_path / "checkpoint.img").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.img"]


@pytest.mark.parametrize("nameless", [True, False])
def test_of_two_checkpoints_at_once_the_slower_is_refused(
    tmp_path: Path, nameless: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not nameless:
        refuse_nameless_files(monkeypatch)
    with Writer(str(tmp_path), compression="none", sync="none", replace=False) as slower:
        write_image(str(tmp_path), Memory(PAGE))
        before = (tmp_path / "checkpoint.img").read_bytes()
        with pytest.raises(ImageError, match="already holds a checkpoint"):
            slower.seal()
    assert (tmp_path / "checkpoint.img").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.img"]


@pytest.mark.parametrize("nameless", [True, False])
def test_replacing_keeps_the_old_image_until_the_new_one_is_complete(
    tmp_path: Path, nameless: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not nameless:
        refuse_nameless_files(monkeypatch)
    write_image(str(tmp_path), Memory(PAGE))
    old = (tmp_path / "checkpoint.img").read_bytes()
    with Writer(str(tmp_path), compression="none", sync="full", replace=True) as image:
        image.add(Stone(weight=2))
        assert (tmp_path / "checkpoint.img").read_bytes() == old
    assert (tmp_path / "checkpoint.img").read_bytes() == old
    with Writer(str(tmp_path), compression="none", sync="full", replace=True) as image:
        image.add(Stone(weight=2))
        image.seal()
    with Reader(str(tmp_path)) as reader:
        assert reader.records(Animal | Stone) == [Stone(weight=2)]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.img"]


def test_a_symbolic_link_in_place_of_an_image_is_not_followed(tmp_path: Path) -> None:
    write_image(str(tmp_path / "real"))
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "checkpoint.img").symlink_to(tmp_path / "real" / "checkpoint.img")
    with pytest.raises(ImageError, match="can't open"):
        Reader(str(tmp_path / "link"))
    with pytest.raises(ImageError, match="already holds"):
        write_image(str(tmp_path / "link"))


def test_too_little_space_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with Writer(str(tmp_path), compression="none", sync="none", replace=False) as image:
        image.check_space(PAGE)
        with pytest.raises(ImageError, match=r"MiB free, and the image needs about") as caught:
            image.check_space(1 << 60)
    assert "--compression=zstd" in caught.value.hint


@pytest.mark.parametrize("compression", ["none", "flate-best-speed", "zstd"])
def test_a_source_that_fails_ends_all_threads_and_is_told(tmp_path: Path, compression: str) -> None:
    class Failing(Memory):
        def read(self, into: memoryview, ranges: Sequence[tuple[int, int]]) -> None:
            if ranges[0][0] >= 5 * MiB:
                raise ProcessLookupError(3, "No such process")
            super().read(into, ranges)

    before = threading.active_count()
    with (
        pytest.raises(ProcessLookupError),
        Writer(str(tmp_path / "new"), compression=compression, sync="none", replace=False) as image,
    ):
        image.write_pages([(Failing(16 * MiB), 0, 16 * MiB)])
    assert threading.active_count() == before
    assert list(tmp_path.iterdir()) == []


def test_the_disk_getting_full_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite

    def full(fd: int, data: memoryview, offset: int) -> int:
        if offset > 4 * MiB:
            raise OSError(28, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_image(str(tmp_path / "new"), Memory(16 * MiB))
    assert any("writing pages to" in note for note in caught.value.__notes__)
    assert list(tmp_path.iterdir()) == []


def test_unknown_ways_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="unknown compression 'gzip'"):
        Writer(str(tmp_path / "x"), compression="gzip", sync="none", replace=False)
    with pytest.raises(ImageError, match="unknown way to sync 'some'"):
        Writer(str(tmp_path / "x"), compression="none", sync="some", replace=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_chunks_that_are_left_out_are_read_one_by_one(tmp_path: Path, compression: str) -> None:
    memory = Memory(12 * MiB + PAGE, compressible=True)
    write_image(str(tmp_path), memory, compression=compression)

    with Reader(str(tmp_path)) as reader:
        # Chunks 1 and 2, none, and the last two; the last one is short.
        reader.leave_out([(PAGE, 3 * MiB), (4 * MiB + PAGE, 5 * MiB), (11 * MiB, 12 * MiB + PAGE)])
        reader.verify_pages()
        at_once = stored(reader)
        assert at_once[: 1 * MiB] == memory.bytes[: 1 * MiB]
        assert at_once[3 * MiB : 11 * MiB] == memory.bytes[3 * MiB : 11 * MiB]
        if compression != "none":
            assert not any(at_once[1 * MiB : 3 * MiB] + at_once[11 * MiB :])
        chunks = reader.chunks()
        for number in (1, 12, *range(13), 2):
            wanted = memory.bytes[number * MiB : (number + 1) * MiB]
            assert chunks.memory(number)[: len(wanted)] == wanted


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_damaged_chunk_that_is_left_out_is_found_when_it_is_read(
    tmp_path: Path, compression: str
) -> None:
    write_image(str(tmp_path), Memory(3 * MiB), compression=compression)
    image = tmp_path / "checkpoint.img"
    data = bytearray(image.read_bytes())
    data[PAGE + MiB + 5000] ^= 1
    image.write_bytes(data)

    with Reader(str(tmp_path)) as reader:
        reader.leave_out([(MiB, 2 * MiB)])
        reader.verify_pages()
        chunks = reader.chunks()
        chunks.memory(0)
        for _ in range(2):
            with pytest.raises(ImageError, match="checksum of page chunk 1"):
                chunks.memory(1)
