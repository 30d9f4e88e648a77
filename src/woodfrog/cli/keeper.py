"""Having the keeper of a container do a command, if there is one: it has all code loaded."""

from __future__ import annotations

import os

from woodfrog.cli import forwarding, loading
from woodfrog.runtime import asking
from woodfrog.runtime.asking import NotHere
from woodfrog.runtime.state import check_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from woodfrog.cli.flags import Arguments
    from woodfrog.runtime.state import Container


def has_done(arguments: Arguments) -> int | None:
    """Return the exit status, if the keeper has done this command; if not, it is for us to do."""
    if asking.worker():
        return None
    common, id = arguments.common, arguments.rest[0]
    check_id(id)
    answer = common.answer or forwarding.ask(common.root, id, common.words, os.environb)
    if answer.begun and answer.status is None:
        loading.found(arguments)  # which sets right what was left
        from woodfrog.engine import guardian

        raise guardian.ended("")
    return answer.status


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
