"""Programs in several tasks at once: while one runs, the next is being written."""

from collections import deque
from collections.abc import Callable
from typing import Protocol

import msgspec

from woodfrog.errors import while_
from woodfrog.remote.program import Program

AT_ONCE = 8


class Runner(Protocol):
    """A task that runs programs: a stub, or a held thread that lends itself."""

    def part(self, number: int = 0, of: int = 1) -> tuple[int, int]:
        """Return where a program may stand in the task's data or a part of it, and how long."""

    def start(self, program: Program) -> None:
        """Set a program going."""

    def finish(self, program: Program) -> None:
        """Wait for the program's end and take its results."""


class _Running(msgspec.Struct, frozen=True):
    task: Runner
    program: Program
    doing: str
    then: Callable[[], None]


def _nothing() -> None:
    pass


class SideBySide:
    """Runs one program in each of many tasks, be they of one process; call `finish` at the end.

    Each has a part of the data for itself. A task has one program until `finish`.
    """

    def __init__(self) -> None:
        self._running: deque[_Running] = deque()
        self._turn = 0

    def program(self, task: Runner) -> Program:
        """Return an empty program for a task, to be run before the next one is asked for."""
        return Program(*self.part(task))

    def part(self, task: Runner) -> tuple[int, int]:
        """Return where the next program may stand in a task, and how long it may be."""
        return task.part(self.turn, AT_ONCE)

    @property
    def turn(self) -> int:
        """Which of those that run at once comes next, from 0."""
        return self._turn % AT_ONCE

    def run(
        self, task: Runner, program: Program, doing: str, then: Callable[[], None] = _nothing
    ) -> None:
        """Set a program going; `then` takes its results, and `doing` says for what it is."""
        if not len(program):
            then()
            return
        task.start(program)
        self._running.append(_Running(task, program, doing, then))
        self._turn += 1
        if len(self._running) == AT_ONCE:
            self._finish_first()

    def finish(self) -> None:
        """Wait for all that run."""
        while self._running:
            self._finish_first()

    def _finish_first(self) -> None:
        one = self._running.popleft()
        with while_(one.doing):
            one.task.finish(one.program)
            one.then()
