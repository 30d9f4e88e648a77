"""Images that build on others: what is found, followed and refused."""

import os
from pathlib import Path

import pytest

from woodfrog.errors import ImageError
from woodfrog.image.chain import Chain, Stored
from woodfrog.image.container_file import Parent, Reader, Writer
from woodfrog.image.layout import ANCESTOR, CHUNK, MOST_ANCESTORS, PAGE
from woodfrog.image.merge import merge


class Bytes:
    """Memory from bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, into: memoryview, ranges: list[tuple[int, int]]) -> None:
        at = 0
        for start, length in ranges:
            into[at : at + length] = self._data[start : start + length]
            at += length


def write(
    directory: Path, data: bytes, pages: list[list[int]], parent: Path | None = None, **how: str
) -> Path:
    """Write an image with one process that has these pages (start, length, store)."""
    name = None
    if parent:
        with Chain(str(parent)) as chain:
            name = chain.as_parent
    options = {"compression": "none", "sync": "none"} | how
    with Writer(str(directory), replace=False, parent=name, **options) as writer:  # type: ignore[arg-type]
        writer.write_pages([(Bytes(data), 0, len(data))])
        writer.add_raw({"kind": "pre-dump", "pid": 1, "memory": {"pages": pages}})
        writer.seal()
    return directory


def page(letter: str) -> bytes:
    return letter.encode() * PAGE


def contents(directory: Path) -> bytes:
    """Return what the process of an image has, read page by page and as a whole."""
    with Chain(str(directory)) as chain:
        pages = chain.raw_records()[0]["memory"]["pages"]
        ranges = [(store, length) for _, length, store in pages]
        whole = bytearray(sum(length for _, length in ranges))
        Stored(chain).read(memoryview(whole), ranges)
        assert whole == b"".join(chain.read_memory(*one) for one in ranges)
        chain.verify_pages()
        return bytes(whole)


@pytest.fixture(params=["none", "zstd"])
def three(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return the last of three images, of which each has pages of all before."""
    how = {"compression": request.param}
    first = page("a") * 300 + page("b")
    write(tmp_path / "0", first, [[0, len(first), 0]], **how)
    write(tmp_path / "1", page("c"), [[0, PAGE, 0], [PAGE, PAGE, ANCESTOR]], tmp_path / "0", **how)
    pages = [
        [0, PAGE, 0],
        [PAGE, PAGE, ANCESTOR],
        [2 * PAGE, 2 * PAGE, 2 * ANCESTOR + 299 * PAGE],
        [9 * PAGE, PAGE, 2 * ANCESTOR + CHUNK],
    ]
    return write(tmp_path / "2", page("d"), pages, tmp_path / "1", **how)


EXPECTED = b"".join(map(page, "dcaba"))


def test_pages_are_found_wherever_they_are(three: Path) -> None:
    assert contents(three) == EXPECTED
    assert os.readlink(three / "parent") == "../1"


def test_a_merged_image_has_them_itself(three: Path, tmp_path: Path) -> None:
    with Chain(str(three)) as chain:
        assert merge(chain, str(tmp_path / "whole"), sync="none") == 4 * PAGE
    assert contents(tmp_path / "whole") == EXPECTED
    assert not (tmp_path / "whole/parent").exists()
    with Reader(str(tmp_path / "whole")) as reader:
        assert reader.page_bytes == 5 * PAGE


def test_each_chunk_of_all_levels_is_handed_out(three: Path) -> None:
    found = {}
    numbers = [0, ANCESTOR // CHUNK, 2 * ANCESTOR // CHUNK, 2 * ANCESTOR // CHUNK + 1]
    with Chain(str(three)) as chain:
        chain.each_chunk(
            zip(numbers, numbers, strict=True),
            lambda number, memory: found.__setitem__(number, bytes(memory[:1])),
        )
        chain.leave_out([(0, PAGE), (2 * ANCESTOR, 2 * ANCESTOR + CHUNK)])
    assert list(map(found.get, numbers)) == [b"d", b"c", b"a", b"a"]


def test_pages_that_no_ancestor_has_are_refused(three: Path) -> None:
    with Chain(str(three)) as chain:
        for offset in (PAGE, ANCESTOR + PAGE, 3 * ANCESTOR, -PAGE, 1 << 62):
            with pytest.raises(ImageError):
                chain.read_memory(offset, PAGE)


@pytest.mark.parametrize("store", [PAGE, ANCESTOR + PAGE, 4 * ANCESTOR, -PAGE, 1 << 62])
def test_a_merge_refuses_them_as_well(store: int, three: Path, tmp_path: Path) -> None:
    lying = write(tmp_path / "lying", page("x"), [[0, PAGE, store]], three)
    with Chain(str(lying)) as chain, pytest.raises(ImageError):
        merge(chain, str(tmp_path / "whole"), sync="none")
    assert not (tmp_path / "whole").exists()


def test_chains_have_an_end(tmp_path: Path) -> None:
    last = write(tmp_path / "0", page("a"), [[0, PAGE, 0]])
    for number in range(1, MOST_ANCESTORS + 1):
        last = write(tmp_path / str(number), page("b"), [[0, PAGE, number * ANCESTOR]], parent=last)
    assert contents(last) == page("a")
    with Chain(str(last)) as chain, pytest.raises(ImageError, match="which are the most"):
        _ = chain.as_parent
    with Reader(str(last)) as reader:
        name = Parent(str(last), reader.digest)
    with Writer(
        str(tmp_path / "more"), compression="none", sync="none", replace=False, parent=name
    ) as writer:
        writer.seal()
    with Chain(str(tmp_path / "more")) as chain, pytest.raises(ImageError, match="more than"):
        _ = chain.levels


def test_a_link_is_made_with_the_image_and_not_without(tmp_path: Path) -> None:
    first = write(tmp_path / "0", page("a"), [[0, PAGE, 0]])
    with Chain(str(first)) as chain:
        parent = chain.as_parent
    with Writer(str(tmp_path / "1"), compression="none", sync="none", replace=False, parent=parent):
        pass
    assert not (tmp_path / "1").exists()
    (tmp_path / "2").mkdir()
    (tmp_path / "2/parent").symlink_to("elsewhere")
    second = write(tmp_path / "2", page("b"), [[0, PAGE, ANCESTOR]], parent=first)
    assert contents(second) == page("a")
    (tmp_path / "3/parent").mkdir(parents=True)
    with pytest.raises(ImageError, match="in the way"):
        write(tmp_path / "3", page("b"), [[0, PAGE, ANCESTOR]], parent=first)
    assert os.listdir(tmp_path / "3") == ["parent"]
