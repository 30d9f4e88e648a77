"""unix(7): pairs with what is queued, listeners by path or abstract name, datagram sockets."""

import os
import select
import socket
import stat
from collections import defaultdict
from typing import ClassVar, Self

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.netlink.sock_diag import TCP_ESTABLISHED, TCP_LISTEN
from woodfrog.remote.program import Program
from woodfrog.resources.files import (
    socket_filter,
    socket_options,
    unix_backlog,
    unix_filling,
    unix_names,
    unix_peers,
    unix_queue,
)
from woodfrog.resources.files.base import (
    FileRecord,
    Maker,
    Making,
    OpenFile,
    Row,
    World,
    set_flags,
)
from woodfrog.resources.files.socket_filter import SocketFilter
from woodfrog.resources.files.socket_options import Option
from woodfrog.resources.files.unix_backlog import Arrived
from woodfrog.resources.files.unix_names import Name
from woodfrog.resources.files.unix_queue import Message, Rights

_NOWHERE = bytes(16)  # a struct sockaddr of AF_UNSPEC


class UnixSocketFile(FileRecord, frozen=True, tag="unix-socket"):
    """A socket. `pair` is the same for both ends of a connection, 0 if the other is not saved.

    `accepted` if it shares its name with a listener or with others that were accepted there;
    `name_alias` is the path that a bound one has now, if not its name any more;
    `peer_name` is what it is connected to; of a datagram socket, `peer_file` is that one's id,
    unless it is closed by now (`peer_closed`); if it has `left` its pair, the other end is still
    connected to it. `queue` is what waits to be read, in one piece for a
    stream, and `rights` the files in flight with it; `urgent` is where in a stream a byte stands
    that came by MSG_OOB, or -1; `senders` are the names that datagrams came from, if any had one.
    `takes_more` if it can be written to; `reset` if its peer was outside, and it is restored as
    closed by it; `broken` if its peer was closed without having read all. `pending` are the
    clients, by `inode`, that a listener has not accepted, which are `unaccepted`; 0: one that is
    closed by now. `arrived` is what has come from each, if from any; `clients_lost` is how many
    more there were, that a flag gave up.
    """

    row: ClassVar[Row] = Row(
        called="unix sockets",
        kept=(
            "connections within the container, names, modes, options, filters",
            "what is queued, with files in flight (SCM_RIGHTS), senders' names and MSG_OOB",
            "clients that nobody has accepted, with what they have sent, closed ones, too",
            "who has made them (SO_PEERCRED), and sent what is queued (SO_PASSCRED)",
            "listeners",
        ),
        refused=(
            "connected to outside, without `--ext-unix-close`",
            "waiting to be accepted by somebody outside, without that flag",
            "waiting to be accepted with data sent, and with a path of its own, or of a process"
            " that may open no more files, or in flight a pipe or socket that no process has",
            "packets or datagrams with an error that nobody has read",
            "datagram sockets that have left their pair for one that is closed",
            "in flight a pidfd, or a file with locks, that no process has",
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
    filter: SocketFilter | None = None
    rights: list[Rights] = []
    name_alias: bytes = b""
    name_directory: bytes = b""
    senders: list[bytes] = []
    urgent: int = -1
    pending: list[int] = []
    arrived: list[Arrived] = []
    unaccepted: bool = False
    clients_lost: int = 0
    peer: Maker | None = None  # as SO_PEERCRED tells
    peer_closed: bool = False
    peer_file: int = 0
    left: bool = False
    authors: list[Maker | None] = []  # who sent what is queued, if readers are told (SO_PASSCRED)

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        return _is_socket(file) and bool(world.sockets.unix(file.stat.st_ino))

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        inode = file.stat.st_ino
        found = world.sockets.unix(inode)
        what = f"unix socket {os.fsdecode(found.name) or 'without a name'}"
        pending = list(found.pending)
        if inode not in world.sockets.unix_unread:
            pending = [client for client in pending if _can_wait_again(client, world)]
        if len(pending) < len(found.pending) and not world.unix_close:
            why = world.sockets.unix_unreadable.get(inode, "come from outside")
            raise UnsupportedResource(
                f"{what} has connections that nobody has accepted, and that {why}: they cannot be"
                " saved yet",
                hint="--ext-unix-close restores it without them",
            )
        unaccepted = world.sockets.waits_at(inode)
        if unaccepted is not None and unaccepted not in world.sockets.inside:
            if not world.unix_close:
                raise UnsupportedResource(
                    f"{what} waits for a process outside the container to accept it",
                    hint="--ext-unix-close restores it as closed by the other side",
                )
            unaccepted = None
        name = found.name if found.name[:1] == b"\0" else found.name.rstrip(b"\0")
        outside = bool(found.peer) and world.sockets.is_outside(inode)
        mutual = bool(found.peer) and not outside and _is_peer_of(inode, found.peer, world)
        datagrams = found.type == socket.SOCK_DGRAM
        peer_file = world.open_socket(found.peer)
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
            path = unix_names.bound_path(name, file.descriptor, world)
        duplicate = os.dup(file.descriptor)
        with socket.socket(fileno=duplicate) as one:
            options = socket_options.collect(one)
            attached = socket_filter.collect(one)
            listening = found.state == TCP_LISTEN
            peer_name = unix_names.peer_name(one)
            peer = None if outside else unix_peers.collect(one, world)
            broken = bool(
                socket_options.ready_for(file.descriptor, select.POLLOUT) & select.POLLERR
            )
            if broken and found.queued and found.type != socket.SOCK_STREAM:
                raise UnsupportedResource(
                    f"{what} has an error that nobody has read yet, which cannot be saved"
                )
            messages, urgent = list[Message](), -1
            if not (listening or outside or (broken and not found.queued)):
                with unix_queue.out_of_line(one):
                    messages = unix_queue.peek(one, most=found.queued if broken else 0)
                    unix_queue.close(messages)
                    if found.type == socket.SOCK_STREAM:
                        messages, urgent = unix_queue.urgent(one, messages)
            queue = [message.data for message in messages]
        pair = min(inode, found.peer) if mutual and found.peer != inode else 0
        left = False
        if datagrams and found.peer and not outside:
            unix_names.refuse_lost_peer(what, peer_name, world.sockets.unix(found.peer), world)
            if name and peer_name:
                pair = 0  # they find each other by these
            elif not (mutual or peer_name):
                pair = min(inode, found.peer)  # which has left it
        peer_closed = datagrams and bool(peer_name) and not found.peer
        if datagrams and not (name or mutual) and (other_end := world.sockets.follower(inode)):
            pair, left = min(inode, other_end), True
            if peer_closed:
                raise UnsupportedResource(
                    f"{what} has left its pair for {os.fsdecode(peer_name)}, which is closed;"
                    " that cannot be saved yet"
                )
        if peer_closed and messages and world.sockets.is_taken(found.type, peer_name):
            raise UnsupportedResource(
                f"{what} has datagrams of {os.fsdecode(peer_name)}, which is closed, and whose name"
                " another has by now; that cannot be saved yet"
            )
        senders = [message.sender for message in messages]
        if datagrams and queue and peer_name and not (name or mutual or left):
            raise UnsupportedResource(
                f"{what} has datagrams of another than its peer, which cannot be saved yet"
            )
        return cls(
            id=number,
            flags=file.flags,
            type=found.type,
            state=found.state,
            inode=inode,
            pair=pair,
            name=name,
            name_mode=path.mode,
            name_owner=path.owner,
            name_alias=path.alias,
            accepted=accepted,
            peer_name=peer_name,
            backlog=found.backlog if listening else 0,
            shutdown=found.shutdown,
            queue=queue,
            takes_more=bool(
                socket_options.ready_for(file.descriptor, select.POLLOUT) & select.POLLOUT
            ),
            reset=outside,
            broken=broken,
            options=options,
            filter=attached,
            rights=[] if outside else unix_queue.rights(file, queue, found, world),
            name_directory=path.directory,
            senders=senders if any(senders) else [],
            urgent=urgent,
            pending=pending,
            clients_lost=len(found.pending) - len(pending),
            unaccepted=unaccepted is not None
            and (unaccepted in world.sockets.unix_unread or _can_wait_again(inode, world)),
            peer=peer,
            peer_closed=peer_closed,
            peer_file=peer_file.number if datagrams and peer_name and peer_file else 0,
            left=left,
            authors=unix_peers.authors(messages, world),
        )

    @property
    def is_unowned(self) -> bool:
        """Tell whether the socket's name belongs to nobody: it is no path, or was removed."""
        return self.name_mode == 0

    @property
    def own_name(self) -> Name:
        """Return what it is bound to."""
        if self._is_aside:
            return unix_names.aside(self.name, self.name_alias)
        stands = not self.is_unowned or self.name[:1] == b"\0"
        return Name(self.name, self.name_directory, stands)

    @property
    def _is_aside(self) -> bool:
        """Tell whether its name is a relative path whose directories are other ones by now."""
        is_relative = self.name[:1] not in (b"", b"\0", b"/")
        return is_relative and not (self.is_unowned or self.name_directory)

    def losses(self) -> dict[str, int]:
        return {
            "unix socket connections to the outside are restored as closed": int(self.reset),
            "clients that wait at unix sockets are restored as closed": self.clients_lost,
        }

    def refuse_wider(self, bounding: int) -> None:
        socket_options.refuse_wider(self.options, socket.AF_UNIX, self.type, 0, bounding)
        if self.senders and len(self.senders) != len(self.queue):
            raise ImageError("a unix socket has another number of senders than of datagrams")
        for maker in (self.peer, *self.authors):
            unix_peers.check(maker)
        if self.authors and len(self.authors) != len(self.queue):
            raise ImageError("a unix socket has another number of authors than of messages")
        unix_backlog.check(self.pending, self.arrived)
        if self._is_aside and self.name_alias[:1] != b"/":
            raise ImageError("a unix socket has a relative path that begins nowhere")
        data = self.queue[0] if self.queue else b""
        if self.urgent != -1 and not 0 <= self.urgent < len(data):
            raise ImageError("a unix socket has urgent data behind its data")

    def turn(self) -> int:
        # Connections go through listeners; a temporary one must not displace what stays.
        if self.state == TCP_LISTEN:
            return 0
        if self.peer_closed:
            return -1  # others may have that name by now
        return 1 if self._is_connection() else 2

    def restore(self, making: Making) -> int:
        fd = self._restore_end(making) if self._is_connection() else self._restore_single(making)
        if not (self._is_named_by_others or self.is_unowned):
            paths = unix_names.unfinished(making).paths
            path = unix_names.BoundPath(self.name_mode, self.name_owner, self.name_alias)
            paths[self.own_name.path] = path
        set_flags(making.program, fd, self.flags)
        return fd

    @property
    def _is_named_by_others(self) -> bool:
        # A listener outside may have accepted it.
        return self.reset and self.accepted

    def _is_connection(self) -> bool:
        """Tell whether it has another end, or had one that was closed."""
        if self.unaccepted:
            return False
        if self.pair or self.state != TCP_ESTABLISHED:
            return bool(self.pair)
        # Datagram sockets are "established" also when another has connected to them.
        datagrams = self.type == socket.SOCK_DGRAM
        return not (datagrams and (self.name or self.peer_name or self.reset))

    def _restore_single(self, making: Making) -> int:
        program = making.program
        fd: int = program.call(SYS.SOCKET, socket.AF_UNIX, self.type, 0)
        if self.name:
            unix_names.bind(making, fd, self.own_name)
        unfinished = unix_names.unfinished(making)
        if self.type == socket.SOCK_DGRAM and self.name:
            unfinished.senders[self.name] = self.id
        if self.state == TCP_LISTEN:
            self._set_options(making, fd)
            backlog = max(self.backlog, len(self.pending))
            fd = unix_peers.listen(making, fd, backlog, self.peer)
            making.share(unix_names.listener(making, self.type, self.own_name), fd)
            if self.pending or self.shutdown:
                unfinished.fills.append(self._finish_listener)
            return fd
        if self.unaccepted:
            # Its options are set when it is connected: one of them would give it a name.
            making.share(("unaccepted", self.inode), self)
            return fd
        if self.rights or self.senders or self.authors:
            unfinished.fills.append(self._finish_single)
        else:
            unix_filling.requeue(making, self)
            self._set_options(making, fd)
            _shut_down(program, fd, self.shutdown)
        if self.peer_closed:
            self._connect_to_closed(making, fd)
        elif self.peer_name and not self.reset:
            peer = _name_of(making, self.peer_name, self.peer_file)
            unfinished.datagrams.append((self.id, self.name, peer))
        return fd

    def _connect_to_closed(self, making: Making, fd: int) -> None:
        """Connect to one that is there for the moment, and then have it be closed."""
        program = making.program
        name = Name(self.peer_name, stands=self.peer_name[:1] == b"\0")
        former = program.call(SYS.SOCKET, socket.AF_UNIX, self.type, 0)
        unix_names.bind(making, former, name)
        if self.queue:
            # Once it is connected, nobody else could fill its queue.
            making.share(("former unix socket", self.peer_name), making.spare(former))
            unix_names.unfinished(making).datagrams.append((self.id, self.name, name))
        else:
            unix_names.connect_to(making, fd, name)
            syscalls.close(program, former)

    def _set_options(self, making: Making, fd: int) -> None:
        force = making.may_force_buffers
        socket_options.restore(making.program, fd, self.options, force=force)
        socket_filter.restore(making.program, fd, self.filter)

    def _finish_single(self, making: Making) -> None:
        """Fill the queue when all files and senders stand."""
        fd = making.files[self.id]
        unix_filling.requeue(making, self)
        self._set_options(making, fd)
        _shut_down(making.program, fd, self.shutdown)

    def _finish_listener(self, making: Making) -> None:
        """Have those connect that nobody has accepted, in their order."""
        for at, inode in enumerate(self.pending):
            client: UnixSocketFile | None = making.shared(("unaccepted", inode)) if inode else None
            if client is None and inode:
                raise ImageError("a listening socket is waited for by one that the image lacks")
            arrived = self.arrived[at] if self.arrived else None
            unix_backlog.connect(making, self, client, arrived)
            if client is not None:
                fd = making.files[client.id]
                client._set_options(making, fd)
                _shut_down(making.program, fd, client.shutdown)
        fd = unix_peers.listen(making, making.files[self.id], self.backlog, self.peer)
        _shut_down(making.program, fd, self.shutdown)

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
            if self.rights or self.authors:
                making.share(("unix peer", self.id), making.spare(theirs))
                unix_names.unfinished(making).fills.append(self._finish_late)
            else:
                self._finish(making, ours, theirs)
                syscalls.close(making.program, theirs)
            return ours
        making.share(key, None)
        return self._join(making, *waiting)

    def _finish_late(self, making: Making) -> None:
        """Finish an end whose other end is not saved, when all files stand, and can be sent."""
        theirs = making.shared(("unix peer", self.id))
        self._finish(making, making.files[self.id], theirs)

    def _finish(self, making: Making, ours: int, theirs: int) -> None:
        unix_filling.fill(making, self, theirs, None)
        program = making.program
        if self.broken:
            program.call(SYS.SENDTO, ours, b"-", 1, socket.MSG_DONTWAIT, 0, 0)
        self._set_options(making, ours)
        _shut_down(program, ours, self.shutdown)
        self._bind_datagrams(making, ours)

    def _connected(self, making: Making) -> tuple[int, int]:
        """Make both ends, with their names, as far as these are the container's own."""
        name = self.own_name
        other_end = self._other_end(making) if self.pair else None
        if other_end and other_end.name == self.peer_name:
            peer = other_end.own_name
        else:
            peer = _name_of(making, self.peer_name)
        if not self.pair:
            peer = self._passing_name(making, self.peer_name, is_server=not self.accepted)
            if self._is_named_by_others:
                name = self._passing_name(making, self.name, is_server=True)
        if self.type == socket.SOCK_DGRAM or not (name.name or peer.name):
            return making.acting(unix_peers.needed(self.peer), lambda: making.pair(self.type))
        other = other_end.peer if other_end else None
        if name.name and (self.accepted or not peer.name):
            client, server = unix_names.connect(
                making, self.type, client=peer, server=name, listens=other, connects=self.peer
            )
            return server, client
        # If neither is known to be the accepted end, it makes no difference.
        return unix_names.connect(
            making, self.type, client=name, server=peer, listens=self.peer, connects=other
        )

    def _other_end(self, making: Making) -> "UnixSocketFile | None":
        ends: dict[int, list[UnixSocketFile]] | None = making.shared("ends of unix pairs")
        if ends is None:
            ends = defaultdict(list)
            for record in making.records:
                if isinstance(record, UnixSocketFile):
                    ends[record.pair].append(record)
            making.share("ends of unix pairs", ends)
        return next((one for one in ends[self.pair] if one is not self), None)

    def _passing_name(self, making: Making, name: bytes, *, is_server: bool) -> Name:
        """Return a name for what is closed at once: nobody may be displaced for it."""
        known = _name_of(making, name)
        if is_server and making.shared(unix_names.listener(making, self.type, known)) is not None:
            return known
        return Name(b"" if name[:1] == b"\0" else name, stands=False)

    def _bind_datagrams(self, making: Making, fd: int) -> None:
        """Give its name to one of a pair that was not made by connecting."""
        if self.type == socket.SOCK_DGRAM and self.name:
            unix_names.bind(making, fd, self.own_name)

    def _join(self, making: Making, ours: int, theirs: int, other: Self) -> int:
        """Complete a pair whose other end is `other`."""
        if self.rights or other.rights or self.authors or other.authors:

            def finish(making: Making) -> None:
                self._finish_both(making, making.files[self.id], making.files[other.id], other)

            unix_names.unfinished(making).fills.append(finish)
        else:
            self._finish_both(making, ours, theirs, other)
        return ours

    def _finish_both(self, making: Making, ours: int, theirs: int, other: Self) -> None:
        both = ((ours, self, theirs, other), (theirs, other, ours, self))
        # Who leaves loses what has come, but not what it has sent.
        for fd, end, peer_fd, peer in sorted(both, key=lambda one: one[1].left):
            if end.left:
                end._leave(making, fd, peer_fd, peer)
            unix_filling.fill(making, end, peer_fd, peer)
        for fd, end in ((ours, self), (theirs, other)):
            end._set_options(making, fd)
            _shut_down(making.program, fd, end.shutdown)
            end._bind_datagrams(making, fd)

    def _leave(self, making: Making, fd: int, peer_fd: int, peer: Self) -> None:
        """Be connected to nothing, and when all stand to another than the pair's other end."""
        program = making.program
        if peer.broken:
            # Its error tells that what it had sent was thrown away.
            program.call(SYS.SENDTO, peer_fd, b"-", 1, socket.MSG_DONTWAIT, 0, 0)
        program.call(SYS.CONNECT, fd, _NOWHERE, len(_NOWHERE))
        if self.peer_name and not self.reset:
            to = _name_of(making, self.peer_name, self.peer_file)
            unix_names.unfinished(making).datagrams.append((self.id, self.name, to))


def _shut_down(program: Program, fd: int, directions: int) -> None:
    if directions:
        program.may_fail(program.call(SYS.SHUTDOWN, fd, directions - 1))


def _name_of(making: Making, name: bytes, file: int = 0) -> Name:
    """Return where a name is in the new container, by those who have it, or one of them."""
    known: dict[bytes | int, Name] | None = making.shared("names of unix sockets")
    if known is None:
        known = {}
        for record in making.records:
            if not isinstance(record, UnixSocketFile) or record._is_named_by_others:
                continue
            known[record.id] = record.own_name
            if record.own_name.stands or record.name not in known:
                known[record.name] = record.own_name
        making.share("names of unix sockets", known)
    exactly = known.get(file)
    if exactly and exactly.name == name:
        return exactly
    return known.get(name) or Name(name, stands=name[:1] == b"\0")


def _can_wait_again(client: int, world: World) -> bool:
    """Tell whether a client that nobody has accepted can be made again: it has sent nothing yet."""
    found = world.sockets.unix(client) if client in world.sockets.inside else None
    return found is not None and not found.backlog


def _is_socket(file: OpenFile) -> bool:
    return stat.S_ISSOCK(file.stat.st_mode) and file.target.startswith(b"socket:")


def _is_peer_of(inode: int, peer: int, world: World) -> bool:
    found = world.sockets.unix(peer)
    return found is not None and found.peer == inode
