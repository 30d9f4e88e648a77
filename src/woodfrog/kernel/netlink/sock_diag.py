"""sock_diag(7): what the kernel knows of sockets, in the network namespace of a process."""

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST, _NLM_F_DUMP = 1, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_HEADER = struct.Struct("<IHHII")
_ATTRIBUTE = struct.Struct("<HH")
_CLONE_NEWNET = 0x40000000

# linux/unix_diag.h
_UDIAG_SHOW = 0x01 | 0x02 | 0x04 | 0x08 | 0x10  # name, vfs, peer, icons, rqlen
_UNIX_NAME, _UNIX_VFS, _UNIX_PEER, _UNIX_ICONS, _UNIX_RQLEN, _UNIX_SHUTDOWN = 0, 1, 2, 3, 4, 6

TCP_ESTABLISHED, TCP_CLOSE, TCP_LISTEN = 1, 7, 10


class UnixSocket(NamedTuple):
    """One AF_UNIX socket; `name` as it was bound, abstract ones begin with a zero byte."""

    type: int
    state: int
    inode: int
    name: bytes
    file: tuple[int, int] | None  # inode and device of a bound path
    peer: int
    pending: tuple[int, ...]  # inodes of connections that wait to be accepted
    queued: int
    backlog: int
    shutdown: int


class InetSocket(NamedTuple):
    """One TCP socket."""

    family: int
    state: int
    inode: int
    local: tuple[bytes, int]
    remote: tuple[bytes, int]
    receive_queue: int
    send_queue: int  # for a listener: the backlog


@contextmanager
def diag_socket(pid: int) -> Iterator[socket.socket]:
    """Open a sock_diag socket in the network namespace of a process."""
    ours = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    theirs = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        HERE.call(SYS.SETNS, theirs, _CLONE_NEWNET)
        try:
            found = socket.socket(
                socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG
            )
        finally:
            HERE.call(SYS.SETNS, ours, _CLONE_NEWNET)
    finally:
        os.close(ours)
        os.close(theirs)
    with found:
        yield found


def _dump(diag: socket.socket, request: bytes) -> Iterator[memoryview]:
    """Send a dump request and yield the payload of each answer."""
    head = _HEADER.pack(
        _HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0
    )
    diag.send(head + request)
    while True:
        data = memoryview(diag.recv(1 << 18))
        while len(data) >= _HEADER.size:
            length, kind, _, _, _ = _HEADER.unpack_from(data)
            if kind == _NLMSG_DONE:
                return
            if kind == _NLMSG_ERROR:
                error = -struct.unpack_from("<i", data, _HEADER.size)[0]
                raise OSError(error, f"sock_diag: {os.strerror(error)}")
            yield data[_HEADER.size : length]
            data = data[(length + 3) & ~3 :]


def _attributes(data: memoryview) -> dict[int, bytes]:
    found = {}
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        found[kind] = bytes(data[_ATTRIBUTE.size : length])
        data = data[(length + 3) & ~3 :]
    return found


def unix_sockets(diag: socket.socket) -> list[UnixSocket]:
    """List all AF_UNIX sockets of the network namespace."""
    request = struct.pack("<BBHIIIII", socket.AF_UNIX, 0, 0, 0xFFFFFFFF, 0, _UDIAG_SHOW, 0, 0)
    found = []
    for answer in _dump(diag, request):
        _, kind, state, _, inode = struct.unpack_from("<BBBBI", answer)
        attributes = _attributes(answer[16:])
        vfs = attributes.get(_UNIX_VFS)
        icons = attributes.get(_UNIX_ICONS, b"")
        queued, backlog = struct.unpack("<2I", attributes.get(_UNIX_RQLEN, bytes(8)))
        found.append(
            UnixSocket(
                type=kind,
                state=state,
                inode=inode,
                name=attributes.get(_UNIX_NAME, b""),
                file=struct.unpack("<2I", vfs) if vfs else None,
                peer=int.from_bytes(attributes.get(_UNIX_PEER, b""), "little"),
                pending=struct.unpack(f"<{len(icons) // 4}I", icons),
                queued=queued,
                backlog=backlog,
                shutdown=int.from_bytes(attributes.get(_UNIX_SHUTDOWN, b""), "little"),
            )
        )
    return found


def tcp_sockets(diag: socket.socket) -> list[InetSocket]:
    """List all TCP sockets of the network namespace, of both families."""
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        # struct inet_diag_req_v2: family, protocol, extensions, states, and an empty id.
        request = struct.pack("<BBBBI48x", family, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF)
        for answer in _dump(diag, request):
            state = answer[1]
            local_port, remote_port = struct.unpack_from(">2H", answer, 4)
            size = 4 if family == socket.AF_INET else 16
            local, remote = bytes(answer[8 : 8 + size]), bytes(answer[24 : 24 + size])
            _, receive, send, _, inode = struct.unpack_from("<5I", answer, 52)
            found.append(
                InetSocket(
                    family=family,
                    state=state,
                    inode=inode,
                    local=(local, local_port),
                    remote=(remote, remote_port),
                    receive_queue=receive,
                    send_queue=send,
                )
            )
    return found
