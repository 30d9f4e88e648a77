"""What threads must be asked themselves: several at a time, by programs that serve for many."""

from collections.abc import Iterable

from woodfrog.engine.collecting_confined import Confined
from woodfrog.remote.held import HeldProcess, HeldTask
from woodfrog.remote.program import Program
from woodfrog.remote.scratch import Scratch
from woodfrog.remote.side_by_side import SideBySide
from woodfrog.resources import threads


class _Questions:
    """A program that asks one thread after the other."""

    def __init__(self, confined: Confined, seen: HeldProcess | None, *, is_free: bool) -> None:
        """`is_free` if no filter looks at its calls."""
        self.program = Program(0, 0)
        self._answers = threads.Answers(self.program)
        self._refuse = confined.ask(seen, self.program)
        self._personality = threads.ask_personality(self.program) if is_free else None

    def answered(self, task: HeldTask) -> dict[str, object]:
        """Return the fields that the thread has told, in which the program has run."""
        self._refuse()
        asked = self._personality
        personality = threads.read_personality(task.path) if asked is None else self.program[asked]
        return self._answers.fields(task.status) | {"personality": personality}


class AskingThreads:
    """Asks the threads of all processes."""

    def __init__(self, confined: Confined) -> None:
        self._confined = confined
        # One for each thread that is asked at the same time, and whom it is asked to look at.
        self._questions: dict[tuple[int, HeldProcess | None, bool], _Questions] = {}

    def ask(self, scratch: Scratch, tasks: Iterable[HeldTask]) -> list[dict[str, object]]:
        """Ask some threads of a process, in its scratch memory; returns each one's fields."""
        told: list[dict[str, object]] = []
        side = SideBySide()
        for task in tasks:
            seen = self._confined.whom(task)
            is_free = task.tracee.filters is None
            questions = self._questions.get((side.turn, seen, is_free))
            if questions is None:
                questions = _Questions(self._confined, seen, is_free=is_free)
                self._questions[side.turn, seen, is_free] = questions
            lender = scratch.by(task.tracee)
            questions.program.move(*side.part(lender))

            def take(questions: _Questions = questions, task: HeldTask = task) -> None:
                told.append(questions.answered(task))

            side.run(lender, questions.program, f"asking thread {task.namespace_pid}", take)
        side.finish()
        return told
