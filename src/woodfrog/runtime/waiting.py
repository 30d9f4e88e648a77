"""Waiting for what happens to a container: its end, a checkpoint, a restore."""

from __future__ import annotations

import os
import select

from woodfrog.errors import StateError
from woodfrog.kernel import inotify
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.process import pidfd_open
from woodfrog.runtime import cgroups, filling, interrupted
from woodfrog.runtime.foreground import exit_code, status_at_end
from woodfrog.runtime.state import CREATED, STOPPED, UnknownContainer, boot_id, start_time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from woodfrog.runtime.state import Container


def for_end(container: Container) -> int | None:
    """Wait for the end of the first process; returns its exit status, or None if nobody knows it.

    A process that has ended and been reaped before we came has left its status with its parent.
    """
    if container.state["bootId"] == boot_id():
        try:
            pidfd = pidfd_open(HERE, container.pid)
        except ProcessLookupError:
            return _recorded(container)
        try:
            found = start_time(container.pid)
            if found and found[1] == container.state["startTime"]:
                status = status_at_end(container.pid, pidfd)
                return _recorded(container) if status is None else exit_code(status)
        finally:
            os.close(pidfd)
    return _recorded(container)


def _recorded(container: Container) -> int | None:
    """Return what the command that stayed with the container has written down."""
    try:
        container.reload()
    except UnknownContainer:
        return None
    status: int | None = container.state.get("exitStatus")
    return status


def for_end_of(container: Container, pid: int) -> int | None:
    """Wait for the end of another process of the container, by its pid on the host."""
    try:
        pidfd = pidfd_open(HERE, pid)
    except ProcessLookupError:
        raise _no_process(container, str(pid)) from None
    try:
        if pid not in cgroups.processes(container.state["cgroup"]):
            raise _no_process(container, str(pid))
        status = status_at_end(pid, pidfd)
    finally:
        os.close(pidfd)
    return None if status is None else exit_code(status)


def host_pid(container: Container, inside: int) -> int:
    """Return the host's pid of a process that has another in the container's pid namespace."""
    container.require("wait")
    level = len(_ids(container.pid)) - 1
    for pid in cgroups.processes(container.state["cgroup"]):
        if _ids(pid)[level : level + 1] == [inside]:
            return pid
    raise _no_process(container, f"{inside} inside")


def _ids(pid: int) -> list[int]:
    """Return a process's pid in each pid namespace, from ours down to its own."""
    try:
        with open(f"/proc/{pid}/status", "rb", buffering=0) as file:
            line = file.readall().partition(b"\nNSpid:")[2].partition(b"\n")[0]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(word) for word in line.split()]


def _no_process(container: Container, name: str) -> StateError:
    return StateError(
        f"container {container.id} has no process {name}",
        hint=f"`woodfrog ps {container.id}` shows the pids on the host",
    )


def for_checkpoint(container: Container) -> None:
    """Wait for the next checkpoint to be complete."""
    container.require("wait")
    before = container.state.get("checkpoint")

    def is_done(begun: bool) -> bool:
        try:
            container.reload()
        except UnknownContainer:
            if begun:
                return True  # an engine's checkpoint: the container goes with it
            raise
        return bool(container.state.get("checkpoint") != before)

    _watch(container, is_done, "without a checkpoint")


def for_restore(container: Container) -> None:
    """Wait until the container is restored, with all its memory; at once if it is."""

    def is_done(begun: bool) -> bool:
        container.reload()
        if (status := container.status()) == CREATED:
            return False
        if status == STOPPED:
            filling.is_going_on(container)
            return bool(container.state.get("restoredFrom"))
        # Whoever has set it going holds the lock until that is recorded.
        with container.lock():
            container.reload()
        if not container.state.get("restoredFrom"):
            raise StateError(f"container {container.id} was started, not restored")
        return not filling.is_going_on(container)

    _watch(container, is_done, "before it was restored")


def _watch(container: Container, is_done: Callable[[bool], bool], ended: str) -> None:
    """Ask again whenever the container's state is written, until it has ended."""
    events = inotify.IN_MOVED_TO | inotify.IN_CREATE | inotify.IN_DELETE | inotify.IN_DELETE_SELF
    watch = inotify.watch(HERE, container.directory, events)
    pidfd = -1
    begun = False  # a checkpoint was seen at work
    try:
        if container.is_alive():
            pidfd = pidfd_open(HERE, container.pid)
        poll = select.poll()
        poll.register(watch, select.POLLIN)
        if pidfd >= 0:
            poll.register(pidfd, select.POLLIN)
        while not is_done(begun):
            if not container.is_alive():
                # Whoever has ended it holds the lock until that is recorded.
                try:
                    with container.lock():
                        pass
                except UnknownContainer:
                    pass
                if is_done(begun):
                    return
                raise StateError(f"container {container.id} ended {ended}")
            if watch in dict(poll.poll()):
                begun = begun or interrupted.CHECKPOINTING in inotify.names(watch)
    except ProcessLookupError:
        raise StateError(f"container {container.id} ended {ended}") from None
    finally:
        os.close(watch)
        if pidfd >= 0:
            os.close(pidfd)
