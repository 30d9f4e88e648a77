"""sock_diag(7): what the kernel knows of sockets, in the network namespace of a process."""

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from woodfrog.kernel.netlink.messages import (
    NLM_F_ACK,
    NLM_F_DUMP,
    answers,
    attributes_of,
    message,
    socket_at,
    socket_in,
)

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY, _TCPDIAG_GETSOCK = 20, 18

# linux/unix_diag.h
_UDIAG_SHOW = 0x01 | 0x02 | 0x04 | 0x08 | 0x10  # name, vfs, peer, icons, rqlen
_UNIX_NAME, _UNIX_VFS, _UNIX_PEER, _UNIX_ICONS, _UNIX_RQLEN, _UNIX_SHUTDOWN = 0, 1, 2, 3, 4, 6

# linux/inet_diag.h
# With INFO, which we have no use for, come the keys of MD5SIG.
_INET_DIAG_INFO, _INET_DIAG_SHUTDOWN, _INET_DIAG_MD5SIG = 2, 8, 18
_NO_COOKIE = b"\xff" * 8
_TIMEWAIT_TIMER = 3
_TCP_EXTENSIONS = 1 << _INET_DIAG_SHUTDOWN - 1 | 1 << _INET_DIAG_INFO - 1
_MD5SIG = struct.Struct("<BBH16s80s")  # struct tcp_diag_md5sig

# net/tcp_states.h
TCP_ESTABLISHED, TCP_SYN_SENT, TCP_SYN_RECV, TCP_FIN_WAIT1, TCP_FIN_WAIT2 = 1, 2, 3, 4, 5
TCP_TIME_WAIT, TCP_CLOSE, TCP_CLOSE_WAIT, TCP_LAST_ACK, TCP_LISTEN, TCP_CLOSING = range(6, 12)
# Of a connection without an inode that nobody has accepted yet: an orphan is in none of them.
NOT_ACCEPTED = (TCP_ESTABLISHED, TCP_SYN_RECV, TCP_CLOSE_WAIT)


class UnixSocket(msgspec.Struct, frozen=True):
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


class Md5Key(msgspec.Struct, frozen=True):
    """A key of TCP_MD5SIG, for peers with an address that begins with some bits."""

    address: bytes
    prefix: int
    key: bytes


class InetSocket(msgspec.Struct, frozen=True):
    """One TCP socket; of an orphan, or one that nobody has accepted yet, the inode is 0."""

    family: int
    state: int
    inode: int
    local: tuple[bytes, int]
    remote: tuple[bytes, int]
    receive_queue: int
    send_queue: int  # for a listener: the backlog
    shutdown: int  # 1: for reading, 2: for writing
    has_ended: bool  # all that is left is that the kernel remembers it, for a minute
    md5_keys: tuple[Md5Key, ...] = ()

    @property
    def is_orphan(self) -> bool:
        """Tell whether it is closed, and goes on without a program to bring what it was given."""
        return self.inode == 0 and self.state not in NOT_ACCEPTED


@contextmanager
def diag_socket(pid: int) -> Iterator[socket.socket]:
    """Open a sock_diag socket in the network namespace of a process."""
    with socket_in(pid, socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG) as found:
        yield found


@contextmanager
def diag_socket_at(namespace: int) -> Iterator[socket.socket]:
    """Open one in the network namespace that a descriptor names."""
    with socket_at(namespace, socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG) as found:
        yield found


def dump(
    diag: socket.socket, request: bytes, kind: int = _SOCK_DIAG_BY_FAMILY
) -> Iterator[memoryview]:
    """Send a dump request and yield the payload of each answer."""
    diag.send(message(kind, NLM_F_DUMP, request))
    for _, payload in answers(diag, "sock_diag"):
        yield payload


def unix_sockets(diag: socket.socket) -> list[UnixSocket]:
    """List all AF_UNIX sockets of the network namespace."""
    request = struct.pack("<BBHIIIII", socket.AF_UNIX, 0, 0, 0xFFFFFFFF, 0, _UDIAG_SHOW, 0, 0)
    found = []
    for answer in dump(diag, request):
        _, kind, state, _, inode = struct.unpack_from("<BBBBI", answer)
        attributes = attributes_of(answer[16:])
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


