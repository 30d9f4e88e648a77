"""Hold all tasks of a pid namespace: seize and stop them by ptrace, without a trace.

If we are killed, the kernel lets every task go on by itself.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from woodfrog.errors import WoodfrogError
from woodfrog.kernel import ptrace
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.namespaces import Inhabitants
from woodfrog.kernel.procfs.status import read_stat, read_status
from woodfrog.kernel.ptrace import Event
from woodfrog.remote.held import Held, HeldTask
from woodfrog.remote.seizing import Chase, Pause
from woodfrog.remote.socket_waits import Resumed, Shortened

__all__ = ["Pause", "end_all", "held"]

_PATIENCE_ENDING_S = 10.0
_PATIENCE_LETTING_GO_S = 1.0


@contextmanager
def held(
    init: int,
    pause: Pause | None = None,
    *,
    resumed: Mapping[int, Resumed] | None = None,
) -> Iterator[Held]:
    """Hold every task of the container whose first process is `init` (host pid).

    Whatever happens inside, all tasks run on afterwards as before. `pause` is given for a container
    that is paused: not one instruction of its programs runs.
    `resumed` is what an earlier hold of ours, just now, has left of waits.
    """
    depth = len(read_status(f"/proc/{init}")["NSpid"].split()) - 1
    seized: dict[int, HeldTask] = {}
    tree = Held()
    try:
        with Inhabitants(HERE, init) as inhabitants:
            Chase(inhabitants, depth, seized, tree, pause, resumed or {}).run()
        tree.processes.sort(key=lambda process: process.namespace_pid)
        yield tree
    finally:
        if pause and not tree.has_ended and all(map(_is_stopped, seized.values())):
            try:
                pause(True)
            except WoodfrogError:
                pass  # the runtime does it when they are let go
        waits = [task.socket_wait for task in seized.values() if task.socket_wait]
        shortened = Shortened(waits)
        now = time.monotonic_ns()
        tree.resumed = {wait.task: Resumed(wait, now) for wait in waits}
        for task in seized.values():
            _let_go(task)
        shortened.restore()
        tree.let_go = time.monotonic()
        for process in tree.processes:
            process.forget_memory()
        tree.afterwards.close()


def _is_stopped(task: HeldTask) -> bool:
    try:
        return read_stat(task.path).state == "t"
    except (FileNotFoundError, ProcessLookupError):
        return False


def end_all(tree: Held, init: int) -> None:
    """End a held container for good and wait until its last task has ended."""
    os.kill(init, 9)
    tree.has_ended = True
    for process in tree.processes:
        if process.scratch:
            process.scratch.forget()
    # In no order that we could know: the first process to end waits, in the kernel, until all
    # others have been waited for; what `exec` brought in, by a parent outside, who may be slow.
    left = [task.pid for task in tree.tasks()]
    deadline = time.monotonic() + _PATIENCE_ENDING_S
    while left and time.monotonic() < deadline:
        for pid in list(left):
            try:
                status = ptrace.poll(pid)
            except ChildProcessError:
                left.remove(pid)
                continue
            if status is not None and status.event in (Event.EXITED, Event.KILLED):
                left.remove(pid)
        if left:
            time.sleep(0.0002)


def _let_go(task: HeldTask) -> None:
    try:
        ptrace.detach(task.pid)
    except ProcessLookupError:
        # Ended (then waiting for it is all there is to do), or it runs: stop it to detach.
        try:
            ptrace.interrupt(task.pid)
            deadline = time.monotonic() + _PATIENCE_LETTING_GO_S
            while (status := ptrace.poll(task.pid)) is None and time.monotonic() < deadline:
                time.sleep(0.0002)
            # One that can't be stopped goes on by itself when we end.
            if status is not None and status.event not in (Event.EXITED, Event.KILLED):
                # A signal that came before the stop must not be lost.
                ptrace.detach(task.pid, status.signal if status.event is Event.SIGNAL else 0)
        except (ProcessLookupError, ChildProcessError):
            pass
