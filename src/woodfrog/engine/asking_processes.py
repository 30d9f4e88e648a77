"""What every process must be asked itself, in a program that serves for all of them."""

from functools import cache

from woodfrog.remote.program import Program
from woodfrog.remote.scratch import Scratch
from woodfrog.resources import limits, memory_modes, process, signals, threads, timers


@cache
def usual() -> "AskingProcesses":
    """Return those that serve for all, one after the other; made before anything is held."""
    return AskingProcesses()


class AskingProcesses:
    """The calls that ask a process and its first thread."""

    def __init__(self) -> None:
        self._program = Program(0, 0)
        self.actions = signals.ask(self._program)
        self.interval_timers = timers.ask_interval_timers(self._program)
        self.limits = limits.ask(self._program)
        self.attributes = process.ask(self._program)
        self.modes = memory_modes.ask(self._program)
        self.leader = threads.Answers(self._program)
        self._mark = self._program.mark()

    def program(self, scratch: Scratch) -> Program:
        """Return the program, to be run in a process, to which more calls may be added."""
        self._program.cut(self._mark)
        self._program.move(*scratch.part())
        return self._program
