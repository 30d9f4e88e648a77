"""Seize and stop all tasks of a pid namespace, until no new one appears."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from woodfrog.errors import UnsupportedResource
from woodfrog.kernel import features, ptrace
from woodfrog.kernel.kcmp import KCMP_VM, same
from woodfrog.kernel.namespaces import Inhabitants
from woodfrog.kernel.procfs.reading import read_file
from woodfrog.kernel.procfs.status import read_stat, read_status
from woodfrog.kernel.ptrace import Event, Status
from woodfrog.kernel.signals import signals
from woodfrog.kernel.waiting import SchedulerClocks, Waiting, look_before_the_hold
from woodfrog.remote.held import Held, HeldProcess, HeldTask, Zombie, called
from woodfrog.remote.seccomp import Filters
from woodfrog.remote.socket_waits import Resumed

_PATIENCE_S = 10.0
_PATIENCE_CHASING_S = 30.0
_TRIES_IN_VDSO = 200
_A_MOMENT_S = 20e-6
_SOON_BACK_S = 1e-3
_LOOKS = 100
_IO_URING = b"iou-"
_PF_IO_WORKER, _PF_USER_WORKER = 0x10, 0x4000


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


class Chase:
    """Seizes and stops tasks until no new one appears; `seized` and `tree` get what it finds.

    Nor may one have ended meanwhile: since the list was made, it may have had children. Nor may
    who is held have a child that the list lacks: where ids begin anew, it got one behind our back.
    """

    def __init__(
        self,
        inhabitants: Inhabitants,
        depth: int,
        seized: dict[int, HeldTask],
        tree: Held,
        pause: Pause | None,
        resumed: Mapping[int, Resumed],
    ) -> None:
        self._inhabitants = inhabitants
        self._depth = depth
        self._seized = seized
        self._tree = tree
        self._pause = pause
        self._resumed = resumed
        self._processes: dict[int, HeldProcess] = {}
        self._filters: dict[tuple[bytes, ...], Filters] = {}
        self._clocks = SchedulerClocks()
        self._ended: set[int] = set()

    def run(self) -> None:
        """Do so; raises UnsupportedResource if some can't be stopped, or they are too many."""
        tree = self._tree
        while True:
            if tree.began and time.monotonic() > tree.began + _PATIENCE_CHASING_S:
                raise UnsupportedResource(
                    "processes begin and end faster than they can be stopped",
                    hint="pause the container first",
                )
            known_ended, self._ended = self._ended, set()
            inside = self._inhabitants.now()
            fresh = self._seize(inside)
            if fresh or self._pause:
                self._stop(fresh)
            elif (
                self._ended <= known_ended
                and not self._inhabitants.has_missed
                and not self._has_overlooked(inside)
            ):
                break
        self._tell(inside)

    def _seize(self, inside: Iterable[int]) -> list[HeldTask]:
        """Seize the tasks that are not seized yet, and return them."""
        fresh: list[HeldTask] = []
        for pid in inside:
            try:
                process = self._processes.get(pid)
                if process is None:
                    process = self._processes[pid] = HeldProcess(pid, self._depth)
                for task in _seize_tasks(
                    process, self._seized, self._clocks, self._pause, self._ended
                ):
                    task.resumed = self._resumed.get(task.pid)
                    fresh.append(task)
            except (FileNotFoundError, ProcessLookupError):
                self._ended.add(pid)
        return fresh

    def _stop(self, fresh: list[HeldTask]) -> None:
        self._tree.began = self._tree.began or time.monotonic()
        for task in fresh:
            ptrace.interrupt(task.pid)
        may_run_on = self._pause is None
        if self._pause:
            # A task that v1's freezer holds can't stop; thawed now, it stops before all else.
            self._pause(False)
            self._pause = None
        _await_stops(fresh, self._seized, self._filters, may_run_on=may_run_on)

    def _has_overlooked(self, inside: list[int]) -> bool:
        """Note the children of held tasks that aren't listed; tell if one should have been."""
        listed = set(inside)
        for task in self._seized.values():
            task.strangers = [child for child in _children(task) if child not in listed]
            if any(map(self._inhabitants.may_include, task.strangers)):
                return True
        return False

    def _tell(self, inside: Iterable[int]) -> None:
        """Tell the tree what is held, and who has ended."""
        tree = self._tree
        for process in self._processes.values():
            process.tasks = [task for task in process.tasks if task.pid in self._seized]
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
        tree.zombies = list(_zombies(self._depth, (pid for pid in inside if pid not in living)))


