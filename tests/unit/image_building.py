"""Little images for tests, with memory made of random bytes."""

import random
from collections.abc import Sequence

from woodfrog.image.container_file import Writer
from woodfrog.image.record import Record

PAGE = 4096
MiB = 1 << 20


class Animal(Record, frozen=True, tag_field="kind", tag="animal"):
    """A record of any kind."""

    name: bytes
    legs: int


class Stone(Record, frozen=True, tag_field="kind", tag="stone"):
    """A record of another kind."""

    weight: float


class Memory:
    """Bytes that can be read like a process's memory."""

    def __init__(self, length: int, *, seed: int = 1, compressible: bool = False) -> None:
        dice = random.Random(seed)
        self.bytes = dice.randbytes(length)
        if compressible:
            self.bytes = b"".join(self.bytes[at : at + 512] * 8 for at in range(0, length, PAGE))[
                :length
            ]

    def read(self, into: memoryview, ranges: Sequence[tuple[int, int]]) -> None:
        at = 0
        for start, length in ranges:
            into[at : at + length] = self.bytes[start : start + length]
            at += length
        assert at == len(into)


def write_image(
    directory: str, memory: Memory | None = None, *, compression: str = "none", sync: str = "none"
) -> None:
    """Write an image with two records and the memory."""
    with Writer(directory, compression=compression, sync=sync, replace=False) as image:
        image.add(Animal(name=b"frog \xff", legs=4))
        if memory:
            image.write_pages([(memory, 0, len(memory.bytes))])
        image.add(Stone(weight=1.5))
        image.seal()
