"""What a held process itself must be asked of its memory."""

import os

from woodfrog.engine.collecting_files import Files
from woodfrog.errors import UnsupportedResource
from woodfrog.kernel.procfs.maps import Mapping as KernelMapping
from woodfrog.remote.held import HeldProcess
from woodfrog.remote.program import Program
from woodfrog.remote.scratch import Scratch
from woodfrog.remote.vdso import Vdso, layout_of
from woodfrog.resources import aio, memory, memory_modes, memory_policy
from woodfrog.resources.memory_modes import MemoryModes
from woodfrog.resources.memory_policy import Policy

_ASKED_AT_ONCE = 200
_ROOM_LEFT = 1 << 10


class Policies:
    """The memory policies of mappings, for which nearly always one program is enough."""

    def __init__(self, program: Program, mappings: list[memory.Mapping]) -> None:
        """Ask in a program that asks for other things, too, as far as it has room."""
        self._kinds: dict[int, int] = {}
        self._starts = [one.start for one in mappings]
        self._ask(program)

    def _ask(self, program: Program) -> None:
        room = max(program.room - _ROOM_LEFT, 0) // memory_policy.ROOM
        known = len(self._kinds)
        self._asked = self._starts[known : known + room]
        self._answer = memory_policy.ask_kinds(program, self._asked)

    def _note(self) -> None:
        self._kinds |= zip(self._asked, self._answer(), strict=True)

    def of(self, scratch: Scratch) -> list[Policy | None]:
        """Return the policy of each mapping, once the program has run."""
        self._note()
        while len(self._kinds) < len(self._starts):
            program = scratch.program()
            self._ask(program)
            scratch.run(program)
            self._note()
        found: dict[int, Policy | None] = {}
        bound = [start for start in self._starts if self._kinds[start]]
        for first in range(0, len(bound), _ASKED_AT_ONCE):
            program = scratch.program()
            some = bound[first : first + _ASKED_AT_ONCE]
            asked = [memory_policy.ask(program, start) for start in some]
            scratch.run(program)
            found |= {start: answer() for start, answer in zip(some, asked, strict=True)}
        return [found.get(start) for start in self._starts]


def refuse_parted_vdso(listed: list[KernelMapping], vdso: Vdso) -> None:
    """Refuse a process whose vDSO isn't whole, as it is mapped again."""
    if layout_of((one.name, one.start, one.end) for one in listed) != vdso.layout:
        raise UnsupportedResource(
            "has moved or unmapped a part of its vDSO, or of its data ([vvar]), alone,"
            " which cannot be saved yet"
        )


def contexts(
    scratch: Scratch, held: HeldProcess, mappings: list[memory.Mapping], files: Files
) -> list[aio.Context]:
    """Read the contexts of Linux AIO."""
    mapped = [one for one in mappings if one.source is memory.Source.AIO]
    if not mapped:
        return []
    # Only such files have requests that are on their way to a disk.
    wait = any(
        file.flags & os.O_DIRECT and file.target.startswith(b"/")
        for _, file, _ in files.table(held)
    )
    found = []
    for first in range(0, len(mapped), _ASKED_AT_ONCE):
        some = mapped[first : first + _ASKED_AT_ONCE]
        program = scratch.program()
        known = [aio.ask(program, one.start) for one in some]
        scratch.run(program)
        for one, answer in zip(some, program.results(known), strict=True):
            length = one.end - one.start
            found.append(aio.collect(held.memory, one.start, length, alive=answer == 0, wait=wait))
    return found


def modes_of(scratch: Scratch, membarrier: int, merges: bool, has_ldt: bool) -> MemoryModes:
    ldt = b""
    if has_ldt:
        program = scratch.program()
        table = memory_modes.read_ldt(program)
        scratch.run(program)
        ldt = table()
    return MemoryModes(membarrier=membarrier, merges=merges, ldt=ldt)
