"""Calls that are the same in all clones of a template, compiled once."""

from collections.abc import Callable

from woodfrog.remote.program import Program


class Alike:
    """What has been compiled, by the process whose record it is made of, and by what it does."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, str], tuple[object, Program]] = {}

    def add(
        self,
        program: Program,
        pid: int,
        what: str,
        compile: Callable[[Program], None],
        made_of: object = (),
    ) -> None:
        """Add to a program what `compile` has added for another clone, or adds now.

        That depends on the process's record, the template, and `made_of`, and on nothing else.
        """
        known = self._known.get((pid, what))
        if known is None or known[0] != made_of:
            known = self._known[pid, what] = made_of, Program(0, 0)
            compile(known[1])
        program.extend(known[1])
