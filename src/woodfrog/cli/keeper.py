"""Having the keeper of a container do a command, if there is one: it has all code loaded.

As a rule the launcher has asked it already, before there was an interpreter
(runtime/code/ask_x86_64.S); here is asked whom it has not asked.
"""

from __future__ import annotations

import os

from woodfrog.cli import loading
from woodfrog.runtime import asking
from woodfrog.runtime.asking import KEEPER, Door, NotHere
from woodfrog.runtime.state import check_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from woodfrog.cli.flags import Arguments
    from woodfrog.runtime.state import Container

# What the launcher says of whom it has asked, if anybody: that nobody has begun with the command,
# or that somebody has, and then ended without an exit status.
NOT_BEGUN, BEGUN = "1", "2"


def has_done(arguments: Arguments) -> int | None:
    """Return the exit status, if the keeper has done this command; if not, it is for us to do."""
    if asking.worker():
        return None
    common, id = arguments.common, arguments.rest[0]
    check_id(id)
    if common.asked == NOT_BEGUN:
        return None
    begun, status = common.asked == BEGUN, None
    if not begun:
        begun, status = ask(common.root, id, common.words, os.environb)
    if begun and status is None:
        loading.found(arguments)  # which sets right what was left
        from woodfrog.engine import guardian

        raise guardian.ended("")
    return status


def ask(
    root: str, id: str, words: list[str], environ: Mapping[bytes, bytes]
) -> tuple[bool, int | None]:
    """Have a keeper do a command, if there is one: whether that has begun, and the exit status."""
    connection = Door(f"{root}/{id}", KEEPER).knock()
    if connection is None:
        return False, None
    begun: list[int] = []
    try:
        status = asking.ask(connection, words, environ, begun.append)
    except KeyboardInterrupt:
        _give_up(connection)
        raise
    finally:
        connection.close()
    return bool(begun), status


def _give_up(connection: socket.socket) -> None:
    """Tell who works for us, and wait until all is as it was."""
    from woodfrog.kernel.sockets import sockets

    connection.shutdown(sockets.SHUT_WR)
    while connection.recv(4):
        pass


class held(loading.held):
    """Hold the container's lock. Who works for somebody begins for good, or leaves it to that."""

    def __init__(self, arguments: Arguments) -> None:
        self._worker = asking.worker()
        super().__init__(arguments, wait=self._worker is None)

    def __enter__(self) -> Container:
        if self._worker is None:
            return super().__enter__()
        try:
            container = super().__enter__()
        except BlockingIOError:
            raise NotHere from None
        # The keeper has ended, or is another container's.
        if os.getppid() != self._worker.asked or container.pid != self._worker.init:
            raise NotHere
        self._worker.begin()
        from woodfrog.engine import guardian

        guardian.be_worker(self._worker.connection)
        return container


def leave_to_others() -> None:
    """Have the command done by whoever has asked for it, if we work for somebody."""
    if asking.worker():
        raise NotHere
