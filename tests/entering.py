"""Entering a process from a test: it is held, has a scratch area, and runs programs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from woodfrog.kernel import ptrace
from woodfrog.kernel.caller import Argument
from woodfrog.kernel.procfs.maps import read_maps
from woodfrog.kernel.ptrace import Event
from woodfrog.remote.scratch import Scratch
from woodfrog.remote.tracee import Tracee
from woodfrog.remote.vdso import Vdso

VDSO = Vdso()


class Entered:
    """A held process; as a `Caller` it runs programs of one call."""

    def __init__(self, tracee: Tracee, scratch: Scratch, memory: int) -> None:
        self.pid = tracee.pid
        self.tracee = tracee
        self.scratch = scratch
        self.memory = memory

    def call(self, number: int, *arguments: Argument) -> int:
        """Run one call; see `Caller`."""
        program = self.scratch.program()
        result = program.call(number, *arguments)
        self.scratch.run(program)
        return program[result]


def vdso_start(pid: int) -> int:
    """Return where the vDSO of a process is."""
    return next(mapping[0] for mapping in read_maps(pid) if mapping[7] == b"[vdso]")


def padding_of(pid: int) -> bytes:
    """Read the unused end of the vDSO of a process."""
    with open(f"/proc/{pid}/mem", "rb") as memory:
        memory.seek(vdso_start(pid) + VDSO.padding)
        return memory.read(VDSO.room)


@contextmanager
def seized(pid: int) -> Iterator[None]:
    """Hold a task, stopped; it runs on afterwards if it still lives."""
    ptrace.seize(pid)
    try:
        ptrace.interrupt(pid)
        while (status := ptrace.wait(pid)).event is Event.SIGNAL:
            ptrace.resume(pid, status.signal)  # it came first, and must not be lost
        yield
    finally:
        try:
            ptrace.detach(pid)
        except ProcessLookupError:
            pass


@contextmanager
def entered(pid: int, size: int = 65536) -> Iterator[Entered]:
    """Hold a process of one thread and map a scratch area into it."""
    memory = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
    try:
        with seized(pid):
            tracee = Tracee(pid, ptrace.registers(pid))
            with Scratch(tracee, memory, vdso_start(pid), VDSO, size) as scratch:
                yield Entered(tracee, scratch, memory)
    finally:
        os.close(memory)
