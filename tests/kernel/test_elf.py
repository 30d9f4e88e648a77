"""The build id of programs, as linkers write it, and of files that are none."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from needs import needs
from woodfrog.kernel import elf

PROGRAM = "int main(void) { return 0; }\n"


def build_id(path: Path) -> bytes:
    """Return the build id of a file."""
    file = os.open(path, os.O_RDONLY)
    try:
        return elf.build_id(file)
    finally:
        os.close(file)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A little program."""
    path = tmp_path / "program.c"
    path.write_text(PROGRAM)
    return path


@needs("command gcc")
@pytest.mark.parametrize("digits", ["12", "0123456789abcdef" * 2, "f" * 40])
def test_the_linkers_build_id_is_found(
    digits: str, source: Path, build: Callable[..., Path]
) -> None:
    assert build_id(build(source, f"-Wl,--build-id=0x{digits}")).hex() == digits


@needs("command gcc")
def test_what_has_none_gives_none(source: Path, build: Callable[..., Path], tmp_path: Path) -> None:
    assert build_id(build(source, "-Wl,--build-id=none")) == b""
    assert build_id(source) == b""
    (tmp_path / "empty").touch()
    assert build_id(tmp_path / "empty") == b""


@needs("command gcc")
def test_damaged_programs_do_no_harm(
    source: Path, build: Callable[..., Path], tmp_path: Path, chance: random.Random
) -> None:
    whole = build(source, "-Wl,--build-id=0x1234").read_bytes()[:8192]
    path = tmp_path / "damaged"
    for _ in range(500):
        damaged = bytearray(whole[: chance.choice([64, 100, 1000, 8192])])
        for _ in range(chance.randint(1, 8)):
            damaged[chance.randrange(16, min(len(damaged), 1200))] = chance.choice([0, 1, 127, 255])
        path.write_bytes(damaged)
        assert len(build_id(path)) <= 1 << 16
