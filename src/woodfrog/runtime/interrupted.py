"""Checkpoints whose command was killed half-way: the next one on the container sets it right."""

from __future__ import annotations

import os

from woodfrog.runtime.state import PAUSED, RUNNING, start_time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from woodfrog.runtime.state import Container

# In the state directory while a checkpoint works on the container: who does, and since when.
CHECKPOINTING = "checkpointing"


def mark(container: Container) -> None:
    """Note that a checkpoint of ours is at work on the container (the lock is held)."""
    with open(container.path(CHECKPOINTING), "w") as file:
        file.write(f"{os.getpid()} {(start_time(os.getpid()) or ('', ''))[1]}")


def recover(container: Container) -> None:
    """Set right what a checkpoint has left whose command was killed; usually there was none."""
    try:
        with open(container.path(CHECKPOINTING)) as file:
            pid, began = file.read().split()
    except (FileNotFoundError, ValueError):
        return
    known = start_time(int(pid))
    if known and known[0] not in "ZX" and known[1] == began:
        return  # it is still at work
    with container.lock():
        container.reload()
        finish(container)


def finish(container: Container) -> None:
    """Set right what a checkpoint that was killed half-way has left (the lock is held)."""
    marker = container.path(CHECKPOINTING)
    groups = container.state["cgroup"]
    if os.path.exists(marker):
        if container.is_alive():
            from woodfrog.engine.tidying import tidy
            from woodfrog.runtime import cgroups, pausing

            paused, frozen = container.status() == PAUSED, cgroups.frozen_below(groups)
            pause = pausing.pause_of(container, paused=paused, frozen=frozen)
            tidy(container.pid, pause if paused or frozen else None)
        os.unlink(marker)
    if "cudaSuspended" in container.state:
        from woodfrog.runtime.cuda import resume_suspended

        resume_suspended(container)
    paused = container.state.pop("pausedForCheckpoint", None)
    frozen = container.state.pop("thawedForCheckpoint", None)
    if paused or frozen:
        from woodfrog.runtime import cgroups

        if container.is_alive():
            cgroups.freeze_these(frozen or [], True)
        if paused and container.status() == RUNNING:
            cgroups.freeze(groups, True)
        container.save()
