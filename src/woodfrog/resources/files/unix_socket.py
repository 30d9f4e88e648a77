"""unix(7): pairs with what is queued, listeners by path or abstract name, datagram sockets."""

import os
import select
import socket
import stat
from collections import defaultdict
from collections.abc import Iterable
from typing import ClassVar, Self

from woodfrog.errors import ImageError
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.netlink.sock_diag import TCP_ESTABLISHED, TCP_LISTEN
from woodfrog.resources.files import (
    socket_filter,
    socket_options,
    unix_backlog,
    unix_filling,
    unix_names,
    unix_pairs,
    unix_paths,
    unix_peers,
    unix_queue,
    unix_ties,
)
from woodfrog.resources.files.base import FileRecord, Row, set_flags
from woodfrog.resources.files.making import Maker, Making
from woodfrog.resources.files.open_file import OpenFile
from woodfrog.resources.files.owned import Socket, owner_of
from woodfrog.resources.files.socket_filter import SocketFilter
from woodfrog.resources.files.socket_options import Option
from woodfrog.resources.files.unix_backlog import Arrived
from woodfrog.resources.files.unix_names import Name
from woodfrog.resources.files.unix_queue import Rights
from woodfrog.resources.files.world import World


class UnixSocketFile(Socket, frozen=True, tag="unix-socket"):
    """A socket. `pair` is the same for both ends of a connection, 0 if the other is not saved.

    `accepted` if it shares its name with a listener, which it is not, or with others that were
    accepted there;
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
            "files in flight in a stream with an urgent byte (MSG_OOB)",
        ),
    )
    may_be_replaced: ClassVar[bool] = True
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
        name = found.name if found.name[:1] == b"\0" else found.name.rstrip(b"\0")
        pending = unix_ties.pending(what, found, world)
        unaccepted = unix_ties.is_unaccepted(what, inode, world)
        with socket.socket(fileno=os.dup(file.descriptor)) as one:
            options = socket_options.collect(one)
            attached = socket_filter.collect(one)
            ties = unix_ties.collect(what, found, name, one, world)
            peer = None if ties.outside else unix_peers.collect(one, world)
            waiting = unix_queue.collect(
                what, found, one, file.messages, is_peer_outside=ties.outside
            )
        queue = [message.data for message in waiting.messages]
        senders = [message.sender for message in waiting.messages]
        if queue:
            unix_ties.refuse_strangers(what, found, name, ties, world)
        # The name of one that was accepted may be a path of others; it is not bound then.
        path = unix_paths.BoundPath()
        if not (ties.outside and ties.accepted):
            path = unix_paths.bound_path(name, file.descriptor, world)
        return cls(
            id=number,
            flags=file.flags,
            **owner_of(file),
            type=found.type,
            state=found.state,
            inode=inode,
            pair=ties.pair,
            name=name,
            name_mode=path.mode,
            name_owner=path.owner,
            name_alias=path.alias,
            accepted=ties.accepted and found.state != TCP_LISTEN,
            peer_name=ties.peer_name,
            backlog=found.backlog if found.state == TCP_LISTEN else 0,
            shutdown=found.shutdown,
            queue=queue,
            takes_more=bool(
                socket_options.ready_for(file.descriptor, select.POLLOUT) & select.POLLOUT
            ),
            reset=ties.outside,
            broken=waiting.broken,
            options=options,
            filter=attached,
            rights=[] if ties.outside else unix_queue.rights(file, queue, found, world),
            name_directory=path.directory,
            senders=senders if any(senders) else [],
            urgent=waiting.urgent,
            pending=pending,
            clients_lost=len(found.pending) - len(pending),
            unaccepted=unaccepted,
            peer=peer,
            peer_closed=ties.peer_closed,
            peer_file=ties.peer_file,
            left=ties.left,
            authors=unix_peers.authors(waiting.messages, world),
        )

    @property
    def has_no_path(self) -> bool:
        """Tell whether the socket's name is no path, or was removed."""
        return self.name_mode == 0

    @property
    def unowned(self) -> frozenset[str]:
        """Return which fields name nobody."""
        return frozenset(("name_owner",)) if self.has_no_path else frozenset()

    @property
    def own_name(self) -> Name:
        """Return what it is bound to."""
        if self._is_aside:
            return unix_names.aside(self.name, self.name_alias)
        stands = not self.has_no_path or self.name[:1] == b"\0"
        return Name(self.name, self.name_directory, stands)

    @property
    def _is_aside(self) -> bool:
        """Tell whether its name is a relative path whose directories are other ones by now."""
        is_relative = self.name[:1] not in (b"", b"\0", b"/")
        return is_relative and not (self.has_no_path or self.name_directory)

    def losses(self) -> dict[str, int]:
        return {
            "unix socket connections to the outside are restored as closed": int(self.reset),
            "clients that wait at unix sockets are restored as closed": self.clients_lost,
        }

    def bonds(self) -> Iterable[object]:
        found: list[object] = [("unix pair", self.pair)] if self.pair else []
        waiting = [*self.pending, *([self.inode] if self.unaccepted else [])]
        found += (("unix client", inode) for inode in waiting if inode)
        if self.type == socket.SOCK_DGRAM:
            names = {self.name, self.peer_name, *self.senders} - {b""}
            found += (("unix datagrams", name) for name in names)
        if self.pending or not self.own_name.stands:
            # Nobody else could be connected through it.
            found += self.leads()
        return found

    def immaterial(self, now: FileRecord) -> frozenset[str]:
        # Who comes from outside stays, though the listener is another one by now.
        is_outside = self.reset and isinstance(now, type(self)) and now.reset
        return frozenset(("accepted",)) if is_outside else frozenset()

    def leads(self) -> Iterable[object]:
        if self.state != TCP_LISTEN:
            return []
        return [("unix listener", self.type, self.own_name)]

    def follows(self) -> Iterable[object]:
        if self.is_named_by_others or self.state == TCP_LISTEN or self.type == socket.SOCK_DGRAM:
            return []
        name = self.own_name if self.accepted else Name(self.peer_name)
        is_led = self.accepted or (self.peer_name and not self.pair and not self.reset)
        return [("unix listener", self.type, name)] if is_led else []

    def carries(self) -> set[int]:
        carried = [*self.rights, *(right for one in self.arrived for right in one.rights)]
        return {file for one in carried for file in one.files}

    def refuse_wider(self, bounding: int) -> None:
        super().refuse_wider(bounding)
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
        if self._is_connection():
            fd = unix_pairs.restore_end(making, self)
        else:
            fd = self._restore_single(making)
        if not (self.is_named_by_others or self.has_no_path):
            paths = unix_names.unfinished(making).paths
            path = unix_paths.BoundPath(self.name_mode, self.name_owner, self.name_alias)
            paths[self.own_name.path] = path
        set_flags(making.program, fd, self.flags)
        return fd

    @property
    def is_named_by_others(self) -> bool:
        """Tell whether its name is another's: a listener outside may have accepted it."""
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
            self.finish(making, fd)
        if self.peer_closed:
            self._connect_to_closed(making, fd)
        elif self.peer_name and not self.reset:
            peer = self.place_of(making, self.peer_name, self.peer_file)
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

    def finish(self, making: Making, fd: int) -> None:
        """Do what is left when its queue is filled."""
        self._set_options(making, fd)
        self._shut_down(making, fd)

    def _shut_down(self, making: Making, fd: int) -> None:
        if self.shutdown:
            program = making.program
            program.may_fail(program.call(SYS.SHUTDOWN, fd, self.shutdown - 1))

    def _finish_single(self, making: Making) -> None:
        """Fill the queue when all files and senders stand."""
        fd = making.files[self.id]
        unix_filling.requeue(making, self)
        self.finish(making, fd)

    def _finish_listener(self, making: Making) -> None:
        """Have those connect that nobody has accepted, in their order."""
        for at, inode in enumerate(self.pending):
            client: UnixSocketFile | None = making.shared(("unaccepted", inode)) if inode else None
            if client is None and inode:
                raise ImageError("a listening socket is waited for by one that the image lacks")
            arrived = self.arrived[at] if self.arrived else None
            unix_backlog.connect(making, self, client, arrived)
            if client is not None:
                client.finish(making, making.files[client.id])
        fd = unix_peers.listen(making, making.files[self.id], self.backlog, self.peer)
        self._shut_down(making, fd)

    def other_end(self, making: Making) -> Self | None:
        """Return the other end of its pair, if that is saved."""
        ends: dict[int, list[Self]] | None = making.shared("ends of unix pairs")
        if ends is None:
            ends = defaultdict(list)
            for record in making.records:
                if isinstance(record, type(self)):
                    ends[record.pair].append(record)
            making.share("ends of unix pairs", ends)
        return next((one for one in ends[self.pair] if one is not self), None)

    def place_of(self, making: Making, name: bytes, file: int = 0) -> Name:
        """Return where a name is in the new container, by those who have it, or one of them."""
        known: dict[bytes | int, Name] | None = making.shared("names of unix sockets")
        if known is None:
            known = {}
            for record in making.records:
                if not isinstance(record, type(self)) or record.is_named_by_others:
                    continue
                known[record.id] = record.own_name
                if record.own_name.stands or record.name not in known:
                    known[record.name] = record.own_name
            making.share("names of unix sockets", known)
        exactly = known.get(file)
        if exactly and exactly.name == name:
            return exactly
        return known.get(name) or Name(name, stands=name[:1] == b"\0")


def _is_socket(file: OpenFile) -> bool:
    return stat.S_ISSOCK(file.stat.st_mode) and file.target.startswith(b"socket:")
