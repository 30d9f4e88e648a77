"""Processes that are there for a moment: to be of some id or of nobody, and to end."""

import os
from collections.abc import Iterable, Sequence

from woodfrog.errors import while_
from woodfrog.kernel import ptrace, syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.namespaces import CLONE_FILES
from woodfrog.kernel.ptrace import Event
from woodfrog.remote.stub import Stub, StubError, await_birth
from woodfrog.resources.signals import SIGKILL

_RLIMIT_CORE = 4
_LITTLE_ROOM = 1 << 10


def make(maker: Stub, ids: Sequence[int], flags: int = 0) -> Stub:
    """Make a child of a stub, with these ids in its pid namespaces (outermost first)."""
    program = maker.program()
    maker.born.clear()
    # Exit signal 0: its end is not told to anyone.
    syscalls.clone3(program, flags, 0, ids)
    maker.run(program)
    await_birth(maker.born[0])
    return Stub(maker.born[0], maker.base, maker.size)


def end(maker: Stub, passing: Stub, pid: int, status: int = 0) -> None:
    """Have it end by a wait status, and its maker, which calls it `pid`, wait for it."""
    end_by(passing, status)
    passing.close()
    _wait_for(maker, [pid])


def _wait_for(maker: Stub, pids: Iterable[int]) -> None:
    """Have a stub wait for children that have ended."""
    program = maker.program()
    for pid in pids:
        program.call(SYS.WAIT4, pid, 0, ptrace.WALL, 0)
        if program.room < _LITTLE_ROOM:
            maker.run(program)
            program = maker.program()
    maker.run(program)


def end_by(stub: Stub, status: int) -> None:
    """Have a stub end with a wait status, and take the tracer's part of the news."""
    signal = status & 0x7F
    program = stub.program()
    if signal:
        if signal != SIGKILL:
            program.call(SYS.RT_SIGACTION, signal, bytes(32), 0, 8)
        # A core dump would be ours.
        program.call(SYS.PRLIMIT64, 0, _RLIMIT_CORE, bytes(16), 0)
        stub.run(program)
        ptrace.set_signal_mask(stub.pid, 0)
        os.kill(stub.pid, signal)
        if signal != SIGKILL:
            ptrace.resume(stub.pid)
    else:
        program.call(SYS.EXIT_GROUP, status >> 8 & 0xFF)
        stub.start(program)
    _await_end(stub, signal)


def _await_end(stub: Stub, signal: int) -> None:
    while True:
        found = ptrace.wait(stub.pid)
        if found.event in (Event.EXITED, Event.KILLED):
            return
        if found.event is Event.SIGNAL and found.signal == signal:
            ptrace.resume(stub.pid, signal)
        elif found.event is Event.SIGNAL:
            raise StubError(f"process {stub.pid} did not end")
        else:
            ptrace.resume(stub.pid)


class Delegates:
    """Processes that share the root stub's descriptors, by their ids; the stub itself is 1.

    The kernel remembers of some files which process has made them.
    """

    def __init__(self, root: Stub) -> None:
        self._root = root
        self._stubs: dict[int, Stub] = {1: root}

    def __contains__(self, pid: int) -> bool:
        return pid in self._stubs

    def __getitem__(self, pid: int) -> Stub:
        return self._stubs[pid]

    def make(self, pid: int) -> None:
        """Have one with this id."""
        with while_(f"standing in for process {pid}"):
            self._stubs[pid] = make(self._root, [pid], CLONE_FILES)

    def end(self) -> None:
        """End them all: their ids become free."""
        passing = {pid: stub for pid, stub in self._stubs.items() if stub is not self._root}
        for stub in passing.values():
            program = stub.program()
            program.call(SYS.EXIT_GROUP, 0)
            stub.start(program)
        for stub in passing.values():
            _await_end(stub, 0)
            stub.close()
        _wait_for(self._root, passing)
        self._stubs = {1: self._root}
