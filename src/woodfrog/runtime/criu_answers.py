"""CRIU's RPC, as far as engines ask what CRIU can do before they call a runtime.

A request is one packet with one protobuf message; its answer is another.
"""

from __future__ import annotations

import os

from woodfrog.runtime.criu_files import varint

_FEATURE_CHECK = 9
_VERSION = 10

# The version that engines shall see: podman asks for 3.11, and for 3.16.3 for pods.
_MAJOR, _MINOR = 3, 19
_REFUSAL = b"this is woodfrog in CRIU's place: it answers for a version, and does nothing else"
_MOST_BYTES = 1 << 16


def serve(descriptor: int) -> None:
    """Answer requests on a socket of packets until the other side closes it."""
    while request := os.read(descriptor, _MOST_BYTES):
        os.write(descriptor, answer(_type(request)))


def answer(kind: int) -> bytes:
    """Return the response to a request of this type."""
    if kind == _VERSION:
        version = _number(1, _MAJOR) + _number(2, _MINOR)
        return _number(1, kind) + _number(2, True) + _bytes(10, version)
    if kind == _FEATURE_CHECK:
        # None of the features that are asked for: memory tracking, lazy pages, pidfds.
        return _number(1, kind) + _number(2, True) + _bytes(8, b"")
    return _number(1, kind) + _number(2, False) + _bytes(9, _REFUSAL)


def _type(request: bytes) -> int:
    """Return a request's type, its first field and a small number; 0 if there is none."""
    return request[1] if len(request) >= 2 and request[0] == 1 << 3 and request[1] < 0x80 else 0


def _number(field: int, value: int) -> bytes:
    return bytes([field << 3]) + varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return bytes([field << 3 | 2]) + varint(len(value)) + value
