"""The base classes of all records."""

import msgspec


class Record(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"
):
    """One immutable fact about a container. Its fields are the on-disk format."""


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A group of fields within records."""


class Tagged(msgspec.Struct):
    """What tells a record's kind, without its class."""

    kind: str


def tag_of(record: Record) -> str:
    """Return the name that images have for a record's kind."""
    return str(record.__struct_config__.tag)
