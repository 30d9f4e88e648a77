"""TCP connections while a container is frozen: nothing comes for them, and nothing leaves them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Self

import xxhash

from woodfrog.errors import UnsupportedResource
from woodfrog.image.record import tag_of

if TYPE_CHECKING:
    from woodfrog.engine.sockets import Sockets
    from woodfrog.kernel.netlink import nftables
    from woodfrog.resources.files.base import FileRecord, OpenFile
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

    If we end, in whatever way, so does this. In a network namespace that others have, too, no image
    can have it for connections of theirs.
    """

    def __init__(
        self,
        init: int,
        records: Iterable[TcpSocket],
        networks: Mapping[int, int],
        *,
        new_network: bool,
    ) -> None:
        """Begin in the container's own network; `networks` has others, by ids of files."""
        self._init = init
        self._found: list[TcpSocket] = []
        self._elsewhere: dict[int, list[TcpSocket]] = {}
        for one in records:
            if one.connection is not None:
                number = networks.get(one.id, 0)
                (self._elsewhere.setdefault(number, []) if number else self._found).append(one)
        if self._found and not new_network:
            _refuse_others(init, _ends(self._found))
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


def _refuse_others(init: int, ends: list[nftables.Connection]) -> None:
    """Refuse connections that somebody has here."""
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
