"""tcp(7): sockets that listen, are connected, or neither."""

import os
import select
import socket
from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal, Self

import msgspec

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.netlink.sock_diag import (
    TCP_CLOSE,
    TCP_ESTABLISHED,
    TCP_LISTEN,
    TCP_SYN_SENT,
    InetSocket,
)
from woodfrog.remote.program import Program
from woodfrog.resources.files import (
    inet,
    port_sharing,
    socket_filter,
    socket_options,
    tcp_backlog,
    tcp_connection,
    tcp_ends,
    tcp_md5,
)
from woodfrog.resources.files.base import FileRecord, Row, set_flags
from woodfrog.resources.files.inet import End
from woodfrog.resources.files.making import Making
from woodfrog.resources.files.open_file import OpenFile
from woodfrog.resources.files.owned import Socket, owner_of
from woodfrog.resources.files.socket_filter import SocketFilter
from woodfrog.resources.files.socket_option_table import BOUND_TO_DEVICE, IPPROTO_MPTCP
from woodfrog.resources.files.socket_options import Option
from woodfrog.resources.files.tcp_backlog import Waiting
from woodfrog.resources.files.tcp_connection import Connection
from woodfrog.resources.files.tcp_md5 import Signature
from woodfrog.resources.files.world import World

_KINDS = tuple((socket.SOCK_STREAM, one) for one in (socket.IPPROTO_TCP, IPPROTO_MPTCP))
_REUSE_PORT = socket.SOL_SOCKET, 15  # SO_REUSEPORT
_TCP_INFO = 11
_RESET = select.POLLERR | select.POLLRDHUP


