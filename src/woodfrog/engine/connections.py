"""TCP connections while a container is frozen: nothing comes for them, and nothing leaves them."""

import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Self

from woodfrog.engine.sockets import Sockets
from woodfrog.errors import UnsupportedResource
from woodfrog.kernel.netlink import nftables
from woodfrog.resources.files import inet, tcp_connection
from woodfrog.resources.files.base import FileRecord, OpenFile
from woodfrog.resources.files.tcp_socket import TcpSocket

_HINT = "--tcp-close restores connections as reset"


@contextmanager
def hushed(init: int, sockets: Sockets) -> Iterator[None]:
    """Drop what comes for the connections of a held container, so that all are of one moment.

    When we end, in whatever way, the kernel lets them hear again; peers repeat what was dropped.
    """
    found = [nftables.Connection(one.local, one.remote) for one in sockets.connections()]
    with ExitStack() as undo:
        if found:
            with _needs_nftables():
                undo.enter_context(nftables.blocked(init, found))
            # What they were before doesn't count.
            sockets.forget_tcp()
        yield


def end_silently(
    init: int, id: str, files: Iterable[OpenFile], records: Iterable[FileRecord]
) -> None:
    """Have connections that were saved end with their processes, and their peers not notice.

    Until a restore takes its connections over, a network namespace that others keep drops what
    comes for those to outside: nobody there would answer but by a reset.
    """
    outside = []
    for file, record in zip(files, records, strict=True):
        if isinstance(record, TcpSocket) and record.connection is not None:
            with socket.socket(fileno=os.dup(file.descriptor)) as one:
                tcp_connection.begin_repair(one)
            if record.connection.outside:
                outside.append(record)
    if outside:
        with _needs_nftables():
            nftables.block(init, _table(id), _ends(outside))


class Silence:
    """What comes for the connections of an image is dropped until all of the container stands.

    If we end, in whatever way, so does this.
    """

    def __init__(self, init: int, id: str, records: Iterable[FileRecord]) -> None:
        self._init = init
        self._id = id
        self._found = [
            one for one in records if isinstance(one, TcpSocket) and one.connection is not None
        ]
        self._undo = ExitStack()
        if self._found:
            ends = _ends(self._found)
            with _needs_nftables():
                self._undo.enter_context(nftables.blocked(init, ends, mark=inet.MARK))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    def end(self) -> None:
        """Let them hear, also those that the checkpoint's `end_silently` went on to block."""
        self._undo.close()
        if any(one.connection is not None and one.connection.outside for one in self._found):
            nftables.unblock(self._init, _table(self._id))


def _table(id: str) -> str:
    return f"woodfrog-{id}"


def _ends(records: Iterable[TcpSocket]) -> list[nftables.Connection]:
    return [
        nftables.Connection(
            (record.local, record.port), (record.connection.remote, record.connection.remote_port)
        )
        for record in records
        if record.connection is not None
    ]


@contextmanager
def _needs_nftables() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UnsupportedResource(
            f"TCP connections need the kernel's nf_tables: {error.strerror or error}", hint=_HINT
        ) from error
