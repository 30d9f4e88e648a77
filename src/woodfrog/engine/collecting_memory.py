"""What a held process itself must be asked of its memory."""

import os

from woodfrog.engine.collecting_files import Files
from woodfrog.remote.held import HeldProcess
from woodfrog.remote.tracee import Scratch
from woodfrog.resources import aio, memory, memory_modes, memory_policy
from woodfrog.resources.memory_modes import MemoryModes
from woodfrog.resources.memory_policy import Policy

_ASKED_AT_ONCE = 200


def policies(scratch: Scratch, mappings: list[memory.Mapping]) -> list[Policy | None]:
    """Ask for the memory policy of each mapping."""
    found: list[Policy | None] = []
    for first in range(0, len(mappings), _ASKED_AT_ONCE):
        program = scratch.program()
        asked = [
            memory_policy.ask(program, mapping.start)
            for mapping in mappings[first : first + _ASKED_AT_ONCE]
        ]
        scratch.run(program)
        found += (answer() for answer in asked)
    return found


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
