"""Who has a list of changes of semaphores that its end undoes (SEM_UNDO), and what is in it.

kcmp(2) tells whether two tasks have the same list, or both none. Threads share one, as a rule; each
thread or process that shares it was made so by clone(2).
"""

import os
from collections.abc import Sequence

from woodfrog.engine.collecting_ipc import Ipc
from woodfrog.errors import UnsupportedResource
from woodfrog.kernel import namespaces
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.kcmp import KCMP_SYSVSEM, same
from woodfrog.remote.held import Held, HeldProcess, HeldTask
from woodfrog.remote.scratch import Scratch
from woodfrog.resources import semaphore_undo
from woodfrog.resources.semaphore_undo import Undo

# Those of a call to ask, its operations not counted.
_BYTES = 256


def owners(tree: Held) -> list[HeldProcess]:
    """Return the processes that have a list."""
    namespaces.unshare(HERE, namespaces.CLONE_SYSVSEM)  # who has made threads has one
    return [one for one in tree.processes if _has_list(one.pid)]


def _has_list(pid: int) -> bool:
    return not same(KCMP_SYSVSEM, os.getpid(), pid)


class UndoLists:
    """What is in the lists of a held process and its threads."""

    def __init__(self, held: HeldProcess, scratch: Scratch, ipc: Ipc) -> None:
        self._held = held
        self._scratch = scratch
        self._ipc = ipc

    def of_process(self, namespace: int) -> list[Undo]:
        """Return the process's own list, given its ipc namespace."""
        if KCMP_SYSVSEM in self._held.shares:
            return []
        return self._of(self._held.leader, namespace)

    def of_thread(self, task: HeldTask, namespace: int) -> list[Undo] | None:
        """Return a thread's list; None if it has the process's."""
        pid = self._held.pid
        if same(KCMP_SYSVSEM, pid, task.pid):
            return None
        if not _has_list(task.pid):
            return []
        others = [other.pid for other in self._held.tasks if other is not task]
        if any(same(KCMP_SYSVSEM, other, task.pid) for other in others):
            raise UnsupportedResource(
                "has threads of which only some share what semaphores get back at their end"
                " (SEM_UNDO), which cannot be saved yet"
            )
        return self._of(task, namespace)

    def _of(self, task: HeldTask, namespace: int) -> list[Undo]:
        sets, most_operations = self._ipc.semaphores(namespace)
        if not sets or not _has_list(task.pid):
            return []

        def asked(calls: Sequence[tuple[int, bytes]]) -> list[int]:
            answers: list[int] = []
            left = list(calls)
            while left:
                program, results = self._scratch.program(), []
                while left and program.room > len(left[0][1]) + _BYTES:
                    results.append(program.may_fail(semaphore_undo.add(program, *left.pop(0))))
                self._scratch.run(program, task.tracee)
                answers += (program[one] for one in results)
            return answers

        return semaphore_undo.find(sets, most_operations, asked)
