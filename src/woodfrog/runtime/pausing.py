"""What the tasks of a paused container waited for: being paused hides how long they have."""

from __future__ import annotations

import os

from woodfrog.runtime import cgroups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from woodfrog.remote.hold import Pause
    from woodfrog.runtime.state import Container

_NAME = "waits"


def note_waits(container: Container) -> None:
    """Write down what the tasks wait for, which are about to be paused."""
    from woodfrog.kernel.waiting import SchedulerClocks, look_before_the_hold

    clocks = SchedulerClocks()
    lines = []
    for pid in cgroups.processes(container.state["cgroup"]):
        try:
            tasks = os.listdir(f"/proc/{pid}/task")
        except (FileNotFoundError, ProcessLookupError):  # not there, or gone while it is read
            continue
        for task in tasks:
            wait = look_before_the_hold(f"/proc/{pid}/task/{task}", clocks)
            if wait and wait.since:
                lines.append(f"{task} {wait.number} {wait.since} {wait.switches} {wait.channel}\n")
    with open(container.path(_NAME), "w") as file:
        file.writelines(lines)


def forget_waits(container: Container) -> None:
    """Forget them: the tasks are about to run on."""
    try:
        os.unlink(container.path(_NAME))
    except FileNotFoundError:
        pass


def pause_of(container: Container, *, paused: bool = True, frozen: list[str]) -> Pause:
    """Return what the engine needs to know and to do to hold a paused container.

    `frozen` are groups in it that its programs have frozen; perhaps nothing else is `paused`.
    """
    from woodfrog.kernel.waiting import Waiting
    from woodfrog.remote.hold import Pause

    waits = {}
    try:
        with open(container.path(_NAME)) as file:
            for line in file:
                task, number, since, switches, channel = line.rstrip("\n").split(" ", 4)
                waits[int(task)] = Waiting(int(number), channel, int(since), int(switches))
    except FileNotFoundError:
        pass  # something else has paused it
    groups = container.state["cgroup"]

    def set_paused(to_pause: bool) -> None:
        cgroups.freeze_these(frozen, to_pause)
        if paused:
            cgroups.freeze(groups, to_pause)

    return Pause(
        set_paused,
        waits,
        loses_wakeups=cgroups.freezer(groups)[1],
    )
