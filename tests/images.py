"""Images that no checkpoint makes here: with the records of another machine."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from woodfrog.image.container_file import Reader, Writer
from woodfrog.image.record import Record
from woodfrog.resources import catalogue
from woodfrog.resources.container import ContainerRecord

RECORDS = catalogue.all_classes()


class _Stored:
    """The memory in an image, to be written into another."""

    def __init__(self, descriptor: int, base: int) -> None:
        self._descriptor = descriptor
        self._base = base

    def read(self, into: memoryview, ranges: Sequence[tuple[int, int]]) -> None:
        at = 0
        for start, length in ranges:
            part = into[at : at + length]
            assert os.preadv(self._descriptor, [part], self._base + start) == length
            at += length


def doctored(
    image: Path,
    target: Path,
    kind: type[Record] = ContainerRecord,
    *,
    which: Callable[[Any], bool] = lambda record: True,
    more: Sequence[Record] = (),
    **fields: object,
) -> Path:
    """Write a copy of an image in which the container's record, or another, has other fields.

    Or `which` of that kind. And which has `more` records.
    """
    with (
        Reader(str(image)) as reader,
        Writer(str(target), compression="none", sync="none", replace=False) as writer,
    ):
        if reader.page_bytes:
            stored = _Stored(*reader.open_pages())
            assert writer.write_pages([(stored, 0, reader.page_bytes)]) == 0
        for record in reader.records(RECORDS):
            if isinstance(record, kind) and which(record):
                record = msgspec.structs.replace(record, **fields)
            writer.add(record)
        for record in more:
            writer.add(record)
        writer.seal()
    return target