class TcpSocket(Socket, frozen=True, tag="tcp-socket"):
    """A TCP socket. `reset` if it was connected, and is restored as a connection that broke, with
    what was `unread` by then.

    `shut` if it hears nothing (shutdown(2)) without ever having been connected. `refused` if it was
    refused when it tried: "told" if its program knows.
    `connecting` is the address that it is being connected to. `waiting` are the connections from
    within the container that wait at a listener, and `calls` if it is the other end of such a one;
    `clients_lost` is how many waited there that a flag gave up.
    """

    row: ClassVar[Row] = Row(
        called="TCP sockets",
        kept=(
            "listeners",
            "connections within the container, in every state and with what is on its way",
            "urgent data (MSG_OOB)",
            "those that nobody has accepted",
            "options, keys (TCP_MD5SIG), filters",
            "those of MPTCP that are not connected by it, as Go's listeners",
        ),
        refused=(
            "connections to outside without a flag; those of them that nobody has accepted",
            "connections of sockets of MPTCP; theirs that nobody has accepted, without a flag",
            "urgent data (MSG_OOB) that are announced, and have yet to come",
            "what a peer that is closed has yet to bring",
            "notifications (MSG_ZEROCOPY) that are unread or to come",
            "TLS in the kernel, TCP-AO, eBPF",
        ),
    )
    may_be_replaced: ClassVar[bool] = True
    family: int
    state: int
    local: bytes
    port: int
    backlog: int
    reset: bool
    connection: Connection | None
    connecting: bytes
    options: list[Option]
    filter: SocketFilter | None
    signatures: list[Signature] = []
    waiting: list[Waiting] = []
    calls: bool = False
    clients_lost: int = 0
    protocol: int = socket.IPPROTO_TCP  # or IPPROTO_MPTCP
    shut: bool = False
    refused: Literal["", "told", "untold"] = ""
    unread: bytes = b""

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        return inet.protocol_of(file) in _KINDS

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        found = world.sockets.tcp(file.stat.st_ino)
        if (protocol := inet.protocol_of(file)) == (socket.SOCK_STREAM, IPPROTO_MPTCP):
            found = _listens_for(file, found, world)
        state = found.state if found is not None else TCP_CLOSE
        with socket.socket(fileno=os.dup(file.descriptor)) as one:
            socket_options.refuse_unknown(one)
            socket_options.refuse_notifications(one)
            attached = socket_filter.collect(one)
            family = int(one.family)
            local = inet.end(one.getsockname())
            connection, reset, shut, unread = None, False, False, b""
            refused: Literal["", "told", "untold"] = ""
            calls = found is not None and found.inode in world.sockets.callers
            if calls:
                pass  # it is made anew, with its listener's end
            elif found is not None and state not in (TCP_CLOSE, TCP_LISTEN):
                connection = _connection(one, found, world)
                reset = connection is None and state != TCP_SYN_SENT
            elif state == TCP_CLOSE:
                events = socket_options.ready_for(file.descriptor, select.POLLRDHUP)
                # One that connect(2) has taken from its peer (AF_UNSPEC) has an error, but no end.
                reset = events & _RESET == _RESET
                ended = bool(events & select.POLLRDHUP) and not reset
                if (reset or ended) and tcp_connection.was_refused(one):
                    refused = "untold" if reset else "told"
                    local = End(bytes(len(local.address)), 0)  # it is bound there no more
                    reset = ended = False
                shut = ended and not any(local.address)
                if reset:
                    unread = tcp_connection.collect_ended(one, local.address).receive
                    local = End(bytes(len(local.address)), 0)  # likewise
                elif ended and not shut:
                    connection = tcp_connection.collect_ended(one, local.address)
            was_connected = calls or connection is not None or reset or bool(refused)
            was_connected |= state == TCP_SYN_SENT
            options = socket_options.collect(one, connected=was_connected)
        waiting = world.sockets.backlogs.get(file.stat.st_ino, [])
        left = found.receive_queue if state == TCP_LISTEN and found is not None else 0
        if left and not (waiting or world.tcp_close or world.tcp_skip_in_flight):
            raise UnsupportedResource(
                f"{left} TCP connections to port {local.port} have not been accepted,"
                " and lead outside, hold data in a network that others have, too, are in one that"
                " a program made, or were closed by clients who had sent more than has come",
                hint="--tcp-skip-in-flight restores the listener without them",
            )
        connecting = b""
        if found is not None and state == TCP_SYN_SENT:
            connecting = End(*found.remote).packed(family)
        return cls(
            id=number,
            flags=file.flags,
            **owner_of(file),
            family=family,
            state=state,
            local=local.address,
            port=local.port,
            backlog=found.send_queue if state == TCP_LISTEN and found is not None else 0,
            reset=reset,
            connection=connection,
            connecting=connecting,
            options=options,
            filter=attached,
            signatures=tcp_md5.collect(found.md5_keys) if found is not None else [],
            waiting=waiting,
            calls=calls,
            clients_lost=0 if waiting else left,
            protocol=protocol[1] if protocol else socket.IPPROTO_TCP,
            shut=shut,
            refused=refused,
            unread=unread,
        )

    def own_addresses(self) -> set[bytes]:
        if self.reset or (self.connection is not None and self.connection.outside):
            return set()
        return inet.own_address(self.local) if self.port else set()

    def moved(self, moves: Mapping[bytes, bytes]) -> Self:
        if not self.own_addresses():
            return self
        connection = self.connection
        if connection is not None:
            remote = inet.move(connection.remote, moves)
            connection = msgspec.structs.replace(connection, remote=remote)
        local = inet.move(self.local, moves)
        waiting = [tcp_backlog.moved(one, moves) for one in self.waiting]
        return msgspec.structs.replace(self, local=local, connection=connection, waiting=waiting)

    def bonds(self) -> Iterable[object]:
        bonds: list[object] = [("calls", one.file) for one in self.waiting]
        if self.calls:
            bonds.append(("calls", self.id))
        if self.connection is not None and not self.connection.outside:
            ends = (
                End(self.local, self.port),
                End(self.connection.remote, self.connection.remote_port),
            )
            bonds.append(frozenset(end.unmapped() for end in ends))
        elif self.port and not (self.connection or self.reset or self.calls):
            # One that is bound anew where others are still, by an option that they no longer have,
            # would be refused; and what calls again could come to another one.
            bonds.append(("tcp", self.port))
        return bonds

    def restore(self, making: Making) -> int:
        program = making.program
        connection = self.connection
        named, lent = True, False
        if self.reset or (connection is not None and connection.outside and making.tcp_close):
            fd = tcp_ends.reset(making.program, self.family, self.unread)
        elif self.refused:
            fd = tcp_ends.refused(making.program, self.family, told=self.refused == "told")
        else:
            fd = program.call(SYS.SOCKET, self.family, *self._kind)
            socket_options.restore_early(making, fd, self.options, self.family, *self._kind)
            local = End(self.local, self.port)
            if connection is not None:
                tcp_connection.begin(program, fd, connection, force=making.may_force_buffers)
                address = local.packed(self.family)
                program.call(SYS.BIND, fd, address, len(address))
                tcp_connection.restore(making, fd, connection, self.family, self.state, local)
            elif self.calls:
                tcp_backlog.begin(program, fd, local, self.family)
                making.share(("tcp", self.id), self)
                return fd
            elif self.port or any(self.local):
                # Connections that ended with the container's former life may linger on its port.
                # Both bind(2) and listen(2) look at that.
                lent = not self._has((socket.SOL_SOCKET, socket.SO_REUSEADDR))
                _reuse_address(program, fd, True)
                fd, named = inet.bind(making, fd, local, self.family, self.options)
        self._finish(making, fd)
        # Others are bound to the same port only until somebody listens there or shares it no more.
        if self.state == TCP_LISTEN and named:
            making.at_end(self._listen)
        if lent:
            making.at_end(self._own_address)
        if self.shut:
            # ENOTCONN, and done all the same.
            program = making.program
            program.may_fail(program.call(SYS.SHUTDOWN, fd, socket.SHUT_RD))
        return fd

    @property
    def _kind(self) -> tuple[int, int]:
        return socket.SOCK_STREAM, self.protocol

    def _finish(self, making: Making, fd: int) -> None:
        late = socket_options.late(self.options, self.family, *self._kind)
        socket_options.restore_all(making, fd, late, self.family, *self._kind)
        tcp_md5.restore(making.program, fd, self.family, self.signatures)
        socket_filter.restore(making.program, fd, self.filter)
        set_flags(making.program, fd, self.flags)

    def _listen(self, making: Making) -> None:
        fd = making.files[self.id]
        making.program.call(SYS.LISTEN, fd, self.backlog)
        if not (self._has(_REUSE_PORT) and making.new_network):
            if self.waiting:
                making.at_end(self._have_called)
            return
        only_6 = self._has((socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))
        place = "tcp", self.family, only_6, self.local, self.port, self._device
        member = port_sharing.join(making, place)

        def have_called(making: Making) -> None:
            port_sharing.choose(making.program, fd, member)
            self._have_called(making)
            port_sharing.draw(making.program, fd)

        if self.waiting:
            making.at_end(have_called)

    def _has(self, place: tuple[int, int]) -> bool:
        return any(option.place == place for option in self.options)

    @property
    def _device(self) -> bytes:
        """The name of the device that the socket is bound to; empty if to none."""
        return next((one.value for one in self.options if one.place == BOUND_TO_DEVICE), b"")

    def _own_address(self, making: Making) -> None:
        _reuse_address(making.program, making.files[self.id], False)

    def _have_called(self, making: Making) -> None:
        """Have what waits here call, in that order, when all listeners stand."""
        for one in self.waiting:
            caller = making.shared(("tcp", one.file))
            # Where the container has no such address, it would call others.
            is_here = inet.is_loopback(one.target) or making.has_address(
                End(one.target, 0).unmapped().address
            )
            if caller is None:
                if is_here:
                    tcp_backlog.call_for_closed(making, one)
                continue
            fd = making.files[one.file]
            if is_here:
                tcp_backlog.call(making, fd, caller.family, one)
            else:
                broken = tcp_ends.reset(making.program, caller.family)
                making.program.call(SYS.DUP3, broken, fd, 0)
                syscalls.close(making.program, broken)
            caller._finish(making, fd)

    def losses(self) -> dict[str, int]:
        return {
            "TCP connections to the outside are restored as closed": int(self.reset),
            "TCP connections that nobody has accepted are given up": self.clients_lost,
        }

    def refuse_wider(self, bounding: int) -> None:
        super().refuse_wider(bounding)
        inet.check(self.family, End(self.local, self.port))
        if self.connection is not None:
            inet.check(self.family, End(self.connection.remote, self.connection.remote_port))
        if self._kind not in _KINDS or (self.protocol != socket.IPPROTO_TCP and self.connection):
            raise ImageError("the image has a TCP socket of an unknown protocol")
        socket_options.refuse_wider(self.options, self.family, *self._kind, bounding)
        tcp_md5.check(self.signatures)

    def missing(self, descriptor: int) -> str:
        lacks = socket_options.missing(descriptor, self.options, self.family, *self._kind)
        if self.calls and socket_options.ready_for(descriptor, select.POLLRDHUP) & select.POLLERR:
            return f"a TCP connection from port {self.port} is reset: its other address is missing"
        if lacks or self.reset or not self.port:
            return lacks
        return inet.missing_address(descriptor, End(self.local, self.port), self.family)

    def complete(
        self, descriptor: int, root: int, deleted: Mapping[int, int], files: Mapping[int, int]
    ) -> None:
        if self.connection is not None:
            tcp_connection.resume(descriptor, self.connection, self.state, self.options)
        elif self.connecting:
            tcp_connection.connect_again(descriptor, self.connecting)


