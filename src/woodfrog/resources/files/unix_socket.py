"""unix(7): pairs with what is queued, listeners by path or abstract name, datagram sockets."""

import os
import select
import socket
import stat
from collections.abc import Mapping
from typing import ClassVar, Self

from woodfrog.errors import UnsupportedResource
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.netlink.sock_diag import TCP_ESTABLISHED, TCP_LISTEN, UnixSocket
from woodfrog.remote.program import Program
from woodfrog.resources.files import socket_options, unix_names, unix_queue
from woodfrog.resources.files.base import FileRecord, Making, OpenFile, Row, World, set_flags
from woodfrog.resources.files.socket_options import Option
from woodfrog.resources.files.unix_queue import Rights

_LARGE_BUFFER = 1 << 26
_PIECE = 512


class UnixSocketFile(FileRecord, frozen=True, tag="unix-socket"):
    """A socket. `pair` is the same for both ends of a connection, 0 if the other is not saved.

    `accepted` if it shares its name with a listener or with others that were accepted there;
    `name_alias` is the path that a bound one has now, if not its name any more;
    `peer_name` is what it is connected to. `queue` is what waits to be read, in one piece for a
    stream, and `rights` the files in flight with it; `takes_more` if it can be written to; `reset`
    if its peer was outside, and it is restored as closed by it; `broken` if its peer was closed
    without having read all.
    """

    row: ClassVar[Row] = Row(
        called="unix sockets",
        kept=(
            "connections within the container, names, modes, options",
            "what is queued, with files in flight (SCM_RIGHTS)",
            "listeners",
        ),
        refused=(
            "connected to outside, or waiting to be accepted, without `--ext-unix-close`",
            "datagrams of senders with names",
            "bound to a relative path, or in a removed directory",
            "with an error that nobody has read",
            "datagram sockets connected to one without a name",
            "in flight an epoll, timerfd or pidfd that no process has",
        ),
    )
    type: int
    state: int
    inode: int
    pair: int
    name: bytes
    name_mode: int
    name_owner: tuple[int, int]
    accepted: bool
    peer_name: bytes
    backlog: int
    shutdown: int
    queue: list[bytes]
    takes_more: bool
    reset: bool
    broken: bool
    options: list[Option]
    rights: list[Rights] = []
    name_alias: bytes = b""

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
        name = found.name if found.name[:1] == b"\0" else found.name.rstrip(b"\0")
        outside = bool(found.peer) and world.sockets.is_outside(inode)
        mutual = bool(found.peer) and not outside and _is_peer_of(inode, found.peer, world)
        datagrams = found.type == socket.SOCK_DGRAM
        if outside and not world.unix_close:
            raise UnsupportedResource(
                f"{what} is connected to a process outside the container",
                hint="--ext-unix-close restores it as "
                + ("not connected" if datagrams else "closed by the other side"),
            )
        accepted = world.sockets.shares_name(found)
        # The name of one that was accepted may be a path of others; it is not bound then.
        path = unix_names.BoundPath()
        if not (outside and accepted):
            path = unix_names.bound_path(name, found.file[0] if found.file else 0, world)
        duplicate = os.dup(file.descriptor)
        with socket.socket(fileno=duplicate) as one:
            options = socket_options.collect(one)
            listening = found.state == TCP_LISTEN
            peer_name = unix_names.peer_name(one)
            broken = bool(_events(file.descriptor) & select.POLLERR)
            if broken and found.queued and found.type != socket.SOCK_STREAM:
                raise UnsupportedResource(
                    f"{what} has an error that nobody has read yet, which cannot be saved"
                )
            queue = []
            if not (listening or outside or (broken and not found.queued)):
                messages = unix_queue.peek(one, what, most=found.queued if broken else 0)
                unix_queue.close(messages)
                queue = [message.data for message in messages]
        if datagrams and found.peer and not outside:
            _refuse_lost_peer(what, peer_name, mutual, world.sockets.unix(found.peer), world)
            # Datagram sockets with names find each other by these.
            mutual = mutual and not (name and peer_name)
        if datagrams and queue and peer_name and not (name or mutual):
            raise UnsupportedResource(
                f"{what} has datagrams of another than its peer, which cannot be saved yet"
            )
        return cls(
            id=number,
            flags=file.flags,
            type=found.type,
            state=found.state,
            inode=inode,
            pair=min(inode, found.peer) if mutual and found.peer != inode else 0,
            name=name,
            name_mode=path.mode,
            name_owner=path.owner,
            name_alias=path.alias,
            accepted=accepted,
            peer_name=peer_name,
            backlog=found.backlog if listening else 0,
            shutdown=found.shutdown,
            queue=queue,
            takes_more=bool(_events(file.descriptor) & select.POLLOUT),
            reset=outside,
            broken=broken,
            options=options,
            rights=[] if outside else _rights(file, queue, found, world),
        )

    @property
    def is_unowned(self) -> bool:
        """Tell whether the socket's name belongs to nobody: it is no path, or was removed."""
        return self.name_mode == 0

    def turn(self) -> int:
        # Connections go through listeners; a temporary one must not displace what stays.
        if self.state == TCP_LISTEN:
            return 0
        return 1 if self._is_connection() else 2

    def restore(self, making: Making) -> int:
        fd = self._restore_end(making) if self._is_connection() else self._restore_single(making)
        if not self._is_named_by_others:
            paths = unix_names.unfinished(making).paths
            path = unix_names.BoundPath(self.name_mode, self.name_owner, self.name_alias)
            paths[self.name] = path
        set_flags(making.program, fd, self.flags)
        return fd

    @property
    def _is_named_by_others(self) -> bool:
        # A listener outside may have accepted it.
        return self.reset and self.accepted

    def _is_connection(self) -> bool:
        """Tell whether it has another end, or had one that was closed."""
        if self.pair or self.state != TCP_ESTABLISHED:
            return bool(self.pair)
        # Datagram sockets are "established" also when another has connected to them.
        datagrams = self.type == socket.SOCK_DGRAM
        return not (datagrams and (self.name or self.peer_name or self.reset))

    def _restore_single(self, making: Making) -> int:
        program = making.program
        fd = program.call(SYS.SOCKET, socket.AF_UNIX, self.type, 0)
        if self.name:
            unix_names.bind(making, fd, self.name)
        socket_options.restore(program, fd, self.options, force=making.may_force_buffers)
        if self.state == TCP_LISTEN:
            program.call(SYS.LISTEN, fd, self.backlog)
            making.share(unix_names.listener(self.type, self.name), fd)
            return fd
        if self.rights:
            unix_names.unfinished(making).fills.append(self._finish_single)
        else:
            _requeue(program, fd, self)
            _shut_down(program, fd, self.shutdown)
        if self.peer_name and not self.reset:
            unix_names.unfinished(making).datagrams.append((self.id, self.name, self.peer_name))
        return fd

    def _finish_single(self, making: Making) -> None:
        """Fill the queue when all files stand, and can be sent."""
        _requeue(making.program, making.files[self.id], self, making.files)
        _shut_down(making.program, making.files[self.id], self.shutdown)

    def _restore_end(self, making: Making) -> int:
        """Make this end of a connection, or take it if the other end was made before."""
        key = ("unix", self.pair)
        waiting = making.shared(key) if self.pair else None
        if waiting is None:
            ours, theirs = self._connected(making)
            if self.pair:
                # All else follows when the other end is known.
                making.share(key, (theirs, ours, self))
                return ours
            if self.rights:
                making.share(("unix peer", self.id), making.spare(theirs))
                unix_names.unfinished(making).fills.append(self._finish_late)
            else:
                self._finish(making, ours, theirs, sender_takes_more=True)
                syscalls.close(making.program, theirs)
            return ours
        making.share(key, None)
        return self._join(making, *waiting)

    def _finish_late(self, making: Making) -> None:
        """Finish an end whose other end is not saved, when all files stand, and can be sent."""
        theirs = making.shared(("unix peer", self.id))
        self._finish(making, making.files[self.id], theirs, sender_takes_more=True)

    def _finish(self, making: Making, ours: int, theirs: int, *, sender_takes_more: bool) -> None:
        program = making.program
        self._fill(making, ours, theirs, sender_takes_more=sender_takes_more)
        if self.broken:
            program.call(SYS.SENDTO, ours, b"-", 1, socket.MSG_DONTWAIT, 0, 0)
        socket_options.restore(program, ours, self.options, force=making.may_force_buffers)
        _shut_down(program, ours, self.shutdown)
        self._bind_datagrams(making, ours)

    def _connected(self, making: Making) -> tuple[int, int]:
        """Make both ends, with their names, as far as these are the container's own."""
        name, peer_name = self.name, self.peer_name
        if not self.pair:
            # For the name of an end that is not saved nobody may be displaced.
            if self.accepted or not unix_names.is_listening(making, self.type, peer_name):
                peer_name = b""
            listening = unix_names.is_listening(making, self.type, name)
            if self._is_named_by_others and not listening:
                name = b""
        if self.type == socket.SOCK_DGRAM or not (name or peer_name):
            return making.pair(self.type)
        if name and (self.accepted or not peer_name):
            client, server = unix_names.connect(making, self.type, client=peer_name, server=name)
            return server, client
        # If neither is known to be the accepted end, it makes no difference.
        return unix_names.connect(making, self.type, client=name, server=peer_name)

    def _bind_datagrams(self, making: Making, fd: int) -> None:
        """Give its name to one of a pair that was not made by connecting."""
        if self.type == socket.SOCK_DGRAM and self.name:
            unix_names.bind(making, fd, self.name)

    def _join(self, making: Making, ours: int, theirs: int, other: Self) -> int:
        """Complete a pair whose other end is `other`."""
        if self.rights or other.rights:

            def finish(making: Making) -> None:
                self._finish_both(making, making.files[self.id], making.files[other.id], other)

            unix_names.unfinished(making).fills.append(finish)
        else:
            self._finish_both(making, ours, theirs, other)
        return ours

    def _finish_both(self, making: Making, ours: int, theirs: int, other: Self) -> None:
        program = making.program
        self._fill(making, ours, theirs, sender_takes_more=other.takes_more)
        other._fill(making, theirs, ours, sender_takes_more=self.takes_more)
        for fd, end in ((ours, self), (theirs, other)):
            socket_options.restore(program, fd, end.options, force=making.may_force_buffers)
            _shut_down(program, fd, end.shutdown)
            end._bind_datagrams(making, fd)

    def send(
        self,
        program: Program,
        sender: int,
        number: int,
        files: Mapping[int, int],
        address: bytes = b"",
    ) -> None:
        """Send a message of the queue; `files` has the stub's descriptors of those in flight."""
        data = self.queue[number]
        carried: list[int] = []
        for one in self.rights:
            if one.message == number:
                carried = [files[file] for file in one.files]
                if one.at_end and len(data) > 1:
                    unix_queue.send(program, sender, data[:-1])
                    data = data[-1:]
        unix_queue.send(program, sender, data, files=carried, address=address)

    def _fill(self, making: Making, ours: int, theirs: int, *, sender_takes_more: bool) -> None:
        """Queue what waits at this end: it was sent by the other."""
        if not self.queue:
            return
        program, force = making.program, making.may_force_buffers
        _set_send_buffer(program, theirs, _LARGE_BUFFER, force=force)
        if self.type == socket.SOCK_STREAM and not sender_takes_more and not self.rights:
            # Many small pieces take as much of the sender's buffer as the original ones did or
            # more: it stays full.
            data = b"".join(self.queue)
            for at in range(0, len(data), _PIECE):
                unix_queue.send(program, theirs, data[at : at + _PIECE])
        else:
            for number in range(len(self.queue)):
                self.send(program, theirs, number, making.files)
        with socket.socket(socket.AF_UNIX, self.type) as fresh:
            usual = fresh.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 2
            _set_send_buffer(program, theirs, usual, force=force)


