"""Where what lies in checkpoint.img: the header page and the trailer, and their limits.

    header page | page store | records | index | trailer

docs/image-format.md describes it byte by byte.
"""

import struct
from typing import NamedTuple

import msgspec
from xxhash import xxh3_128_digest as checksum

from woodfrog.errors import ImageError

IMAGE_NAME = "checkpoint.img"

MAGIC = b"WOODFROG"
END_MAGIC = b"GORFDOOW"
MAJOR, MINOR = 1, 0

PAGE = 4096
CHUNK = 1 << 20

# What a file may ask us to allocate, before anything in it is believed. An index of the largest
# page store has 320 MiB, and has to be there: a file can't claim more than its own length.
MOST_RECORD_BYTES = 1 << 30
MOST_PAGE_BYTES = 16 << 40

# A store offset from here on leads into the store of the parent image, from twice that on into that
# of the parent's parent, and so on: no store is longer.
ANCESTOR = MOST_PAGE_BYTES
MOST_ANCESTORS = 64
PARENT_NAME = "parent"

# Magic, major, minor and the length of the facts; then the checksum of those and of the facts.
_HEADER_START = struct.Struct("<8sHHI")
_FACTS_AT = _HEADER_START.size + 16
# Bytes of pages, of the page store in the file, of records, of the index; number of records;
# checksums of records and index. Then the trailer's own checksum and the end magic.
_TRAILER = struct.Struct("<5Q16s16s")
TRAILER_BYTES = _TRAILER.size + 16 + len(END_MAGIC)
# Of each chunk: its length in the file and its checksum there.
INDEX_ENTRY = struct.Struct("<I16s")


class Facts(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """What the header tells about an image besides its version."""

    made: int
    """Seconds since 1970, UTC."""
    hostname: str
    kernel: str
    machine: str
    woodfrog: str
    compression: str
    parent: str = ""
    """Digest of the image that this one needs, in hexadecimal; empty if it stands alone."""


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """When, where and by what an image was made, and how large it is."""

    version: tuple[int, int]
    made: int
    hostname: str
    kernel: str
    machine: str
    woodfrog: str
    compression: str
    parent: str
    page_bytes: int
    """Bytes of memory in the page store, before compression."""
    record_count: int
    file_bytes: int


class Trailer(NamedTuple):
    """How long the parts are, and the checksums of those that are small."""

    page_bytes: int
    stored_bytes: int
    record_bytes: int
    index_bytes: int
    record_count: int
    record_checksum: bytes
    index_checksum: bytes

    @property
    def records_at(self) -> int:
        """Return the file offset of the first record."""
        return PAGE + self.stored_bytes

    @property
    def index_at(self) -> int:
        """Return the file offset of the index."""
        return self.records_at + self.record_bytes

    @property
    def file_bytes(self) -> int:
        """Return the length of the whole file, to the byte."""
        return self.index_at + self.index_bytes + TRAILER_BYTES


def chunk_count(page_bytes: int) -> int:
    """Return how many chunks so many bytes of pages make."""
    return -(-page_bytes // CHUNK)


def encode_header(facts: Facts) -> bytes:
    """Return the header page."""
    encoded = msgspec.msgpack.encode(facts)
    start = _HEADER_START.pack(MAGIC, MAJOR, MINOR, len(encoded))
    page = start + checksum(start + encoded) + encoded
    if len(page) > PAGE:
        raise ValueError("header facts don't fit into a page")
    return page.ljust(PAGE, b"\0")


def decode_header(page: bytes) -> tuple[tuple[int, int], Facts]:
    """Return the version and the facts of a header page: magic, version, checksum in that order."""
    if not page.startswith(MAGIC):
        raise ImageError(f"{IMAGE_NAME} is not a woodfrog image: it doesn't begin with its magic")
    if len(page) < PAGE:
        raise ImageError(f"{IMAGE_NAME} is truncated: it ends in the header")
    _, major, minor, length = _HEADER_START.unpack_from(page)
    if major != MAJOR or minor > MINOR:
        raise ImageError(
            f"{IMAGE_NAME} has format version {major}.{minor}; this woodfrog reads {MAJOR}.{MINOR}",
            hint="restore it with the woodfrog that made it, or with a newer one than this",
        )
    end = _FACTS_AT + length
    if end > PAGE:
        raise ImageError(f"{IMAGE_NAME} is damaged: its header has an impossible length")
    start, facts = page[: _HEADER_START.size], page[_FACTS_AT:end]
    if checksum(start + facts) != page[_HEADER_START.size : _FACTS_AT]:
        raise ImageError(f"{IMAGE_NAME} is damaged: the header's checksum doesn't fit")
    if page.count(0, end) != PAGE - end:
        raise ImageError(f"{IMAGE_NAME} is damaged: the padding of the header isn't zero")
    try:
        return (major, minor), msgspec.msgpack.decode(facts, type=Facts)
    except msgspec.MsgspecError as error:
        raise ImageError(f"{IMAGE_NAME} has a wrong header: {error}") from error


def digest(header_page: bytes, encoded_trailer: bytes) -> str:
    """Return by what an image is named: all else in it has its checksum in one of these."""
    return checksum(header_page + encoded_trailer).hex()


def encode_trailer(trailer: Trailer) -> bytes:
    """Return the bytes that end the file."""
    body = _TRAILER.pack(*trailer)
    return body + checksum(body) + END_MAGIC


def decode_trailer(encoded: bytes, file_bytes: int) -> Trailer:
    """Return the trailer, having checked that the parts it names make up the whole file."""
    body = encoded[: _TRAILER.size]
    if len(encoded) != TRAILER_BYTES or not encoded.endswith(END_MAGIC):
        raise ImageError(
            f"{IMAGE_NAME} is truncated, or has something after its end",
            hint="copy it again; was its checkpoint complete, and the disk not full",
        )
    if checksum(body) != encoded[_TRAILER.size : -len(END_MAGIC)]:
        raise ImageError(f"{IMAGE_NAME} is damaged: the trailer's checksum doesn't fit")
    trailer = Trailer(*_TRAILER.unpack(body))
    if trailer.record_bytes > MOST_RECORD_BYTES or trailer.page_bytes > MOST_PAGE_BYTES:
        raise ImageError(f"{IMAGE_NAME} claims to be larger than any image may be")
    if (
        trailer.page_bytes % PAGE
        or trailer.record_count > trailer.record_bytes
        or trailer.index_bytes != chunk_count(trailer.page_bytes) * INDEX_ENTRY.size
        or trailer.file_bytes != file_bytes
    ):
        raise ImageError(f"{IMAGE_NAME} is damaged: its parts don't add up to its length")
    return trailer
