"""unix(7): pairs with what is queued, listeners by path or abstract name, datagram sockets."""

import os
import socket
import stat
import struct
from typing import Self

from woodfrog.errors import UnsupportedResource
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.netlink.sock_diag import TCP_ESTABLISHED, TCP_LISTEN
from woodfrog.remote.program import Program
from woodfrog.resources.files import socket_options
from woodfrog.resources.files.base import FileRecord, Making, OpenFile, World, set_flags
from woodfrog.resources.files.socket_options import Option

_SO_PEEK_OFF = 42
_LARGE_BUFFER = 1 << 26


class UnixSocketFile(FileRecord, frozen=True, tag="unix-socket"):
    """A socket. `pair` is the same for both ends of a connection, 0 if it has no peer.

    `queue` is what waits to be read, in one piece for a stream.
    """

    type: int
    state: int
    inode: int
    pair: int
    name: bytes
    name_mode: int
    name_owner: tuple[int, int]
    backlog: int
    shutdown: int
    queue: list[bytes]
    options: list[Option]

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        return bool(world.sockets.unix(file.stat.st_ino)) if _is_socket(file) else False

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        inode = file.stat.st_ino
        found = world.sockets.unix(inode)
        what = f"unix socket {os.fsdecode(found.name) or 'without a name'}"
        if found.pending and not world.unix_close:
            raise UnsupportedResource(
                f"{what} has connections that nobody has accepted, which cannot be saved yet",
                hint="--ext-unix-close restores it without them",
            )
        outside = bool(found.peer) and world.sockets.is_outside(inode)
        if outside and not world.unix_close:
            raise UnsupportedResource(
                f"{what} is connected to a process outside the container",
                hint="--ext-unix-close restores it as closed by the other side",
            )
        name = found.name if found.name[:1] == b"\0" else found.name.rstrip(b"\0")
        mode, owner = _bound_path(name, file, world)
        duplicate = os.dup(file.descriptor)
        with socket.socket(fileno=duplicate) as one:
            options = socket_options.collect(one)
            listening = found.state == TCP_LISTEN
            queue = [] if listening or outside else _peek(one, found.type, what)
        return cls(
            id=number,
            flags=file.flags,
            type=found.type,
            state=found.state,
            inode=inode,
            pair=0 if outside or not found.peer else min(inode, found.peer),
            name=name,
            name_mode=mode,
            name_owner=owner,
            backlog=found.backlog if listening else 0,
            shutdown=found.shutdown,
            queue=queue,
            options=options,
        )

    def restore(self, making: Making) -> int:
        program = making.program
        if self.state == TCP_LISTEN or (not self.pair and self.state != TCP_ESTABLISHED):
            fd = program.call(SYS.SOCKET, socket.AF_UNIX, self.type, 0)
            if self.name:
                _bind(program, fd, self)
            socket_options.restore(program, fd, self.options)
            if self.state == TCP_LISTEN:
                program.call(SYS.LISTEN, fd, self.backlog)
            if self.queue:
                _requeue(program, fd, self)
        else:
            fd = self._restore_end(making)
        if self.shutdown and self.state == TCP_ESTABLISHED and not self.pair:
            program.may_fail(program.call(SYS.SHUTDOWN, fd, self.shutdown - 1))
        set_flags(program, fd, self.flags)
        return fd

    def _restore_end(self, making: Making) -> int:
        """Make this end of a connection, or take it if the other end was made before."""
        program = making.program
        waiting = making.shared(("unix", self.pair)) if self.pair else None
        if waiting is not None:
            ours, theirs, shutdown = waiting
            making.share(("unix", self.pair), None)
        else:
            ours, theirs = making.pair(self.type)
            shutdown = 0
        # What waits at this end was sent by the other.
        if self.queue:
            size = _LARGE_BUFFER.to_bytes(4, "little")
            program.call(SYS.SETSOCKOPT, theirs, socket.SOL_SOCKET, 32, size, 4)
            for packet in self.queue:
                sent = program.call(
                    SYS.SENDTO, theirs, packet, len(packet), socket.MSG_DONTWAIT, 0, 0
                )
                program.expect(sent, len(packet))
        socket_options.restore(program, ours, self.options)
        if waiting is not None or not self.pair:
            for side, how in ((ours, self.shutdown), (theirs, shutdown)):
                if how:
                    program.may_fail(program.call(SYS.SHUTDOWN, side, how - 1))
        if not self.pair:
            syscalls.close(program, theirs)
        elif waiting is None:
            making.share(("unix", self.pair), (theirs, ours, self.shutdown))
        return ours  # type: ignore[no-any-return]


