"""netlink(7): sockets that ask the kernel, or hear of its news."""

import os
import select
import socket
import stat
import struct
from typing import ClassVar, Self

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.netlink.messages import HEADER, NLM_F_ACK, NLM_F_REQUEST
from woodfrog.resources.files import socket_filter, socket_options
from woodfrog.resources.files.base import Row, set_flags
from woodfrog.resources.files.making import Making
from woodfrog.resources.files.open_file import OpenFile
from woodfrog.resources.files.owned import Socket, owner_of
from woodfrog.resources.files.socket_filter import SocketFilter
from woodfrog.resources.files.socket_option_table import CAP_NET_ADMIN, SOL_NETLINK
from woodfrog.resources.files.socket_options import SO_BUF_LOCK, SO_RCVBUFFORCE, Option
from woodfrog.resources.files.world import World

_ADDRESS = struct.Struct("<HxxII")  # struct sockaddr_nl
_NETLINK_ADD_MEMBERSHIP, _NETLINK_LIST_MEMBERSHIPS = 1, 9
_MOST_GROUPS = 1024
_NLMSG_NOOP = 1
_MOST_SENT = 16
_HIGHEST_PROTOCOL = 31
# NETLINK_ROUTE, NETLINK_KOBJECT_UEVENT: their news are for all.
_FOR_ALL = (0, 15)


class NetlinkSocket(Socket, frozen=True, tag="netlink-socket"):
    """A netlink socket. `port` and `peer` are 0 if it has none; `lost` if news were unread."""

    row: ClassVar[Row] = Row(
        called="netlink sockets",
        kept=("ports, groups, options, filters", "that news were lost (ENOBUFS), also unread ones"),
        refused=("with an answer that has not been read",),
    )
    type: int
    protocol: int
    port: int
    memberships: list[int]
    peer: int
    peer_mask: int
    lost: bool
    options: list[Option]
    filter: SocketFilter | None

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        if not stat.S_ISSOCK(file.stat.st_mode):
            return False
        with socket.socket(fileno=os.dup(file.descriptor)) as one:
            return bool(one.family == socket.AF_NETLINK)

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        with socket.socket(fileno=os.dup(file.descriptor)) as one:
            port, _ = one.getsockname()
            peer, peer_mask = one.getpeername()
            groups = _groups(one)
            # To read it would take the error away.
            has_error = _has_error(one)
            lost = has_error or _has_unread(one)
            if lost and not (groups or has_error):
                raise UnsupportedResource(
                    "is a netlink socket with an answer that has not been read",
                    hint="try again in a moment",
                )
            return cls(
                id=number,
                flags=file.flags,
                **owner_of(file),
                type=int(one.type),
                protocol=one.proto,
                port=port,
                memberships=groups,
                peer=peer,
                peer_mask=peer_mask,
                lost=lost,
                options=socket_options.collect(one),
                filter=socket_filter.collect(one),
            )

    def losses(self) -> dict[str, int]:
        return {"netlink sockets are restored with the word that news were lost": int(self.lost)}

    def refuse_wider(self, bounding: int) -> None:
        super().refuse_wider(bounding)
        kinds = (socket.SOCK_RAW, socket.SOCK_DGRAM)
        if self.type not in kinds or not 0 <= self.protocol <= _HIGHEST_PROTOCOL:
            raise ImageError("the image has a netlink socket of an unknown type")
        if any(not 0 < group <= _MOST_GROUPS for group in self.memberships):
            raise ImageError("the image has an impossible netlink group")
        if any(not 0 <= word < 1 << 32 for word in (self.port, self.peer, self.peer_mask)):
            raise ImageError("the image has an impossible netlink address")
        socket_options.refuse_wider(
            self.options, socket.AF_NETLINK, self.type, self.protocol, bounding
        )
        told_others = self.peer or self.peer_mask or self.memberships
        if told_others and self.protocol not in _FOR_ALL and not bounding & CAP_NET_ADMIN:
            raise UnsupportedResource(
                f"the image has a netlink socket (protocol {self.protocol}) in groups that need"
                " CAP_NET_ADMIN in the new container",
                hint="add it to process.capabilities.bounding in the bundle's config.json",
            )

    def restore(self, making: Making) -> int:
        program = making.program
        fd: int = program.call(SYS.SOCKET, socket.AF_NETLINK, self.type, self.protocol)
        socket_options.restore(program, fd, self.options, force=making.may_force_buffers)
        if self.port:
            address = _ADDRESS.pack(socket.AF_NETLINK, self.port, 0)
            program.call(SYS.BIND, fd, address, len(address))
        for group in self.memberships:
            word = group.to_bytes(4, "little")
            program.call(SYS.SETSOCKOPT, fd, SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, word, 4)
        if self.peer or self.peer_mask:
            address = _ADDRESS.pack(socket.AF_NETLINK, self.peer, self.peer_mask)
            program.call(SYS.CONNECT, fd, address, len(address))
        if self.lost and self.port:
            fd = making.settle(fd)
            program = making.program
            with socket.socket(fileno=os.dup(making.ours(fd))) as one:
                _overrun(one)
        socket_filter.restore(program, fd, self.filter)
        set_flags(program, fd, self.flags)
        return fd


def _overrun(one: socket.socket) -> None:
    """Have a socket say that it has lost news (ENOBUFS), as netlink(7) has programs expect.

    It is sent acknowledgements until there is no room for more; they stay, and mean nothing.
    """
    general = socket.SOL_SOCKET
    size = one.getsockopt(general, socket.SO_RCVBUF)
    lock = one.getsockopt(general, SO_BUF_LOCK)
    one.setsockopt(general, SO_RCVBUFFORCE, 1)
    nothing = HEADER.pack(HEADER.size, _NLMSG_NOOP, NLM_F_REQUEST | NLM_F_ACK, 0, 0)
    for _ in range(_MOST_SENT):
        if _has_error(one):
            break
        one.send(nothing, socket.MSG_DONTWAIT)
    one.setsockopt(general, SO_RCVBUFFORCE, size // 2)
    one.setsockopt(general, SO_BUF_LOCK, lock)


def _has_error(one: socket.socket) -> bool:
    poll = select.poll()
    poll.register(one.fileno(), 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _groups(one: socket.socket) -> list[int]:
    """Return the groups whose news a socket gets; the first one has the number 1."""
    bits = one.getsockopt(SOL_NETLINK, _NETLINK_LIST_MEMBERSHIPS, _MOST_GROUPS // 8)
    mask = int.from_bytes(bits, "little")
    return [number + 1 for number in range(len(bits) * 8) if mask >> number & 1]


def _has_unread(one: socket.socket) -> bool:
    try:
        one.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        return False  # nothing is there
    return True