def datagram_shutdowns(diag: socket.socket, protocol: int) -> dict[int, int]:
    """Return which directions of UDP sockets are shut down, by inode; 1: reading, 2: writing.

    Empty if the kernel doesn't tell (CONFIG_INET_UDP_DIAG).
    """
    found = {}
    for family in (socket.AF_INET, socket.AF_INET6):
        extensions = 1 << _INET_DIAG_SHUTDOWN - 1
        request = struct.pack("<BBBBI48x", family, protocol, extensions, 0, 0xFFFFFFFF)
        try:
            for answer in dump(diag, request):
                (inode,) = struct.unpack_from("<I", answer, 68)
                directions = attributes_of(answer[72:]).get(_INET_DIAG_SHUTDOWN, b"\0")[0]
                if directions:
                    found[inode] = directions
        except FileNotFoundError:
            break
    return found


def tcp_sockets(diag: socket.socket) -> list[InetSocket]:
    """List all TCP sockets of the network namespace, of both families."""
    # struct inet_diag_req: family, two lengths, extensions, an empty id, states, and a mark. The
    # kernel goes through the connections of all namespaces for each dump, which takes a millisecond
    # and more: this older request is answered for both families at once.
    request = struct.pack("<BBBB48xII", 0, 0, 0, _TCP_EXTENSIONS, 0xFFFFFFFF, 0)
    return [_inet_socket(answer) for answer in dump(diag, request, _TCPDIAG_GETSOCK)]


def tcp_socket(
    diag: socket.socket, local: tuple[bytes, int], remote: tuple[bytes, int]
) -> InetSocket | None:
    """Return what has just these ends: a TCP connection, or what remains of one."""
    family = socket.AF_INET if len(local[0]) == 4 else socket.AF_INET6
    ports = struct.pack(">2H", local[1], remote[1])
    ends = ports + local[0].ljust(16, b"\0") + remote[0].ljust(16, b"\0") + bytes(4)
    # struct inet_diag_req_v2: family, protocol, extensions, states, and an id.
    head = struct.pack("<BBBBI", family, socket.IPPROTO_TCP, _TCP_EXTENSIONS, 0, 0xFFFFFFFF)
    asked = message(_SOCK_DIAG_BY_FAMILY, NLM_F_ACK, head + ends + _NO_COOKIE)
    try:
        diag.send(asked)
        (found,) = (_inet_socket(answer) for _, answer in answers(diag, "sock_diag"))
    except FileNotFoundError:
        return None
    # Where there is none, it is the listener that would hear.
    return found if found.state != TCP_LISTEN else None


def _inet_socket(answer: memoryview) -> InetSocket:
    """Read a struct inet_diag_msg."""
    family, state, timer = answer[:3]
    local_port, remote_port = struct.unpack_from(">2H", answer, 4)
    size = 4 if family == socket.AF_INET else 16
    local, remote = bytes(answer[8 : 8 + size]), bytes(answer[24 : 24 + size])
    _, receive, send, _, inode = struct.unpack_from("<5I", answer, 52)
    attributes = attributes_of(answer[72:])
    return InetSocket(
        family=family,
        state=state,
        inode=inode,
        local=(local, local_port),
        remote=(remote, remote_port),
        receive_queue=receive,
        send_queue=send,
        shutdown=attributes.get(_INET_DIAG_SHUTDOWN, b"\0")[0],
        has_ended=timer == _TIMEWAIT_TIMER,
        md5_keys=tuple(_md5_keys(attributes.get(_INET_DIAG_MD5SIG, b""))),
    )


def _md5_keys(table: bytes | memoryview) -> Iterator[Md5Key]:
    for family, prefix, length, address, key in _MD5SIG.iter_unpack(table):
        size = 4 if family == socket.AF_INET else 16
        yield Md5Key(address[:size], prefix, key[:length])
