"""Just enough D-Bus to talk to systemd: calls and their answers, and signals that come between.

A library would cost each command that an engine calls with --systemd-cgroup tens of milliseconds
to import; the protocol's part that is needed here is this page.
"""

from __future__ import annotations

import os
import struct
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM, socket  # the package takes 5 ms to import

from woodfrog.errors import WoodfrogError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Typed = tuple[str, Any]  # signature and value: what a variant holds

_CALL, _RETURN, _ERROR, _SIGNAL = 1, 2, 3, 4
_PATH, _INTERFACE, _MEMBER, _ERROR_NAME, _REPLY_SERIAL, _DESTINATION, _SIGNATURE = (
    1, 2, 3, 4, 5, 6, 8,
)  # fmt: skip
_HEADER_TYPES = {_PATH: "o", _REPLY_SERIAL: "u", _SIGNATURE: "g"}
_FIXED = {"y": "B", "b": "I", "n": "h", "q": "H", "i": "i", "u": "I", "x": "q", "t": "Q", "d": "d"}
_MOST = 1 << 27  # bytes in a message, by the specification


class DBusError(WoodfrogError):
    """The other side's answer is an error."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text or name)
        self.name = name


def split(signature: str) -> list[str]:
    """Return the single complete types of a signature."""
    found = []
    while signature:
        end = _end(signature, 0)
        found.append(signature[:end])
        signature = signature[end:]
    return found


def _end(signature: str, at: int) -> int:
    if signature[at] == "a":
        return _end(signature, at + 1)
    if signature[at] not in "({":
        return at + 1
    at += 1
    while signature[at] not in ")}":
        at = _end(signature, at)
    return at + 1


def _alignment(kind: str) -> int:
    if kind[0] in _FIXED:
        return struct.calcsize(_FIXED[kind[0]])
    return {"g": 1, "v": 1, "(": 8, "{": 8}.get(kind[0], 4)


def _pad(data: bytearray, alignment: int) -> None:
    data += bytes(-len(data) % alignment)


def put(data: bytearray, kind: str, value: Any) -> None:
    """Append one value of a single complete type."""
    _pad(data, _alignment(kind))
    code = kind[0]
    if code in _FIXED:
        data += struct.pack("<" + _FIXED[code], value)
    elif code in "so":
        text = value.encode()
        data += struct.pack("<I", len(text)) + text + b"\0"
    elif code == "g":
        data += bytes([len(value)]) + value.encode() + b"\0"
    elif code == "v":
        put(data, "g", value[0])
        put(data, *value)
    elif code in "({":
        for member_kind, member in zip(split(kind[1:-1]), value, strict=True):
            put(data, member_kind, member)
    else:
        place = len(data)
        data += bytes(4)
        _pad(data, _alignment(kind[1:]))
        start = len(data)
        for member in value:
            put(data, kind[1:], member)
        struct.pack_into("<I", data, place, len(data) - start)


def take(data: bytes, at: int, kind: str) -> tuple[Any, int]:
    """Return the value of a single complete type that stands in the data, and where it ends."""
    at += -at % _alignment(kind)
    code = kind[0]
    if code in _FIXED:
        (value,) = struct.unpack_from("<" + _FIXED[code], data, at)
        return (bool(value) if code == "b" else value), at + struct.calcsize(_FIXED[code])
    if code in "sog":
        length = data[at] if code == "g" else struct.unpack_from("<I", data, at)[0]
        at += 1 if code == "g" else 4
        return data[at : at + length].decode(), at + length + 1
    if code == "v":
        inner, at = take(data, at, "g")
        value, at = take(data, at, inner)
        return (inner, value), at
    members = []
    if code in "({":
        for member_kind in split(kind[1:-1]):
            member, at = take(data, at, member_kind)
            members.append(member)
        return tuple(members), at
    (length,) = struct.unpack_from("<I", data, at)
    at += 4
    at += -at % _alignment(kind[1:])
    end = at + length
    while at < end:
        member, at = take(data, at, kind[1:])
        members.append(member)
    return members, at


def message(serial: int, fields: dict[int, str], signature: str, values: tuple[Any, ...]) -> bytes:
    """Return a method call as bytes."""
    body = bytearray()
    for kind, value in zip(split(signature), values, strict=True):
        put(body, kind, value)
    if signature:
        fields = fields | {_SIGNATURE: signature}
    data = bytearray(struct.pack("<cBBBII", b"l", _CALL, 0, 1, len(body), serial))
    header = [(field, (_HEADER_TYPES.get(field, "s"), value)) for field, value in fields.items()]
    put(data, "a(yv)", header)
    _pad(data, 8)
    return bytes(data + body)


class Message:
    """One message from the other side."""

    def __init__(self, kind: int, fields: dict[int, Any], values: list[Any]) -> None:
        self.kind = kind
        self.member = fields.get(_MEMBER)
        self.answers = fields.get(_REPLY_SERIAL)
        self.error = fields.get(_ERROR_NAME, "")
        self.values = values


class Connection:
    """A connection to a bus, or straight to a service; held by a `with` block."""

    def __init__(self, path: str, seconds: float, *, is_bus: bool) -> None:
        self._socket = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
        self._serial = 0
        self._received = bytearray()
        self.signals: list[Message] = []
        self.is_bus = is_bus
        try:
            self._socket.settimeout(seconds)
            self._socket.connect(path)
            self._authenticate()
            if is_bus:
                bus = "org.freedesktop.DBus"
                self.call((bus, "/org/freedesktop/DBus", bus), "Hello")
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()

    def _authenticate(self) -> None:
        """Show who we are: the kernel tells the other side our user."""
        self._socket.sendall(b"\0AUTH EXTERNAL %s\r\n" % str(os.geteuid()).encode().hex().encode())
        answer = b""
        while not answer.endswith(b"\r\n"):
            byte = self._socket.recv(1)
            if not byte:
                raise ConnectionError("it hung up")
            answer += byte
        if not answer.startswith(b"OK "):
            raise PermissionError("it doesn't take our user")
        self._socket.sendall(b"BEGIN\r\n")

    def call(
        self, target: tuple[str, str, str], member: str, signature: str = "", *values: Any
    ) -> list[Any]:
        """Call a method of (service, object, interface) and return its answer's values."""
        service, path, interface = target
        self._serial += 1
        fields = {_PATH: path, _INTERFACE: interface, _MEMBER: member}
        if self.is_bus:
            fields[_DESTINATION] = service
        self._socket.sendall(message(self._serial, fields, signature, values))
        while True:
            found = self._receive()
            if found.kind == _SIGNAL:
                self.signals.append(found)
            elif found.answers == self._serial:
                if found.kind == _ERROR:
                    raise DBusError(found.error, str(found.values[0]) if found.values else "")
                return found.values

    def wait(self, fits: Callable[[Message], bool]) -> Message:
        """Wait for a signal, which may have come already."""
        for found in self.signals:
            if fits(found):
                return found
        while True:
            found = self._receive()
            if found.kind == _SIGNAL and fits(found):
                return found

    def _receive(self) -> Message:
        start = self._read(16)
        order = "<" if start[:1] == b"l" else ">"
        if order == ">":
            raise ConnectionError("it speaks big-endian")
        body_length, _, fields_length = struct.unpack_from("<III", start, 4)
        if body_length + fields_length > _MOST:
            raise ConnectionError("its message is too long")
        header = fields_length + -fields_length % 8
        data = start + self._read(header + body_length)
        listed, _ = take(data, 12, "a(yv)")
        fields = {field: value for field, (_, value) in listed}
        values, at = [], 0
        body = data[16 + header :]
        for kind in split(fields.get(_SIGNATURE, "")):
            value, at = take(body, at, kind)
            values.append(value)
        return Message(start[1], fields, values)

    def _read(self, count: int) -> bytes:
        while len(self._received) < count:
            more = self._socket.recv(65536)
            if not more:
                raise ConnectionError("it hung up")
            self._received += more
        found = bytes(self._received[:count])
        del self._received[:count]
        return found
