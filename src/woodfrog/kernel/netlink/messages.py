"""netlink(7): messages and their attributes, and sockets in a process's network namespace."""

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.namespaces import CLONE_NEWNET

if TYPE_CHECKING:
    from _socket import socket as raw_socket

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_CREATE, NLM_F_APPEND = 0x400, 0x800
NLMSG_ERROR, NLMSG_DONE = 2, 3
HEADER = struct.Struct("<IHHII")  # length, type, flags, sequence, port

_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 270, 10, 11
_ACK_IS_SHORT, _ACK_HAS_ATTRIBUTES, _MESSAGE = 0x100, 0x200, 1
_ATTRIBUTE = struct.Struct("<HH")
_RTM_GETNSID, _NETNSA_NSID, _NETNSA_FD = 90, 1, 3
_NESTED = 0x8000


@contextmanager
def socket_in(pid: int, family: int, kind: int, protocol: int) -> Iterator[socket.socket]:
    """Open a socket in the network namespace of a process."""
    with socket_of(pid, family, kind, protocol) as found:
        yield found


def socket_of(pid: int, family: int, kind: int, protocol: int) -> socket.socket:
    """Return a socket in the network namespace of a process."""
    theirs = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return socket_at(theirs, family, kind, protocol)
    finally:
        os.close(theirs)


def socket_at(namespace: int, family: int, kind: int, protocol: int) -> socket.socket:
    """Open a socket in the network namespace that a descriptor names."""
    ours = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        HERE.call(SYS.SETNS, namespace, CLONE_NEWNET)
        try:
            return socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
        finally:
            HERE.call(SYS.SETNS, ours, CLONE_NEWNET)
    finally:
        os.close(ours)


def message(kind: int, flags: int, payload: bytes, sequence: int = 1) -> bytes:
    """Return one request."""
    return HEADER.pack(HEADER.size + len(payload), kind, flags | NLM_F_REQUEST, sequence, 0) + (
        payload
    )


def attribute(kind: int, value: bytes) -> bytes:
    """Return one attribute, padded to four bytes."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """Return an attribute that holds others."""
    return attribute(kind | _NESTED, b"".join(attributes))


def attributes_of(data: memoryview) -> dict[int, bytes]:
    """Return attributes by type, of equal ones the last; raises ValueError for what can't be."""
    return dict(each_attribute(data))


def each_attribute(data: memoryview) -> Iterator[tuple[int, bytes]]:
    """Return attributes, one after the other; raises ValueError for what can't be."""
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            raise ValueError("half an attribute")
        yield kind, bytes(data[_ATTRIBUTE.size : length])
        data = data[(length + 3) & ~3 :]


def nsid(on: socket.socket, namespace: int) -> int | None:
    """Return what the network namespace of a socket calls another, by a descriptor of ours."""
    asked = bytes(4) + attribute(_NETNSA_FD, struct.pack("<I", namespace))
    on.sendall(message(_RTM_GETNSID, NLM_F_ACK, asked))
    number = -1
    for _, payload in answers(on, "looking for a network namespace"):
        (number,) = struct.unpack("<i", attributes_of(payload[4:])[_NETNSA_NSID])
    return number if number >= 0 else None


def explain(on: socket.socket) -> None:
    """Have the kernel say why it refuses something; `answers` tells it."""
    for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK):
        on.setsockopt(_SOL_NETLINK, option, 1)


def answers(on: "socket.socket | raw_socket", what: str) -> Iterator[tuple[int, memoryview]]:
    """Yield type and payload of each answer, up to the end of a dump or an acknowledgement.

    Raises OSError, naming `what`, for the kernel's refusal.
    """
    while True:
        data = memoryview(on.recv(1 << 18))
        while len(data) >= HEADER.size:
            length, kind, flags, _, _ = HEADER.unpack_from(data)
            if kind == NLMSG_DONE:
                return
            if kind == NLMSG_ERROR:
                error = -struct.unpack_from("<i", data, HEADER.size)[0]
                if error == 0:
                    return
                reason = os.strerror(error)
                if flags & _ACK_HAS_ATTRIBUTES and flags & _ACK_IS_SHORT:
                    told = attributes_of(data[2 * HEADER.size + 4 : length]).get(_MESSAGE, b"")
                    reason += f" ({told.rstrip(bytes(1)).decode(errors='replace')})" if told else ""
                raise OSError(error, f"{what}: {reason}")
            yield kind, data[HEADER.size : length]
            data = data[(length + 3) & ~3 :]
