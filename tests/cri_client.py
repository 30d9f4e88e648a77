"""Calls to Kubernetes' container runtime interface, as a kubelet makes them.

Messages are protobuf's, given and taken as dicts of field numbers: no generated code is needed.
The calls are made by a process of its own, since gRPC's threads and forks don't go together.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

Message = dict[int, Any]


class CriError(Exception):
    """The runtime refused a call; the text is its own."""


class CriClient:
    """A connection to a runtime's socket."""

    def __init__(self, socket: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(socket)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, method: str, request: Message) -> Message:
        """Make one call of the RuntimeService."""
        given, taken = self._process.stdin, self._process.stdout
        assert given is not None
        assert taken is not None
        given.write(f"{method} {encode(request).hex()}\n")
        given.flush()
        kind, _, answer = taken.readline().rstrip("\n").partition(" ")
        if kind != "done":
            raise CriError(f"{method}: {answer}")
        return decode(bytes.fromhex(answer))

    def close(self) -> None:
        """Hang up."""
        self._process.communicate()


def encode(message: Message) -> bytes:
    """Return a message as bytes; a list is a repeated field, a dict a message."""
    out = b""
    for number, value in message.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, int):
                out += _varint(number << 3) + _varint(one & 0xFFFFFFFFFFFFFFFF)
                continue
            if isinstance(one, dict):
                one = encode(one)
            data = one.encode() if isinstance(one, str) else one
            out += _varint(number << 3 | 2) + _varint(len(data)) + data
    return out


def decode(data: bytes) -> Message:
    """Return a message's fields: numbers, and bytes for whatever else; the last one of each."""
    found: Message = {}
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(data):
        key = varint()
        value: int | bytes = varint()
        if key & 7 == 2:
            assert isinstance(value, int)
            end = position + value
            value, position = data[position:end], end
        else:
            assert key & 7 == 0
        found[key >> 3] = value
    return found


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _serve(socket: str) -> None:
    """Make the calls that stand on standard input."""
    import grpc

    def as_it_is(data: bytes) -> bytes:
        return data

    with grpc.insecure_channel(f"unix://{socket}") as channel:
        for line in sys.stdin:
            method, data = line.rstrip("\n").split(" ")
            call = channel.unary_unary(f"/runtime.v1.RuntimeService/{method}", as_it_is, as_it_is)
            try:
                answer = "done " + call(bytes.fromhex(data), timeout=60).hex()
            except grpc.RpcError as error:
                answer = f"refused {error.code().name}: {error.details()}".replace("\n", " ")
            sys.stdout.write(answer + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    _serve(sys.argv[1])
