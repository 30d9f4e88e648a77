"""What the runtime does around the engine's checkpoint: state, freezer, and the end."""

from __future__ import annotations

import os

from woodfrog.errors import HolderEndedError, ImageError, StateError, UnsupportedResource
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.process import pidfd_open
from woodfrog.runtime import (
    cgroups,
    filling,
    given_network,
    interrupted,
    lifecycle,
    pausing,
    spec,
    tracking,
)
from woodfrog.runtime import state as states
from woodfrog.runtime.cgroups.memory import memory_room
from woodfrog.runtime.state import PAUSED, Container

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from woodfrog.engine import checkpoint as engine
    from woodfrog.engine.checkpoint import CheckpointOptions
    from woodfrog.remote.hold import Pause
    from woodfrog.runtime.cuda import Toggle


def checkpoint(
    container: Container,
    directory: str,
    options: CheckpointOptions,
    gpus: Toggle | None,
    run: Callable[[list[str]], int],
) -> dict[str, object]:
    """Freeze a container into directory/checkpoint.img; its lock is held. Returns statistics.

    `gpus` takes what is in GPUs into the memory of the processes that use them; `run` is what runs
    command lines, for a keeper.
    """
    from woodfrog.engine import checkpoint as engine

    image = os.path.join(os.path.abspath(directory), "checkpoint.img")
    if not options.replace and os.path.lexists(image):
        raise ImageError(
            f"{directory} already holds a checkpoint, which is left as it is",
            hint="name another directory, or remove checkpoint.img first",
        )
    filling.finish(container)
    keeps = options.leave_running and options.track_changes
    if keeps:
        # Before there is a keeper, which has it from here then.
        engine.prepare(container.pid, known(container, options, []))
    with AtWork(container) as at_work, tracking.Noting(container, run, is_wanted=keeps) as noting:
        suspended = gpus.suspend(container) if gpus else []
        statistics = engine.checkpoint(
            container.pid,
            directory,
            container=known(container, options, suspended),
            options=options,
            pause=at_work.pause,
            tracker=noting,
        )
        at_work.has_ended = not options.leave_running
    container.state["checkpoint"] = {"image": image, "time": states.now()}
    if not options.leave_running:
        container.state["checkpoint"]["ended"] = container.pid
        container.state.pop("pausedForCheckpoint", None)
        container.state.pop("cudaSuspended", None)
    container.save()
    if not options.leave_running:
        _wait_for_end(container)
    return statistics


def examine(container: Container, options: CheckpointOptions) -> dict[str, object]:
    """Look for everything that keeps a container from being saved; see the engine's `examine`."""
    from woodfrog.engine import checkpoint as engine

    filling.finish(container)
    with AtWork(container) as at_work:
        return engine.examine(
            container.pid,
            container=known(container, options, []),
            options=options,
            pause=at_work.pause,
            known=tracking.Tracker(container).known(),
        )


def pre_dump(
    container: Container,
    directory: str,
    options: CheckpointOptions,
    run: Callable[[list[str]], int],
) -> dict[str, object]:
    """Write a container's memory to directory/checkpoint.img; its lock is held."""
    from woodfrog.engine.pre_dump import pre_dump

    filling.finish(container)
    with AtWork(container) as at_work, tracking.Noting(container, run, is_wanted=True) as noting:
        return pre_dump(
            container.pid,
            directory,
            options=options,
            room=memory_room(container.state["cgroup"]),
            pause=at_work.pause,
            tracker=noting,
        )


class AtWork:
    """The engine is at work on a container; unless it has ended, it goes on as it was."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._status = container.require("checkpoint")
        self.has_ended = False
        self.pause: Pause | None = None
        if "mountedOnHost" in container.state:
            raise StateError(
                f"container {container.id} shares the host's mounts, which can't be saved",
                hint="give it a mount namespace in its config",
            )
        _refuse_left_user_namespace(container)

    def __enter__(self) -> AtWork:
        container = self._container
        paused, frozen = self._status == PAUSED, cgroups.frozen_below(container.state["cgroup"])
        if paused or frozen:
            # The engine lets it run once it is held. Should we be killed, the next command pauses
            # it.
            if paused:
                container.state["pausedForCheckpoint"] = True
            container.state["thawedForCheckpoint"] = frozen
            container.save()
            self.pause = pausing.pause_of(container, paused=paused, frozen=frozen)
        interrupted.mark(container)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        container = self._container
        if not isinstance(error, HolderEndedError):
            # Otherwise there may be something to tidy up: `finish` knows by this.
            os.unlink(container.path(interrupted.CHECKPOINTING))
        if self.has_ended:
            return
        interrupted.finish(container)
        if not isinstance(error, Exception):
            return
        if container.is_alive():
            how = "paused" if self._status == PAUSED else "running"
            error.add_note(f"the container is {how} as before")
        else:
            error.add_note("the container has ended meanwhile")


def _refuse_left_user_namespace(container: Container) -> None:
    """Refuse a container whose first process has made itself a user namespace: it is outside.

    What `create` made belongs to the user namespace that it began in.
    """
    began = container.state.get("userNamespace")
    if began and os.readlink(f"/proc/{container.pid}/ns/user") != began:
        raise UnsupportedResource(
            f"the first process of container {container.id} has gone to a user namespace that it"
            " made, which cannot be saved yet",
            hint="have a child of it do so: begin with a shell, or an init (docker run --init)",
        )


def known(
    container: Container, options: CheckpointOptions, suspended: list[int]
) -> engine.Container:
    """Return what only the runtime knows of a container."""
    from woodfrog.engine import checkpoint as engine

    config = lifecycle.config_of(container)
    # The files of `do` are nowhere else.
    with_rootfs = options.with_rootfs or "scratch" in container.state
    return engine.Container(
        id=container.id,
        config=spec.read(container.path("config.json")),
        spec_hostname=config.get("hostname") or "",
        tmpfs=spec.tmpfs_destinations(config),
        namespaces=spec.new_namespaces(config),
        sysctls=(config.get("linux") or {}).get("sysctl") or {},
        network=given_network.noted(container, config),
        tables=given_network.noted_tables(container),
        cgroups=container.state["cgroup"]["paths"],
        frozen_groups=frozenset(container.state.get("thawedForCheckpoint", ())),
        mounts=container.state.get("mounts"),
        memory_room=memory_room(container.state["cgroup"]),
        stdio=[(device, inode) for device, inode in container.state.get("stdio", ())],
        suspended=suspended,
        rootfs=container.state["rootfs"] if with_rootfs else "",
    )


def _wait_for_end(container: Container) -> None:
    """Wait until the first process is gone, so that the container is seen as stopped."""
    import select

    try:
        pidfd = pidfd_open(HERE, container.pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if container.is_alive() and not poll.poll(10_000):
            raise StateError(
                f"the image is complete, but the processes of container {container.id} don't end",
                hint=f"woodfrog delete --force {container.id}",
            )
    finally:
        os.close(pidfd)
