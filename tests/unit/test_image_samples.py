"""The format stays: its records are those of the golden schema, and old images stay readable.

After a change that is meant, WOODFROG_WRITE_SAMPLES=1 writes the schema anew (and
tests/samples/make_image.sh a sample of the new format version).
"""

import importlib
import inspect
import os
import pkgutil
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

import woodfrog.resources
from woodfrog.image import layout
from woodfrog.image.container_file import Reader
from woodfrog.image.inspect import render
from woodfrog.image.record import Record
from woodfrog.resources import catalogue

SAMPLES = Path(__file__).resolve().parent.parent / "samples"
SCHEMA = SAMPLES / "records.schema.json"
IMAGES = sorted(SAMPLES.glob("image-*"))


def kinds() -> list[type[Record]]:
    """Return all records that woodfrog knows, by their tags."""
    for module in pkgutil.walk_packages(woodfrog.resources.__path__, "woodfrog.resources."):
        importlib.import_module(module.name)

    def leaves(kind: type[Record]) -> list[type[Record]]:
        below = [leaf for child in kind.__subclasses__() for leaf in leaves(child)]
        return below or [kind]

    ours = [kind for kind in leaves(Record) if kind.__module__.startswith("woodfrog.")]
    return sorted(ours, key=lambda kind: kind.__struct_config__.tag)


def test_the_catalogue_has_all_kinds_by_their_tags() -> None:
    assert set(get_args(catalogue.all_classes())) == set(kinds())
    for kind in kinds():
        assert catalogue.record_class(kind.__struct_config__.tag) is kind


def schema() -> bytes:
    union: Any = reduce(or_, kinds())
    document = {"version": [layout.MAJOR, layout.MINOR]} | msgspec.json.schema(union)
    for kind in document["$defs"].values():
        if "description" in kind:
            # Some versions of msgspec leave it indented as it stands in the code.
            kind["description"] = inspect.cleandoc(kind["description"])
    return msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"


def test_the_records_are_those_of_this_format_version() -> None:
    if os.environ.get("WOODFROG_WRITE_SAMPLES") == "1":
        SCHEMA.write_bytes(schema())
    assert schema() == SCHEMA.read_bytes(), (
        "the records have changed: raise the version in image/layout.py, and write the schema "
        "by WOODFROG_WRITE_SAMPLES=1"
    )


def test_no_two_records_have_the_same_tag() -> None:
    tags = [kind.__struct_config__.tag for kind in kinds()]
    assert len(tags) == len(set(tags))
    assert all(tag and tag == tag.lower() for tag in tags)


def test_there_is_a_sample_of_this_format_version() -> None:
    assert SAMPLES / f"image-{layout.MAJOR}.{layout.MINOR}" in IMAGES


@pytest.mark.parametrize("directory", IMAGES, ids=lambda path: path.name)
def test_a_sample_of_each_format_version_stays_readable(directory: Path) -> None:
    with Reader(str(directory)) as reader:
        reader.verify_pages()
        records = reader.records(reduce(or_, kinds()))
        assert len(records) == reader.header.record_count
        assert "sleeper one two" in render(reader, as_json=False)
        assert '"sleeper"' in render(reader, as_json=True)
