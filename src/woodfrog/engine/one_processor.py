"""One processor for us and for a process that only runs while we wait for it.

To wake a task on another processor, which sleeps until then, takes much longer than to take turns
on one (on a virtual machine 70 µs from one stop to the next, against 13), and a clone stops twenty
times.
"""

import os
from collections.abc import Iterable
from contextlib import ExitStack

from woodfrog.engine.plan import Plan
from woodfrog.kernel import scheduling as processors
from woodfrog.kernel.caller import HERE
from woodfrog.resources import scheduling
from woodfrog.resources.scheduling import Scheduling


def suits(plan: Plan) -> bool:
    """Tell whether there is but one process, and the kernel lets its threads be bound."""
    # Several run side by side. And who has a deadline may not be bound.
    return len(plan.processes) == 1 and all(
        one.scheduling.policy == scheduling.SCHED_OTHER for one in plan.processes[0].threads
    )


class OneProcessor:
    """Binds a process, which has one thread, and us; `undo` lets us go again."""

    def __init__(self, pid: int, undo: ExitStack) -> None:
        self._is_bound = False
        allowed = os.sched_getaffinity(0)
        here = processors.current_processor(HERE)
        try:
            os.sched_setaffinity(pid, {here})
        except OSError:
            return  # its cpuset is without it, or a filter around us forbids it
        self._is_bound = True
        undo.callback(os.sched_setaffinity, 0, allowed)
        os.sched_setaffinity(0, {here})

    def leave(self, tasks: Iterable[tuple[int, Scheduling]], default: Scheduling) -> None:
        """Have each task, by its pid, run wherever it may; who is bound otherwise is by now."""
        if not self._is_bound:
            return
        for pid, recorded in tasks:
            if not scheduling.chosen_processors(recorded, default):
                processors.set_affinity(HERE, pid, -1)
