"""What of a restore happens while the processes run already: most of their memory comes later."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from woodfrog.engine.body import Body
from woodfrog.engine.plan import Plan
from woodfrog.errors import UnsupportedResource, while_
from woodfrog.image.chain import Chain
from woodfrog.kernel import userfaultfd
from woodfrog.kernel.caller import HERE
from woodfrog.remote import userfaults
from woodfrog.resources import missing_memory
from woodfrog.resources.memory import PageRange
from woodfrog.resources.missing_memory import Division, Missing
from woodfrog.resources.process import Process

if TYPE_CHECKING:
    from woodfrog.engine.filling import Filling, Teller


class Background:
    """The pages that come later; without a teller there are none."""

    def __init__(
        self, init: int, reader: Chain, plan: Plan, teller: Teller | None, undo: ExitStack
    ) -> None:
        self._init = init
        self._reader = reader
        self._teller = teller
        self._undo = undo
        self._filling: Filling | None = None
        self._divisions: dict[int, Division] = {}
        if teller:
            _require()
            for record in plan.processes:
                space = record.memory
                self._divisions[record.pid] = missing_memory.divide(
                    space.mappings, space.pages, missing_memory.may_wait
                )

    @property
    def is_wanted(self) -> bool:
        """Tell whether anything comes later."""
        return self._teller is not None

    def at_once(self, record: Process) -> Sequence[PageRange]:
        """Return the pages that a process needs at once."""
        division = self._divisions.get(record.pid)
        return division.at_once if division else record.memory.pages

    def begin(self, bodies: Iterable[Body], alone: Callable[[], None]) -> None:
        """Begin to fill in what comes later, before anything of the kernel's touches it.

        Before that, `alone` waits for all other threads of ours to end.
        """
        spaces: dict[int, Missing] = {}
        pids: dict[int, int] = {}
        with ExitStack() as failed:
            for body in bodies:
                division = self._divisions.get(body.record.pid)
                if division and division.later:
                    with while_(f"preparing the memory of {body.name}"):
                        descriptor = userfaults.register(body.stub, division.mappings, waits=True)
                    failed.callback(os.close, descriptor)
                    spaces[descriptor] = Missing(division.later)
                    pids[descriptor] = body.record.pid
            if spaces and self._teller:
                from woodfrog.engine import filling
                from woodfrog.engine.working_set import WorkingSet

                alone()
                working_set = WorkingSet(self._reader.directory, self._reader.digest)
                self._undo.callback(working_set.close)
                task = filling.Task(spaces, self._reader.chunks(), pids, working_set)
                self._filling = filling.start(self._init, task, self._teller)
                self._undo.callback(self._filling.close)
            failed.pop_all()

    def confirm(self) -> None:
        """Make sure that who waits for memory gets it; before processes run."""
        if self._filling:
            self._filling.confirm()

    def abandon(self) -> None:
        """Leave nothing behind, once the container has ended."""
        if self._filling:
            self._filling.await_end()


def _require() -> None:
    """Raise UnsupportedResource if pages can't be brought later."""
    try:
        os.close(userfaultfd.create(HERE, kernel_too=True))
    except OSError as error:
        raise UnsupportedResource(
            f"--background is not possible here: {error}",
            hint="it needs the kernel's userfaultfd, and CAP_SYS_PTRACE on the host",
        ) from error