def _refuse_unreachable(process: HeldProcess) -> None:
    if process.is_headless and not features.pidfd_thread():
        raise UnsupportedResource(
            f"the first thread of process {process.group} has ended while others run on, whose"
            " files only a newer kernel (Linux 6.9) shows"
        )


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


class _Stops:
    """The stops of tasks that were interrupted.

    One that stops inside the vDSO runs on for a moment, if it may: the code there will be another
    under another kernel. So does, in any case, one in code of ours, of a checkpoint that was killed
    just now: what is left of that is about to be taken away. (Who takes our code for its own, and
    stays there, is stopped like any other in the end.)
    """

    def __init__(
        self, tasks: list[HeldTask], seized: dict[int, HeldTask], *, may_run_on: bool
    ) -> None:
        self._seized = seized
        self._tries_left = _TRIES_IN_VDSO if may_run_on else 0
        self._waiting = {task.pid: task for task in tasks}
        self._deadline = time.monotonic() + _PATIENCE_S
        self.stopped: list[HeldTask] = []
        # Children of a vfork, which run on.
        self.let_run: list[HeldTask] = []

    def wait(self) -> None:
        """Wait until all have stopped, or ended."""
        next_look = time.monotonic() + 0.02
        while self._waiting:
            for pid in list(self._waiting):
                status = ptrace.poll(pid)
                if status is not None:
                    self._take(pid, status)
            if not self._waiting:
                break
            now = time.monotonic()
            if now > self._deadline:
                _refuse_unstoppable(next(iter(self._waiting.values())))
            if now > next_look:
                next_look = now + 0.02
                self._run_vfork_children()
            time.sleep(0.0002)

    def _take(self, pid: int, status: Status) -> None:
        """Take the news of a task."""
        if status.event in (Event.EXITED, Event.KILLED):
            self._waiting.pop(pid).process.forget_memory()
            self._seized.pop(pid, None)
        elif status.event is not Event.STOPPED:
            # A signal came first: it acts as if we weren't here, then the task stops.
            ptrace.resume(pid, status.signal)
        else:
            task = self._waiting[pid]
            task.stopped_by = 0 if status.signal == signals.SIGTRAP else status.signal
            task.mend()
            if self._tries_left and task.is_in_vdso():
                self._tries_left -= 1
                _run_for(pid, _A_MOMENT_S)
            elif time.monotonic() < self._deadline and not task.has_left_leftover():
                _run_for(pid, _SOON_BACK_S)
            else:
                self.stopped.append(self._waiting.pop(pid))

    def _run_vfork_children(self) -> None:
        """Let the held child of a vfork run on: its parent can't stop before it execs or exits."""
        for parent in list(self._waiting.values()):
            running = [*self._waiting.values(), *self.let_run]
            for pid in _children(parent):
                task = self._seized.get(pid)
                if task is not None and task not in running and same(KCMP_VM, parent.pid, pid):
                    ptrace.resume(pid)
                    task.process.forget_memory()
                    self.let_run.append(task)


def _run_for(pid: int, seconds: float) -> None:
    """Let a stopped task run for a moment, and interrupt it again."""
    ptrace.resume(pid)
    time.sleep(seconds)
    ptrace.interrupt(pid)


def _await_stops(
    tasks: list[HeldTask],
    seized: dict[int, HeldTask],
    filters: dict[tuple[bytes, ...], Filters],
    *,
    may_run_on: bool,
) -> None:
    """Wait until all these tasks have stopped, and look at them."""
    stops = _Stops(tasks, seized, may_run_on=may_run_on)
    stops.wait()
    for task in stops.stopped:
        if task not in stops.let_run:
            task.process.open_memory()
            task.look(filters)
    for task in stops.let_run:
        try:
            ptrace.interrupt(task.pid)
        except ProcessLookupError:
            pass  # it has ended, as the wait will tell
    if stops.let_run:
        _await_stops(stops.let_run, seized, filters, may_run_on=may_run_on)


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
