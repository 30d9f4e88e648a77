"""TCP connections while a container is frozen: nothing comes for them, and nothing leaves them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Self

import xxhash

from woodfrog.errors import UnsupportedResource
from woodfrog.image.record import tag_of
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE

if TYPE_CHECKING:
    from woodfrog.engine.sockets import Sockets
    from woodfrog.kernel.netlink import nftables
    from woodfrog.resources.files.base import FileRecord
    from woodfrog.resources.files.inet import End
    from woodfrog.resources.files.open_file import OpenFile
    from woodfrog.resources.files.tcp_socket import TcpSocket

_HINT = "--tcp-close restores connections as reset"


@contextmanager
def hushed(init: int, sockets: Sockets) -> Iterator[None]:
    """Drop what comes for the connections of a held container, so that all are of one moment.

    When we end, in whatever way, the kernel lets them hear again; peers repeat what was dropped.
    """
    from woodfrog.kernel.netlink import nftables

    found = [
        (namespace, [nftables.Connection(one.local, one.remote) for one in there])
        for namespace, there in sockets.connections()
    ]
    with ExitStack() as undo:
        for namespace, ends in found:
            with needs_nftables():
                undo.enter_context(
                    nftables.blocked(init, ends)
                    if namespace < 0
                    else nftables.blocked_at(namespace, ends)
                )
        if found:
            # What they were before doesn't count.
            sockets.forget_tcp()
        yield


def end_silently(init: int, files: Iterable[OpenFile], records: Iterable[FileRecord]) -> None:
    """Have connections that were saved end with their processes, and their peers not notice.

    Until a restore takes its connections over, a network namespace that others keep drops what
    comes for those to outside: nobody there would answer but by a reset. Those that were given up
    end in the usual way, and then leave their port to the restored listener.
    """
    outside: list[TcpSocket] = []
    for file, record in zip(files, records, strict=True):
        if tag_of(record) != "tcp-socket":
            continue
        from woodfrog.resources.files import tcp_connection
        from woodfrog.resources.files.tcp_socket import TcpSocket

        if isinstance(record, TcpSocket) and record.reset:
            with socket.socket(fileno=os.dup(file.descriptor)) as one:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if isinstance(record, TcpSocket) and record.connection is not None:
            with socket.socket(fileno=os.dup(file.descriptor)) as one:
                tcp_connection.begin_repair(one)
            if record.connection.outside:
                outside.append(record)
    if outside:
        from woodfrog.kernel.netlink import nftables

        with needs_nftables():
            nftables.block(init, _table(outside), _ends(outside))


class Silence:
    """What comes for the connections of an image is dropped until all of the container stands.

    If we end, in whatever way, so does this. In a network namespace that others have, too, see
    `refuse_taken` first: no image can have it for connections of theirs.
    """

    def __init__(
        self, init: int, records: Iterable[TcpSocket], networks: Mapping[int, int]
    ) -> None:
        """Begin in the container's own network; `networks` has others, by ids of files."""
        self._init = init
        self._found: list[TcpSocket] = []
        self._elsewhere: dict[int, list[TcpSocket]] = {}
        for one in records:
            if one.connection is not None:
                number = networks.get(one.id, 0)
                (self._elsewhere.setdefault(number, []) if number else self._found).append(one)
        self._undo = ExitStack()
        if self._found:
            from woodfrog.kernel.netlink import nftables
            from woodfrog.resources.files import inet

            ends = _ends(self._found)
            with needs_nftables():
                self._undo.enter_context(nftables.blocked(init, ends, mark=inet.MARK))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    def spread(self, descriptor: Callable[[int], int]) -> None:
        """Begin in nested network namespaces, too, which stand by now, by descriptors of ours."""
        for number, found in self._elsewhere.items():
            from woodfrog.kernel.netlink import nftables
            from woodfrog.resources.files import inet

            with needs_nftables():
                self._undo.enter_context(
                    nftables.blocked_at(descriptor(number), _ends(found), mark=inet.MARK)
                )

    def end(self) -> None:
        """Let them hear, also those that the checkpoint's `end_silently` went on to block."""
        self._undo.close()
        outside = [one for one in self._found if one.connection and one.connection.outside]
        if outside:
            from woodfrog.kernel.netlink import nftables

            nftables.unblock(self._init, _table(outside))


