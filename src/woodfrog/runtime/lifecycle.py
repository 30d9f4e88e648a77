"""What is done with a created container: start, kill, pause, resume, delete."""

from __future__ import annotations

import os
import select

from woodfrog.errors import StateError, WoodfrogError
from woodfrog.kernel.signals import signals
from woodfrog.runtime import cgroups, hooks, jsontext, pausing
from woodfrog.runtime.state import (
    CREATED,
    PAUSED,
    RUNNING,
    STOPPED,
    Container,
    UnknownContainer,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def config_of(container: Container) -> dict[str, Any]:
    """Return the config that the container was created from."""
    from woodfrog.runtime import spec

    text = spec.read(container.path("config.json"))
    config: dict[str, Any] = spec.parse(text, container.path("config.json"))
    spec.complete(config)
    return config


def start(container: Container, config: dict[str, Any]) -> None:
    """Let the waiting init become the container's program; raises what it failed at."""
    if container.state.get("console", -1) >= 0:
        raise StateError(
            f"container {container.id} has a terminal, and nobody to hold its other end",
            hint="create it with --console-socket, or use `woodfrog run`",
        )
    from woodfrog.runtime import given_network

    given_network.note_tables(container, config)
    pidfd = os.pidfd_open(container.pid)
    fifo = os.open(container.path("exec.fifo"), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def take(line: bytes) -> None:
        if not given_network.take(container, line):
            _take_listener(container, config, line)

    try:
        said = _read_until_exec(fifo, pidfd, take)
    finally:
        os.close(fifo)
        os.close(pidfd)
    if said is None:
        raise StateError(f"the init of container {container.id} ended before it was started")
    if said:
        from woodfrog.runtime.channel import recreate

        raise recreate(jsontext.parse(said.decode()))
    os.unlink(container.path("exec.fifo"))
    after_start(container, config)


def after_start(container: Container, config: dict[str, Any]) -> None:
    """Run the poststart hooks; a container whose hooks failed is ended."""
    try:
        hooks.run(config, "poststart", hooks.state_of(container, RUNNING))
    except BaseException:
        _kill_and_wait(container)
        cgroups.kill(container.state["cgroup"], signals.SIGKILL)
        raise


def _take_listener(container: Container, config: dict[str, Any], line: bytes) -> None:
    """Pass on the listener of the init's seccomp profile, and let the init know."""
    from woodfrog.runtime.delivery import fetch_descriptor
    from woodfrog.runtime.seccomp_listener import pass_on

    message = jsontext.parse(line.decode())
    pass_on(config, container, CREATED, container.pid, message["listener"])
    taken = fetch_descriptor(container.pid, message["taken"])
    os.eventfd_write(taken, 1)
    os.close(taken)


def _read_until_exec(fifo: int, pidfd: int, take_line: Callable[[bytes], None]) -> bytes | None:
    """Return the error that the init wrote before its exec closed the FIFO; None if it is dead.

    What it writes as whole lines before is taken as it comes.
    """
    poll = select.poll()
    poll.register(fifo, select.POLLIN)
    poll.register(pidfd, select.POLLIN)
    said = b""
    opened = False
    while True:
        ready = dict(poll.poll())
        if fifo in ready:
            if data := os.read(fifo, 65536):
                said += data
                opened = True
                while b"\n" in said:
                    line, _, said = said.partition(b"\n")
                    take_line(line)
                continue
            # The end: the writer has come (a FIFO without one doesn't poll as ready) and gone.
            return said
        if pidfd in ready:
            return said if opened else None


def kill(container: Container, number: int, *, everything: bool = False) -> None:
    """Send a signal to the container's first process, or to all.

    Without a pid namespace of its own the others outlive the first; SIGKILL is for all, then.
    """
    status = container.status()
    if number == signals.SIGKILL and not container.has_own_pids:
        everything = everything or bool(cgroups.processes(container.state["cgroup"]))
    if status == STOPPED and not everything:
        container.require("kill")
    if everything:
        cgroups.kill(container.state["cgroup"], number)
    else:
        try:
            _signal(container, number)
        except ProcessLookupError:
            container.require("kill")
    if number == signals.SIGKILL:
        _let_die(container, status)


def _let_die(container: Container, status: str) -> None:
    """Kill what is frozen, and thaw it: frozen tasks of v1 don't even die."""
    groups = container.state["cgroup"]
    frozen = cgroups.frozen_below(groups) if "freezer" in groups["paths"] else []
    if (status == PAUSED and groups["version"] == 1) or frozen:
        cgroups.kill(groups, signals.SIGKILL)
        cgroups.freeze_these(frozen, False)
    if status == PAUSED and groups["version"] == 1:
        cgroups.freeze(groups, False)


def _signal(container: Container, number: int) -> None:
    """Send a signal to the container's first process, and to no other that has its pid now."""
    pidfd = os.pidfd_open(container.pid)
    try:
        if not container.is_alive():
            raise ProcessLookupError
        signals.pidfd_send_signal(pidfd, number)
    finally:
        os.close(pidfd)


def pause(container: Container) -> None:
    """Freeze every process of the container."""
    container.require("pause")
    pausing.note_waits(container)
    cgroups.freeze(container.state["cgroup"], True)


def resume(container: Container) -> None:
    """Let a paused container run on."""
    if container.state.get("checkpoint") and container.status() == STOPPED:
        return  # docker and containerd resume what they paused for a checkpoint that ended it
    container.require("resume")
    pausing.forget_waits(container)
    cgroups.freeze(container.state["cgroup"], False)


def delete(root: str, id: str, *, force: bool, warn: Callable[[str], None]) -> None:
    """Remove a stopped container, and with `force` a running one; then there is nothing left."""
    try:
        container = Container.load(root, id)
    except UnknownContainer:
        if force:
            _remove_unfinished(root, id)
            return
        raise
    except StateError:
        if not force:
            raise
        _remove_unfinished(root, id)
        return
    with container.lock():
        container.reload()
        status = container.status() if force else container.require("delete")
        destroy(container, status, warn)


def destroy(container: Container, status: str, warn: Callable[[str], None]) -> None:
    """End what runs and remove all that was made; the container's lock is held."""
    groups = container.state["cgroup"]
    if status != STOPPED:
        _let_die(container, status)
        _kill_and_wait(container)
    cgroups.kill(groups, signals.SIGKILL)
    if container.filling():
        from woodfrog.runtime import filling

        filling.end(container)
    if container.tracking():
        from woodfrog.runtime import tracking

        tracking.end(container)
    cgroups.remove(groups)
    for place in ("scratch", "mountedOnHost"):
        if place in container.state:
            _unmount(container.state[place])
    if (status != CREATED or container.pid) and _mentions_poststop(container):
        config = _config_or_nothing(container)
        for failure in hooks.run_all(config, "poststop", hooks.state_of(container, STOPPED)):
            warn(failure)
    container.remove()


def _mentions_poststop(container: Container) -> bool:
    """Tell whether there may be poststop hooks; without them the config needn't be parsed."""
    try:
        with open(container.path("config.json"), "rb", buffering=0) as file:
            return b"poststop" in file.readall()
    except FileNotFoundError:
        return False


def _config_or_nothing(container: Container) -> dict[str, Any]:
    try:
        return config_of(container)
    except WoodfrogError:
        return {}  # killed while it was being created


def _kill_and_wait(container: Container) -> None:
    try:
        pidfd = os.pidfd_open(container.pid)
    except ProcessLookupError:
        return
    try:
        if not container.is_alive():
            return
        signals.pidfd_send_signal(pidfd, signals.SIGKILL)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(10_000):
            raise StateError(
                f"the first process of container {container.id} (pid {container.pid}) doesn't die",
                hint="it may hang in an uninterruptible call; try again later",
            )
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)


def _unmount(path: str) -> None:
    from woodfrog.kernel import mounts
    from woodfrog.kernel.caller import HERE

    try:
        mounts.umount(HERE, path, mounts.MNT_DETACH)
    except OSError:
        pass  # not mounted: it was killed before, or the host was restarted


def _remove_unfinished(root: str, id: str) -> None:
    """Remove a state directory of ours without a usable state.json; others are not touched."""
    container = Container(root, id, {})
    if not os.path.exists(container.path("lock")):
        return
    _unmount(container.path("scratch"))
    with container.lock():
        container.remove()
