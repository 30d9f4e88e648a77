"""A held process that has been read; and a way to have it make calls."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from woodfrog.engine import memory_room
from woodfrog.errors import UnsupportedResource
from woodfrog.remote.held import HeldProcess
from woodfrog.remote.scratch import Scratch
from woodfrog.remote.vdso import Vdso
from woodfrog.resources import memory, process


class CollectedProcess:
    """A process without its pages: `space` says which, `fields` are all others of the record."""

    def __init__(self, held: HeldProcess, space: memory.Collected, fields: dict[str, Any]) -> None:
        self.held = held
        self.space = space
        self.fields = fields

    def record(self, pages: list[memory.PageRange], news: set[int]) -> process.Process:
        """Return the record, once it is known where the pages are stored."""
        stopped, unheard = bool(self.fields["stopped_by"]), self.fields["pid"] in news
        self.fields["stop_heard"] = stopped and not unheard
        self.fields["continued"] = unheard and not stopped
        return process.Process(memory=self.space.record(pages), **self.fields)


@contextmanager
def scratch_in(held: HeldProcess, vdso: Vdso) -> Iterator[Scratch]:
    """Lend memory in a held process: that which is lent already, or new one."""
    if held.scratch:
        yield held.scratch
        return
    if not held.vdso[0]:
        raise UnsupportedResource("has no vDSO, through which woodfrog enters a process")
    with memory_room.lent(held, vdso) as held.scratch:
        try:
            yield held.scratch
        finally:
            held.scratch = None