def refuse_taken(init: int, records: Iterable[TcpSocket], networks: Container[int]) -> None:
    """Refuse connections that somebody has in the container's own network by now.

    `networks` has the ids of those that are made in others.
    """
    ends = _ends(one for one in records if one.id not in networks)
    if not ends:
        return
    from woodfrog.kernel.netlink import sock_diag

    with sock_diag.diag_socket(init) as diag:
        there = {(one.local, one.remote) for one in sock_diag.tcp_sockets(diag)}
    for local, remote in ends:
        if (local, remote) in there:
            raise UnsupportedResource(
                f"a TCP connection of the image, from port {local[1]} to port {remote[1]}, is in"
                " use by somebody here",
                hint=_HINT,
            )


def make_room(
    init: int, records: Iterable[TcpSocket], going: Container[int], *, own_network: bool
) -> None:
    """Refuse where a rollback is to make connections, and others of the same ports stand.

    Those are no obstacle whose inodes are `going` to be closed, or which wait at a listener that
    is. What has ended, the kernel forgets here, if the container has the network for itself; also
    at the other side of a connection that is made without it: that would answer the connection's
    end as its own, and leave it hanging.
    """
    if not (made := _to_be_made(records)):
        return
    from woodfrog.kernel.netlink import sock_diag

    with sock_diag.diag_socket(init) as diag:
        for local, remote in dict.fromkeys((*made, *((there, here) for here, there in made))):
            found = sock_diag.tcp_socket(diag, local, remote)
            if found is None or found.inode in going:
                continue
            if found.has_ended and (not own_network or _forget(init, local, remote)):
                continue
            if (local, remote) in made and (found.inode or found.is_orphan):
                raise UnsupportedResource(
                    f"a TCP connection of the image, from port {local.port} to port {remote.port},"
                    f" is {'in use by somebody' if found.inode else 'still ending'} here",
                    hint="try again in two minutes, or restore the image into a new container",
                )


def _to_be_made(records: Iterable[TcpSocket]) -> dict[tuple[End, End], None]:
    """Return where sockets of connections are made, as a set in order: its own end and the other's.

    What waits at a listener is made with both.
    """
    from woodfrog.resources.files.inet import End

    made: dict[tuple[End, End], None] = {}
    for record in records:
        if (one := record.connection) is not None and not one.outside:
            local, remote = End(record.local, record.port), End(one.remote, one.remote_port)
            made[local.unmapped(), remote.unmapped()] = None
        for waiting in record.waiting:
            source, target = (
                End(waiting.source, waiting.port).unmapped(),
                End(waiting.target, waiting.target_port).unmapped(),
            )
            made |= {(source, target): None, (target, source): None}
    return made


def _forget(init: int, local: End, remote: End) -> bool:
    """Have the kernel forget a connection that has ended; tells whether it did.

    A socket under repair takes its place, and ends without a trace.
    """
    from woodfrog.kernel.netlink.messages import socket_in
    from woodfrog.resources.files import tcp_connection

    family = socket.AF_INET if len(local.address) == 4 else socket.AF_INET6
    with socket_in(init, family, socket.SOCK_STREAM, 0) as one:
        tcp_connection.begin_repair(one)
        try:
            for call, end in ((SYS.BIND, local), (SYS.CONNECT, remote)):
                address = end.packed(family)
                HERE.call(call, one.fileno(), address, len(address))
        except OSError:
            return False
    return True


def _table(records: Iterable[TcpSocket]) -> str:
    """Return the name of a table that blocks just these connections: an image can tell no other."""
    text = repr(sorted(_ends(records))).encode()
    return f"woodfrog-{xxhash.xxh3_64_hexdigest(text)}"


def _ends(records: Iterable[TcpSocket]) -> list[nftables.Connection]:
    from woodfrog.kernel.netlink import nftables

    return [
        nftables.Connection(
            (record.local, record.port), (record.connection.remote, record.connection.remote_port)
        )
        for record in records
        if record.connection is not None
    ]


@contextmanager
def needs_nftables() -> Iterator[None]:
    """Say what TCP connections need, if the kernel hasn't got it."""
    try:
        yield
    except OSError as error:
        raise UnsupportedResource(
            f"TCP connections need the kernel's nf_tables: {error.strerror or error}", hint=_HINT
        ) from error
