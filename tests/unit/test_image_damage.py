"""Whatever happened to an image is noticed, told in one clear error, and costs no memory."""

import os
import random
import struct
import zlib
from pathlib import Path

import pytest
from image_building import PAGE, Animal, Memory, MiB, Stone, write_image

from woodfrog.errors import ImageError
from woodfrog.image import layout
from woodfrog.image.container_file import Reader


def read_all(directory: Path) -> None:
    with Reader(str(directory)) as reader:
        reader.records(Animal | Stone)
        reader.verify_pages()
        reader.open_pages()


def is_damaged(directory: Path) -> bool:
    try:
        read_all(directory)
    except ImageError:
        return True
    return False


@pytest.fixture(params=["none", "flate-best-speed", "zstd"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A sound image of three chunks."""
    write_image(str(tmp_path), Memory(2 * MiB + PAGE, compressible=True), compression=request.param)
    read_all(tmp_path)
    return tmp_path / "checkpoint.img"


def regions(image: Path) -> dict[str, tuple[int, int]]:
    with Reader(str(image.parent)) as reader:
        trailer = reader._trailer
    size = image.stat().st_size
    return {
        "magic and version": (0, 12),
        "header": (12, 200),
        "header padding": (400, PAGE),
        "pages": (PAGE, trailer.records_at),
        "records": (trailer.records_at, trailer.index_at),
        "index": (trailer.index_at, trailer.index_at + trailer.index_bytes),
        "trailer": (size - layout.TRAILER_BYTES, size),
    }


def flip(image: Path, at: int, bit: int) -> None:
    with image.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


def test_each_flipped_bit_is_found(image: Path) -> None:
    dice = random.Random(2)
    for name, (begin, end) in regions(image).items():
        places = range(begin, end) if end - begin < 150 else dice.sample(range(begin, end), 60)
        for at in [begin, *places, end - 1]:
            bit = dice.randrange(8)
            flip(image, at, bit)
            assert is_damaged(image.parent), f"bit {bit} of byte {at} ({name}) was flipped"
            flip(image, at, bit)
    read_all(image.parent)


def test_all_but_pages_is_checked_before_anything_is_read(image: Path) -> None:
    for name, (begin, _) in regions(image).items():
        flip(image, begin, 3)
        if name == "pages":
            with Reader(str(image.parent)) as reader, pytest.raises(ImageError) as caught:
                reader.verify_pages()
            assert "page chunk 0, at file offset 4096" in str(caught.value)
        else:
            with pytest.raises(ImageError):
                Reader(str(image.parent))
        flip(image, begin, 3)


def test_each_truncation_is_found(image: Path) -> None:
    data = image.read_bytes()
    dice = random.Random(3)
    borders = [border for pair in regions(image).values() for border in pair]
    lengths = {0, 1, 7, 8, 15, 16, 100, len(data) - 1}
    lengths |= {border + step for border in borders for step in (-1, 0, 1)}
    lengths |= set(dice.sample(range(len(data)), 30))
    for length in lengths:
        if 0 <= length < len(data):
            os.truncate(image, length)
            with pytest.raises(ImageError):
                Reader(str(image.parent))
            image.write_bytes(data)


@pytest.mark.parametrize("more", [b"\0", b"x", bytes(PAGE), layout.END_MAGIC])
def test_bytes_after_the_end_are_found(image: Path, more: bytes) -> None:
    with image.open("ab") as file:
        file.write(more)
    with pytest.raises(ImageError, match=r"after its end|trailer's checksum"):
        Reader(str(image.parent))


def test_two_images_in_one_file_are_refused(image: Path) -> None:
    image.write_bytes(image.read_bytes() * 2)
    with pytest.raises(ImageError, match="don't add up"):
        Reader(str(image.parent))


def test_swapped_chunks_are_found(tmp_path: Path) -> None:
    write_image(str(tmp_path), Memory(2 * MiB))
    image = tmp_path / "checkpoint.img"
    data = image.read_bytes()
    first, second = data[PAGE : PAGE + MiB], data[PAGE + MiB : PAGE + 2 * MiB]
    image.write_bytes(data[:PAGE] + second + first + data[PAGE + 2 * MiB :])
    with pytest.raises(ImageError, match=r"page chunk [01]"):
        read_all(tmp_path)


@pytest.mark.parametrize("version", [(1, 1), (2, 0), (0, 9), (65535, 65535)])
def test_other_format_versions_are_refused_by_name(image: Path, version: tuple[int, int]) -> None:
    with image.open("r+b") as file:
        file.seek(8)
        file.write(struct.pack("<HH", *version))
    message = f"format version {version[0]}.{version[1]}; this woodfrog reads 1.0"
    with pytest.raises(ImageError, match=message) as caught:
        Reader(str(image.parent))
    assert caught.value.hint


@pytest.mark.parametrize("content", [b"", b"x", b"WOODFROG", b"\x7fELF" + bytes(9000)])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint.img").write_bytes(content)
    with pytest.raises(ImageError, match=r"not a woodfrog image|truncated"):
        Reader(str(tmp_path))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no checkpoint in"):
        Reader(str(tmp_path / "nowhere"))
    os.mkfifo(tmp_path / "checkpoint.img")
    with pytest.raises(ImageError, match="not a regular file"):
        Reader(str(tmp_path))
    (tmp_path / "checkpoint.img").unlink()
    (tmp_path / "checkpoint.img").mkdir()
    with pytest.raises(ImageError, match="not a regular file"):
        Reader(str(tmp_path))


# ---- files made by someone who knows the format ------------------------------------------------


def forge(
    directory: Path,
    *,
    compression: str = "none",
    store: bytes = b"",
    records: bytes = b"\xdd\0\0\0\0",
    index: bytes = b"",
    **claims: int,
) -> None:
    """Write an image whose checksums are all right."""
    facts = layout.Facts(
        made=0, hostname="", kernel="", machine="", woodfrog="", compression=compression
    )
    trailer = layout.Trailer(
        page_bytes=claims.get("page_bytes", 0),
        stored_bytes=claims.get("stored_bytes", len(store)),
        record_bytes=claims.get("record_bytes", len(records)),
        index_bytes=claims.get("index_bytes", len(index)),
        record_count=claims.get("record_count", int.from_bytes(records[1:5], "big")),
        record_checksum=layout.checksum(records),
        index_checksum=layout.checksum(index),
    )
    (directory / "checkpoint.img").write_bytes(
        layout.encode_header(facts) + store + records + index + layout.encode_trailer(trailer)
    )


def entry(stored: bytes) -> bytes:
    return layout.INDEX_ENTRY.pack(len(stored), layout.checksum(stored))


def test_forging_works(tmp_path: Path) -> None:
    forge(tmp_path, store=bytes(PAGE), index=entry(bytes(PAGE)), page_bytes=PAGE)
    read_all(tmp_path)


@pytest.mark.parametrize(
    "claims",
    [
        {"record_bytes": 1 << 62},
        {"record_bytes": (1 << 64) - 1},
        {"page_bytes": 1 << 63},
        {"page_bytes": PAGE},
        {"page_bytes": 100},
        {"stored_bytes": 1 << 40},
        {"index_bytes": 20},
        {"record_count": 1},
        {"record_count": 1 << 32},
    ],
)
def test_claims_that_do_not_fit_are_refused_before_memory_is_taken(
    tmp_path: Path, claims: dict[str, int]
) -> None:
    forge(tmp_path, **claims)
    with pytest.raises(ImageError):
        Reader(str(tmp_path))


def test_a_sparse_giant_is_refused(tmp_path: Path) -> None:
    forge(tmp_path, record_bytes=1 << 40)
    image = tmp_path / "checkpoint.img"
    data = image.read_bytes()
    with image.open("r+b") as file:
        file.truncate(PAGE + (1 << 40))
        file.seek(PAGE + (1 << 40))
        file.write(data[-layout.TRAILER_BYTES :])
    with pytest.raises(ImageError, match="larger than any image"):
        Reader(str(tmp_path))


def test_index_entries_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for index, store in [
        (layout.INDEX_ENTRY.pack(0, bytes(16)), bytes(PAGE)),
        (entry(bytes(PAGE - 1)), bytes(PAGE)),
        (entry(bytes(2 * PAGE)), bytes(PAGE)),
        (entry(bytes(PAGE)), bytes(2 * PAGE)),
    ]:
        for compression in ("none", "flate-best-speed", "zstd"):
            forge(tmp_path, store=store, index=index, page_bytes=PAGE, compression=compression)
            with pytest.raises(ImageError, match=r"chunk 0 has a wrong length|doesn't fit"):
                Reader(str(tmp_path))


@pytest.mark.parametrize(
    "records",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\xdd\0\0\0\1" + b"\x91" * 100_000 + b"\xc0",
        b"\xdd\0\0\0\1\x81\xa4kind\xdb\x7f\xff\xff\xff",
        b"\xdd\0\0\0\1\x81\xa4kind\xa2\xff\xff",
        b"\xdd\0\0\0\1\xc0",
        b"\xdd\0\0\0\0\xc0",
        b"\xdd\0\0\0\1",
        b"\x80\0\0\0\0",
        b"",
    ],
)
def test_hostile_records_are_refused(tmp_path: Path, records: bytes) -> None:
    forge(tmp_path, records=records)
    for read in (Reader.raw_records, lambda reader: reader.records(Animal | Stone)):
        with pytest.raises(ImageError), Reader(str(tmp_path)) as reader:
            read(reader)


def test_frames_that_claim_another_size_are_refused(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    bomb = zstandard.ZstdCompressor().compress(bytes(64 * MiB))
    nameless = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(MiB))
    # A frame that claims 2**60 bytes: magic, descriptor with an 8-byte size, the size, no block.
    giant = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 60) + b"\1\0\0"
    liar = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", MiB) + b"\1\0\0"
    for frame in (bomb, nameless, giant, liar, b"no frame at all"):
        forge(tmp_path, store=frame, index=entry(frame), page_bytes=MiB, compression="zstd")
        with (
            Reader(str(tmp_path)) as reader,
            pytest.raises(ImageError, match=r"chunk 0: a (compressed )?chunk (has|can't be)"),
        ):
            reader.open_pages()


def test_streams_of_another_length_are_refused(tmp_path: Path) -> None:
    def deflated(data: bytes, kind: int = -15) -> bytes:
        deflate = zlib.compressobj(1, zlib.DEFLATED, kind)
        return deflate.compress(data) + deflate.flush()

    sound = deflated(bytes(MiB))
    streams = {
        "bomb": deflated(bytes(64 * MiB)),
        "short": deflated(bytes(MiB - 1)),
        "long": deflated(bytes(MiB + 1)),
        "endless": sound[:-1],
        "followed": sound + b"x",
        "other": deflated(bytes(MiB), 15),
        "noise": b"\xff" * 100,
    }
    for stream in streams.values():
        forge(
            tmp_path,
            store=stream,
            index=entry(stream),
            page_bytes=MiB,
            compression="flate-best-speed",
        )
        with Reader(str(tmp_path)) as reader:
            for read in (reader.open_pages, reader.verify_pages):
                with pytest.raises(ImageError, match=r"chunk 0: a (compressed )?chunk (has|can't)"):
                    read()


def test_more_memory_than_the_machine_has_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(str(tmp_path), Memory(2 * MiB, compressible=True), compression="zstd")
    monkeypatch.setattr("woodfrog.image.page_file._available_memory", lambda: MiB)
    with Reader(str(tmp_path)) as reader, pytest.raises(ImageError, match="1 MiB available"):
        reader.open_pages()


@pytest.mark.parametrize("facts", [b"", b"\x80", b"\xc0", b"\xdd\xff\xff\xff\xff"])
def test_wrong_header_facts_are_refused(tmp_path: Path, facts: bytes) -> None:
    forge(tmp_path)
    start = struct.pack("<8sHHI", layout.MAGIC, 1, 0, len(facts))
    page = (start + layout.checksum(start + facts) + facts).ljust(PAGE, b"\0")
    image = tmp_path / "checkpoint.img"
    image.write_bytes(page + image.read_bytes()[PAGE:])
    with pytest.raises(ImageError, match="header"):
        Reader(str(tmp_path))