def _set_send_buffer(program: Program, fd: int, size: int, *, force: bool) -> None:
    socket_options.set_buffer(program, fd, socket.SO_SNDBUF, size, force=force)


def _shut_down(program: Program, fd: int, directions: int) -> None:
    if directions:
        program.may_fail(program.call(SYS.SHUTDOWN, fd, directions - 1))


def _events(descriptor: int) -> int:
    """Return what a socket is ready for."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return sum(events for _, events in poll.poll(0))


def _is_socket(file: OpenFile) -> bool:
    return stat.S_ISSOCK(file.stat.st_mode) and file.target.startswith(b"socket:")


def _is_peer_of(inode: int, peer: int, world: World) -> bool:
    found = world.sockets.unix(peer)
    return found is not None and found.peer == inode


def _refuse_lost_peer(
    what: str, peer_name: bytes, mutual: bool, peer: UnixSocket, world: World
) -> None:
    """Refuse a datagram socket whose peer could not be found by its name."""
    if not (peer_name or mutual):
        raise UnsupportedResource(
            f"{what} is connected to a datagram socket without a name, which cannot be saved yet"
        )
    if peer_name and world.sockets.has_namesake(peer):
        raise UnsupportedResource(
            f"{what} is connected to {os.fsdecode(peer_name)}, which is another socket's name now;"
            " that cannot be saved yet"
        )


def _rights(file: OpenFile, queue: list[bytes], found: UnixSocket, world: World) -> list[Rights]:
    at_end = False
    if file.in_flight and found.type == socket.SOCK_STREAM:
        sender = world.open_socket(found.peer)
        at_end = sender is not None and not unix_queue.are_whole(queue, sender.descriptor)
    return [
        Rights(message=number, files=[one.number for one in carried], at_end=at_end)
        for number, carried in file.in_flight.items()
    ]


def _requeue(
    program: Program, fd: int, record: UnixSocketFile, files: Mapping[int, int] | None = None
) -> None:
    """Send datagrams without a sender's name to a socket that has only a name of its own."""
    if not record.queue:
        return
    sender = program.call(SYS.SOCKET, socket.AF_UNIX, record.type, 0)
    address = unix_names.address_of(record.name)
    for number in range(len(record.queue)):
        record.send(program, sender, number, files or {}, address)
    syscalls.close(program, sender)
