"""unix(7): pairs with what is queued, listeners by path or abstract name, datagram sockets."""

import os
import select
import socket
import stat
import struct
from collections.abc import Iterable
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
_MOST_EMPTY = 64
_PIECE = 512


class UnixSocketFile(FileRecord, frozen=True, tag="unix-socket"):
    """A socket. `pair` is the same for both ends of a connection, 0 if it has no peer.

    `queue` is what waits to be read, in one piece for a stream; `takes_more` if it can be written
    to; `reset` if its peer was outside, and it is restored as closed by it.
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
    takes_more: bool
    reset: bool
    options: list[Option]

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        return _is_socket(file) and bool(world.sockets.unix(file.stat.st_ino))

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
            takes_more=_takes_more(file.descriptor),
            reset=outside,
            options=options,
        )

    def restore(self, making: Making) -> int:
        program = making.program
        fd: int
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
        set_flags(program, fd, self.flags)
        return fd

    def _restore_end(self, making: Making) -> int:
        """Make this end of a connection, or take it if the other end was made before."""
        program = making.program
        key = ("unix", self.pair)
        waiting = making.shared(key) if self.pair else None
        if waiting is None:
            ours, theirs = making.pair(self.type)
            if self.pair:
                # All else follows when the other end is known.
                making.share(key, (theirs, ours, self))
                return ours
            self._fill(program, ours, theirs, sender_takes_more=True)
            socket_options.restore(program, ours, self.options)
            _shut_down(program, ours, self.shutdown)
            syscalls.close(program, theirs)
            return ours
        making.share(key, None)
        return self._join(program, *waiting)

    def _join(self, program: Program, ours: int, theirs: int, other: Self) -> int:
        """Complete a pair whose other end is `other`."""
        self._fill(program, ours, theirs, sender_takes_more=other.takes_more)
        other._fill(program, theirs, ours, sender_takes_more=self.takes_more)
        for fd, end in ((ours, self), (theirs, other)):
            socket_options.restore(program, fd, end.options)
            _shut_down(program, fd, end.shutdown)
        return ours

    def _fill(self, program: Program, ours: int, theirs: int, *, sender_takes_more: bool) -> None:
        """Queue what waits at this end: it was sent by the other."""
        if not self.queue:
            return
        _set_send_buffer(program, theirs, _LARGE_BUFFER)
        packets: Iterable[bytes] = self.queue
        if self.type == socket.SOCK_STREAM and not sender_takes_more:
            # Many small pieces take as much of the sender's buffer as the original ones did or
            # more: it stays full.
            data = b"".join(self.queue)
            packets = (data[at : at + _PIECE] for at in range(0, len(data), _PIECE))
        for packet in packets:
            sent = program.call(SYS.SENDTO, theirs, packet, len(packet), socket.MSG_DONTWAIT, 0, 0)
            program.expect(sent, len(packet))
        with socket.socket(socket.AF_UNIX, self.type) as fresh:
            _set_send_buffer(
                program, theirs, fresh.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 2
            )


def _set_send_buffer(program: Program, fd: int, size: int) -> None:
    so_sndbufforce = 32
    value = size.to_bytes(4, "little")
    program.call(SYS.SETSOCKOPT, fd, socket.SOL_SOCKET, so_sndbufforce, value, 4)


def _shut_down(program: Program, fd: int, directions: int) -> None:
    if directions:
        program.may_fail(program.call(SYS.SHUTDOWN, fd, directions - 1))


def _takes_more(descriptor: int) -> bool:
    """Tell whether a socket can be written to."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    events = poll.poll(0)
    return bool(events and events[0][1] & select.POLLOUT)


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
    empty = 0
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
            if not data and kind == socket.SOCK_STREAM:
                break  # the other end is closed
            empty = empty + 1 if not data else 0
            if empty > _MOST_EMPTY:
                break  # likewise
            if address and kind == socket.SOCK_DGRAM:
                raise UnsupportedResource(
                    f"{what} has datagrams of senders with names, which cannot be saved yet"
                )
            packets.append(data)
    finally:
        one.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, offset)
    while kind == socket.SOCK_SEQPACKET and packets and not packets[-1]:
        # A closed end looks like empty messages without end.
        packets.pop()
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
