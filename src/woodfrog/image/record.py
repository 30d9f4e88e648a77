"""The base class of all records."""

import msgspec


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One immutable fact about a container. Its fields are the on-disk format."""
