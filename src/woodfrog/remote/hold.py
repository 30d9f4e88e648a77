"""Hold all tasks of a pid namespace: seize and stop them by ptrace, without a trace.

If we are killed, the kernel lets every task go on by itself.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from woodfrog.errors import UnsupportedResource, WoodfrogError
from woodfrog.kernel import features, ptrace
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.kcmp import KCMP_VM, same
from woodfrog.kernel.namespaces import Inhabitants
from woodfrog.kernel.procfs.reading import read_file
from woodfrog.kernel.procfs.status import read_stat, read_status
from woodfrog.kernel.ptrace import Event
from woodfrog.kernel.signals import signals
from woodfrog.kernel.waiting import SchedulerClocks, Waiting, look_before_the_hold
from woodfrog.remote.held import Held, HeldProcess, HeldTask, Zombie, called
from woodfrog.remote.seccomp import Filters
from woodfrog.remote.socket_waits import Resumed, Shortened

_PATIENCE_S = 10.0
_PATIENCE_CHASING_S = 30.0
_TRIES_IN_VDSO = 200
_A_MOMENT_S = 20e-6
_SOON_BACK_S = 1e-3
_LOOKS = 100
_IO_URING = b"iou-"
_PF_IO_WORKER, _PF_USER_WORKER = 0x10, 0x4000
_PATIENCE_LETTING_GO_S = 1.0


class Pause:
    """What holds a paused container: call it to pause the container, or to let it run on.

    `waits` is what tasks waited for when it was paused; that it has been hides since when. By the
    freezer of cgroup v1, `loses_wakeups`, a task can't be seized in a group stop.
    """

    def __init__(
        self,
        set_paused: Callable[[bool], None],
        waits: Mapping[int, Waiting],
        *,
        loses_wakeups: bool,
    ) -> None:
        self._set_paused = set_paused
        self.waits = waits
        self.loses_wakeups = loses_wakeups

    def __call__(self, paused: bool) -> None:
        self._set_paused(paused)


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
            _stop_all(inhabitants, depth, seized, tree, pause, resumed or {})
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


def _stop_all(
    inhabitants: Inhabitants,
    depth: int,
    seized: dict[int, HeldTask],
    tree: Held,
    pause: Pause | None,
    resumed: Mapping[int, Resumed],
) -> None:
    """Seize and stop until no new task appears.

    Nor may one have ended meanwhile: since the list was made, it may have had children. Nor may
    who is held have a child that the list lacks: where ids begin anew, it got one behind our back.
    """
    processes: dict[int, HeldProcess] = {}
    filters: dict[tuple[bytes, ...], Filters] = {}
    clocks = SchedulerClocks()
    ended: set[int] = set()
    while True:
        if tree.began and time.monotonic() > tree.began + _PATIENCE_CHASING_S:
            raise UnsupportedResource(
                "processes begin and end faster than they can be stopped",
                hint="pause the container first",
            )
        known_ended, ended = ended, set()
        fresh: list[HeldTask] = []
        inside = inhabitants.now()
        for pid in inside:
            try:
                process = processes.get(pid)
                if process is None:
                    process = processes[pid] = HeldProcess(pid, depth)
                for task in _seize_tasks(process, seized, clocks, pause, ended):
                    task.resumed = resumed.get(task.pid)
                    fresh.append(task)
            except (FileNotFoundError, ProcessLookupError):
                ended.add(pid)
        if not fresh and not pause:
            if (
                ended <= known_ended
                and not inhabitants.has_missed
                and not _has_overlooked(inhabitants, inside, seized.values())
            ):
                break
            continue
        tree.began = tree.began or time.monotonic()
        for task in fresh:
            ptrace.interrupt(task.pid)
        may_run_on = pause is None
        if pause:
            # A task that v1's freezer holds can't stop; thawed now, it stops before all else.
            pause(False)
            pause = None
        _await_stops(fresh, seized, filters, may_run_on=may_run_on)
    for process in processes.values():
        process.tasks = [task for task in process.tasks if task.pid in seized]
        if process.tasks:
            process.tasks.sort(key=lambda task: (task.pid != process.group, task.pid))
            process.reach_by(process.tasks[0].pid)
            process.open_memory()
            _refuse_unreachable(process)
            tree.processes.append(process)
        else:
            process.forget_memory()
    # Only now can nobody wait for them any more.
    living = {process.group for process in tree.processes}
    tree.zombies = list(_zombies(depth, (pid for pid in inside if pid not in living)))


def _has_overlooked(
    inhabitants: Inhabitants, inside: list[int], seized: Iterable[HeldTask]
) -> bool:
    """Note the children of held tasks that aren't listed; tell whether one should have been."""
    listed = set(inside)
    for task in seized:
        task.strangers = [child for child in _children(task) if child not in listed]
        if any(map(inhabitants.may_include, task.strangers)):
            return True
    return False