def _is_socket(file: OpenFile) -> bool:
    return stat.S_ISSOCK(file.stat.st_mode) and file.target.startswith(b"socket:")


def _bound_path(name: bytes, file: OpenFile, world: World) -> tuple[int, tuple[int, int]]:
    """Return mode and owner of the path that a socket is bound to."""
    if not name or name[:1] == b"\0":
        return 0, (0, 0)
    if name[:1] != b"/":
        raise UnsupportedResource(
            f"unix socket {os.fsdecode(name)} is bound to a relative path,"
            " which cannot be saved yet"
        )
    try:
        found = os.lstat(os.fsencode(f"/proc/{world.init}/root") + name)
    except OSError:
        return 0, (0, 0)  # unlinked since: it is bound, and unlinked, again
    return stat.S_IMODE(found.st_mode), (found.st_uid, found.st_gid)


def _peek(one: socket.socket, kind: int, what: str) -> list[bytes]:
    """Read what waits at a socket and leave it there."""
    packets: list[bytes] = []
    flags = socket.MSG_PEEK | socket.MSG_DONTWAIT
    offset = one.getsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF)
    one.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, 0)
    try:
        while True:
            try:
                data, rights, _, address = one.recvmsg(
                    1 << 20, socket.CMSG_SPACE(253 * 4), flags | socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                break
            except OSError:
                break  # not connected: nothing can wait
            if _close_received(rights):
                raise UnsupportedResource(
                    f"descriptors are in flight in the queue of {what}, which cannot be saved yet"
                )
            if not data and kind != socket.SOCK_DGRAM:
                break  # the other end is closed
            if address and kind == socket.SOCK_DGRAM:
                raise UnsupportedResource(
                    f"{what} has datagrams of senders with names, which cannot be saved yet"
                )
            packets.append(data)
    finally:
        one.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, offset)
    return [b"".join(packets)] if kind == socket.SOCK_STREAM and packets else packets


def _close_received(rights: list[tuple[int, int, bytes]]) -> bool:
    found = False
    for level, kind, data in rights:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found = True
            for (fd,) in struct.iter_unpack("<i", data[: len(data) // 4 * 4]):
                os.close(fd)
    return found


def _address(name: bytes) -> bytes:
    # A path ends in a zero byte, an abstract name is as long as it is.
    tail = b"" if name[:1] == b"\0" else b"\0"
    return struct.pack("<H", socket.AF_UNIX) + name + tail


def _bind(program: Program, fd: int, record: UnixSocketFile) -> None:
    """Bind to a name; a socket file that stands there was this one's, from before."""
    address = _address(record.name)
    by_path = record.name[:1] == b"/"
    if by_path:
        program.may_fail(program.call(SYS.UNLINK, record.name))
    program.call(SYS.BIND, fd, address, len(address))
    if by_path and record.name_mode:
        program.call(SYS.CHMOD, record.name, record.name_mode)
        program.call(SYS.LCHOWN, record.name, *record.name_owner)
    elif by_path:
        program.call(SYS.UNLINK, record.name)


def _requeue(program: Program, fd: int, record: UnixSocketFile) -> None:
    """Send datagrams without a sender's name to a socket that has only a name of its own."""
    sender = program.call(SYS.SOCKET, socket.AF_UNIX, record.type, 0)
    address = _address(record.name)
    for packet in record.queue:
        sent = program.call(
            SYS.SENDTO, sender, packet, len(packet), socket.MSG_DONTWAIT, address, len(address)
        )
        program.expect(sent, len(packet))
    syscalls.close(program, sender)
