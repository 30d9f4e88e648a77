"""What the runtime does around the engine's checkpoint: state, freezer, and the end."""

from __future__ import annotations

import os

from woodfrog.errors import ImageError, StateError
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.process import pidfd_open
from woodfrog.runtime import cgroups, lifecycle, spec
from woodfrog.runtime import state as states
from woodfrog.runtime.state import PAUSED, Container

TYPE_CHECKING = False
if TYPE_CHECKING:
    from woodfrog.engine.checkpoint import CheckpointOptions
    from woodfrog.runtime.cuda import Toggle


def checkpoint(
    container: Container, directory: str, options: CheckpointOptions, gpus: Toggle | None
) -> dict[str, object]:
    """Freeze a container into directory/checkpoint.img; its lock is held. Returns statistics.

    `gpus` takes what is in GPUs into the memory of the processes that use them.
    """
    from woodfrog.engine import checkpoint as engine

    status = container.require("checkpoint")
    if "mountedOnHost" in container.state:
        raise StateError(
            f"container {container.id} shares the host's mounts, which can't be saved",
            hint="give it a mount namespace in its config",
        )
    config_text = spec.read(container.path("config.json"))
    config = lifecycle.config_of(container)
    # The files of `do` are nowhere else.
    with_rootfs = options.with_rootfs or "scratch" in container.state
    groups = container.state["cgroup"]
    image = os.path.join(os.path.abspath(directory), "checkpoint.img")
    if not options.replace and os.path.lexists(image):
        raise ImageError(
            f"{directory} already holds a checkpoint, which is left as it is",
            hint="name another directory, or remove checkpoint.img first",
        )
    pause = None
    if status == PAUSED:
        # The engine lets it run once it is held. Should we be killed, the next command pauses it.
        container.state["pausedForCheckpoint"] = True
        container.save()

        def pause(paused: bool) -> None:
            cgroups.freeze(groups, paused)

    lifecycle.mark_checkpoint(container)
    try:
        suspended = gpus.suspend(container) if gpus else []
        known = engine.Container(
            id=container.id,
            config=config_text,
            spec_hostname=config.get("hostname") or "",
            tmpfs=spec.tmpfs_destinations(config),
            mounts=container.state.get("mounts"),
            stdio=[(device, inode) for device, inode in container.state.get("stdio", ())],
            suspended=suspended,
            rootfs=container.state["rootfs"] if with_rootfs else "",
        )
        statistics = engine.checkpoint(
            container.pid, directory, container=known, options=options, pause=pause
        )
    except BaseException as error:
        os.unlink(container.path(lifecycle.CHECKPOINTING))
        lifecycle.finish_interrupted(container)
        if isinstance(error, Exception) and container.is_alive():
            how = "paused" if status == PAUSED else "running"
            error.add_note(f"the container is {how} as before")
        raise
    os.unlink(container.path(lifecycle.CHECKPOINTING))
    container.state["checkpoint"] = {"image": image, "time": states.now()}
    if options.leave_running:
        container.save()
        lifecycle.finish_interrupted(container)
    else:
        container.state["checkpoint"]["ended"] = container.pid
        container.state.pop("pausedForCheckpoint", None)
        container.state.pop("cudaSuspended", None)
        container.save()
        _wait_for_end(container)
    return statistics


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