def _refuse_unreachable(process: HeldProcess) -> None:
    if process.is_headless and not features.pidfd_thread():
        raise UnsupportedResource(
            f"the first thread of process {process.group} has ended while others run on, whose"
            " files only a newer kernel (Linux 6.9) shows"
        )


def _is_stopped(task: HeldTask) -> bool:
    try:
        return read_stat(task.path).state == "t"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _zombies(depth: int, pids: Iterable[int]) -> Iterator[Zombie]:
    for pid in pids:
        try:
            yield Zombie(pid, depth)
        except (FileNotFoundError, ProcessLookupError):
            continue  # a parent outside has waited for it


def _seize_tasks(
    process: HeldProcess,
    seized: dict[int, HeldTask],
    clocks: SchedulerClocks,
    pause: Pause | None,
    ended: set[int],
) -> list[HeldTask]:
    """Seize the tasks of a process that are not seized yet; note which have ended."""
    fresh = []
    for tid in sorted(map(int, os.listdir(f"{process.path}/task"))):
        if tid in seized:
            continue
        path = f"{process.path}/task/{tid}"
        if pause and pause.loses_wakeups and _may_be_stopped(path):
            continue
        try:
            if name := _kernels_own(path):
                process.has_kernel_threads |= not name.startswith(_IO_URING)
                continue
        except (FileNotFoundError, ProcessLookupError):
            ended.add(tid)
            continue
        # A thread that ends meanwhile must not keep us from stopping those seized before it.
        try:
            ptrace.seize(tid)
        except ProcessLookupError:
            ended.add(tid)
            continue
        except PermissionError:
            try:
                if read_stat(path).state in "ZX":
                    ended.add(tid)
                    continue
                tracer = read_status(path).get("TracerPid", "0")
            except (FileNotFoundError, ProcessLookupError):
                ended.add(tid)
                continue
            if tracer != "0":
                traced, by = (called(pid, process.depth) for pid in (process.group, int(tracer)))
                raise UnsupportedResource(
                    f"{traced} is traced by {by}, which cannot be saved yet",
                    hint="let the debugger, strace or the like detach first",
                ) from None
            raise
        waiting = look_before_the_hold(path, clocks)
        if pause and waiting:
            waiting = waiting.as_it_was(pause.waits.get(tid))
        task = HeldTask(process, tid, path, waiting)
        seized[tid] = task
        process.tasks.append(task)
        fresh.append(task)
    return fresh


def _kernels_own(path: str) -> bytes:
    """Return the name of a thread that is one of the kernel's that works for the process, or b"".

    It can be seized, but never stops. Those of io_uring end by themselves.
    """
    name = read_file(f"{path}/comm", in_pieces=False)
    if not name.startswith((_IO_URING, b"vhost-")):
        return b""
    return name if read_stat(path).flags & (_PF_IO_WORKER | _PF_USER_WORKER) else b""


def _may_be_stopped(path: str) -> bool:
    """Tell whether a paused task may be in a group stop, where it stays when it is thawed.

    To seize one that v1's freezer holds would wait for ever: its wake-up is lost. Nothing but the
    place where it sleeps tells them from others, once it does sleep.
    """
    for _ in range(_LOOKS):
        with open(f"{path}/wchan", encoding="ascii") as file:
            place = file.read()
        if place != "0":
            return place in ("do_signal_stop", "get_signal")
        time.sleep(0.001)
    return True  # this kernel doesn't tell