def check_backlogs(files: Iterable[FileRecord]) -> None:
    """Check that what waits at listeners of an image, and what calls there, are the same."""
    sockets = [one for one in files if isinstance(one, TcpSocket)]
    callers = [one.id for one in sockets if one.calls]
    if any(
        waiting.target_port != one.port or one.state != TCP_LISTEN
        for one in sockets
        for waiting in one.waiting
    ):
        raise ImageError("the image has TCP connections that wait where nobody listens")
    tcp_backlog.check(callers, (one.waiting for one in sockets))


def without_waiting(files: Mapping[int, FileRecord]) -> dict[int, FileRecord]:
    """Return those that change if listeners are restored without what waits there."""
    return {
        number: msgspec.structs.replace(one, waiting=[], calls=False, reset=one.calls)
        for number, one in files.items()
        if isinstance(one, TcpSocket) and (one.waiting or one.calls)
    }


def count_outside(files: Iterable[FileRecord], *, new_network: bool) -> int:
    """Return how many connections of an image lead outside, whatever their records say.

    In a network namespace that others have, too, only those are inside whose both ends are ours.
    """
    ends = {
        (End(one.local, one.port), End(one.connection.remote, one.connection.remote_port))
        for one in files
        if isinstance(one, TcpSocket) and one.connection is not None and one.state != TCP_CLOSE
    }
    return sum(
        1
        for local, remote in ends
        if (remote, local) not in ends
        and not (
            new_network and (inet.is_loopback(remote.address) or remote.address == local.address)
        )
    )


def _connection(one: socket.socket, found: InetSocket, world: World) -> Connection | None:
    """Collect a connection; None if it is to be restored as reset."""
    outside = world.sockets.leads_outside(found)
    peer = f"{socket.inet_ntop(found.family, found.remote[0])} port {found.remote[1]}"
    if outside and world.tcp_close:
        return None
    if outside and not world.tcp_established:
        raise UnsupportedResource(
            f"is a TCP connection to {peer}, outside the container",
            hint="--tcp-established keeps it, for a container with the same address;"
            " --tcp-close restores it as reset, so that the client connects again",
        )
    if found.state == TCP_SYN_SENT:
        return None
    other = world.sockets.peer_of(found)
    # What nobody has a descriptor of can't be read. (Its end counts as a byte.)
    if other is not None and other.is_orphan and other.send_queue > 1:
        raise UnsupportedResource(
            f"is a TCP connection to {peer}, which is closed there but has yet to bring"
            f" {other.send_queue - 1} bytes, which cannot be saved",
            hint="try again when its program has read them",
        )
    if found.state not in tcp_connection.STATES:
        raise UnsupportedResource(
            f"is a TCP connection to {peer} in a state ({found.state}) that cannot be saved yet",
            hint="try again in a moment; --tcp-close restores it as reset",
        )
    return tcp_connection.collect(one, found, outside=outside)


def _listens_for(file: OpenFile, found: InetSocket | None, world: World) -> InetSocket | None:
    """Return the TCP socket that listens for one of MPTCP; refuse one that is connected.

    It may have the same inode, and so be `found`.
    """
    with socket.socket(fileno=os.dup(file.descriptor)) as one:
        try:
            (state,) = one.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 1)
        except OSError:
            state = TCP_ESTABLISHED  # it tells only of those that are not connected
        broken = socket_options.ready_for(file.descriptor, 0) & select.POLLERR
        if state not in (TCP_CLOSE, TCP_LISTEN) or broken:
            raise UnsupportedResource(
                "is a socket of MPTCP that is or was connected, which cannot be saved yet",
                hint="use TCP for it",
            )
        if state == TCP_CLOSE or found is not None:
            return found
        network = world.namespaces.of_socket(file.descriptor)
        found = world.sockets.mptcp_listener(network, inet.end(one.getsockname()))
        if found is None:
            raise UnsupportedResource("is a socket of MPTCP whose TCP sockets are not found")
        return found


def _reuse_address(program: Program, fd: int, value: bool) -> None:
    word = value.to_bytes(4, "little")
    program.call(SYS.SETSOCKOPT, fd, socket.SOL_SOCKET, socket.SO_REUSEADDR, word, 4)