def _await_stops(
    fresh: list[HeldTask],
    seized: dict[int, HeldTask],
    filters: dict[tuple[bytes, ...], Filters],
    *,
    may_run_on: bool,
) -> None:
    """Wait until all these tasks have stopped, and look at them.

    One that stops inside the vDSO runs on for a moment, if it may: the code there will be another
    under another kernel. So does, in any case, one in code of ours, of a checkpoint that was killed
    just now: what is left of that is about to be taken away. (Who takes our code for its own, and
    stays there, is stopped like any other in the end.)
    """
    tries_left = _TRIES_IN_VDSO if may_run_on else 0
    waiting = {task.pid: task for task in fresh}
    deadline = time.monotonic() + _PATIENCE_S
    next_look = time.monotonic() + 0.02
    let_run: list[HeldTask] = []
    stopped: list[HeldTask] = []
    while waiting:
        for pid in list(waiting):
            status = ptrace.poll(pid)
            if status is None:
                continue
            if status.event is Event.STOPPED:
                task = waiting.pop(pid)
                task.stopped_by = 0 if status.signal == signals.SIGTRAP else status.signal
                task.mend()
                if tries_left and task.is_in_vdso():
                    tries_left -= 1
                    waiting[pid] = task
                    ptrace.resume(pid)
                    time.sleep(_A_MOMENT_S)
                    ptrace.interrupt(pid)
                    continue
                if time.monotonic() < deadline and task.is_in_leftover():
                    waiting[pid] = task
                    ptrace.resume(pid)
                    time.sleep(_SOON_BACK_S)
                    ptrace.interrupt(pid)
                    continue
                stopped.append(task)
            elif status.event in (Event.EXITED, Event.KILLED):
                waiting.pop(pid).process.forget_memory()
                seized.pop(pid, None)
            else:
                # A signal came first: it acts as if we weren't here, then the task stops.
                ptrace.resume(pid, status.signal)
        if not waiting:
            break
        now = time.monotonic()
        if now > deadline:
            _refuse_unstoppable(next(iter(waiting.values())))
        if now > next_look:
            next_look = now + 0.02
            for task in list(waiting.values()):
                let_run += _run_vfork_children(task, [*waiting.values(), *let_run], seized)
        time.sleep(0.0002)
    for task in stopped:
        if task not in let_run:
            task.process.open_memory()
            task.look(filters)
    for task in let_run:
        try:
            ptrace.interrupt(task.pid)
        except ProcessLookupError:
            pass  # it has ended, as the wait will tell
    if let_run:
        _await_stops(let_run, seized, filters, may_run_on=may_run_on)


def _run_vfork_children(
    parent: HeldTask, running: list[HeldTask], seized: dict[int, HeldTask]
) -> list[HeldTask]:
    """Let the held child of a vfork run on: its parent can't stop before it execs or exits."""
    started = []
    for pid in _children(parent):
        task = seized.get(pid)
        if task is not None and task not in running and same(KCMP_VM, parent.pid, pid):
            ptrace.resume(pid)
            task.process.forget_memory()
            started.append(task)
    return started


def _children(parent: HeldTask) -> list[int]:
    try:
        return [int(word) for word in read_file(f"{parent.path}/children").split()]
    except OSError:
        return []


def _refuse_unstoppable(task: HeldTask) -> None:
    stat = read_stat(task.path)
    for child in _children(task):
        if same(KCMP_VM, task.pid, child):
            raise UnsupportedResource(
                f"task {task.pid} ({os.fsdecode(stat.comm)}) waits in vfork(2) for its child"
                f" {child}, which neither executes another program nor ends",
                hint="it cannot be held meanwhile; try again when it has gone on",
            )
    raise UnsupportedResource(
        f"task {task.pid} ({os.fsdecode(stat.comm)}) does not stop (state {stat.state})",
        hint="it may wait for a dead file server or a device; try again when it has gone on",
    )


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
    deadline = time.monotonic() + _PATIENCE_S
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
