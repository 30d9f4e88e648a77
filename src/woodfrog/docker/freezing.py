"""Freezing a container of docker's by its runtime, without docker carrying the image."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from woodfrog.docker.client import Container, Docker
from woodfrog.docker.telling import tell
from woodfrog.errors import StateError, WoodfrogError

# The runtime sees a container that we have paused; what it was before is for us to say.
_AS_BEFORE = re.compile(r" \(the container is \w+ as before\)")


def check(docker: Docker, name: str, flags: list[str]) -> int:
    """Show what keeps a container from being frozen; returns 1 if there is something."""
    container = _freezable(docker, name)
    # Our own stdout and stderr: what the runtime tells is meant for people.
    command = [*_runtime_of(container), "check", *flags, container.id]
    return subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode


def freeze(
    docker: Docker, name: str, directory: str, flags: list[str], *, leave_running: bool
) -> str:
    """Freeze a container into a directory, or among its own checkpoints; returns which."""
    container = _freezable(docker, name)
    own = not directory
    if own:
        if container.told["HostConfig"]["AutoRemove"] and not leave_running:
            raise WoodfrogError(
                f"container {container.name} was started with --rm: its checkpoints go with it",
                hint=f"name a directory: docker woodfrog checkpoint {container.name} DIR",
            )
        directory = container.checkpoints(docker.data_root)
        directory += time.strftime("/%Y-%m-%d_%H.%M.%S", time.gmtime())
    directory = os.path.abspath(directory)
    # One that is simply gone is started afresh by its restart policy; one that docker kills isn't.
    to_be_killed = container.has_restart_policy and not leave_running
    with _paused(docker, container) if to_be_killed else nullcontext():
        try:
            _call_runtime(container, directory, flags, leave_running or to_be_killed)
        except BaseException as error:
            error.add_note(f"the container is {container.status} as before")
            raise
    if to_be_killed:
        # Since it is paused, not one instruction is run between the image and the end.
        docker("kill", container.id)
    elif not leave_running:
        docker.wait(container)
    return f"{container.name}:{os.path.basename(directory)}" if own else directory


def _freezable(docker: Docker, name: str) -> Container:
    container = docker.container(name)
    if container.status not in ("running", "paused"):
        raise StateError(
            f"cannot checkpoint container {container.name}, which is {container.status}",
            hint=f"start it first: docker start {container.name}",
        )
    docker.check_runtime(container.runtime)
    return container


@contextmanager
def _paused(docker: Docker, container: Container) -> Iterator[None]:
    """Have a container paused; it stays so unless the block fails."""
    if container.status == "paused":
        yield
        return
    docker("pause", container.id)
    try:
        yield
    except BaseException:
        docker("unpause", container.id)
        raise


def _call_runtime(
    container: Container, directory: str, flags: list[str], leave_running: bool
) -> None:
    with tempfile.NamedTemporaryFile() as log:
        command = [*_runtime_of(container), "--log", log.name, "--log-format", "json"]
        command += ["checkpoint", f"--image-path={directory}"]
        if leave_running:
            command.append("--leave-running")
        if container.upper:
            command.append("--with-rootfs")  # docker's writable layer
        done = subprocess.run(
            [*command, *flags, container.id],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
        )
        told = [json.loads(line) for line in log]
    for line in told:
        if line["level"] == "warning":
            tell(line["msg"])
    if done.returncode:
        errors = [line["msg"] for line in told if line["level"] == "error"]
        raise WoodfrogError(_AS_BEFORE.sub("", errors[-1] if errors else done.stderr.strip()))


def _runtime_of(container: Container) -> list[str]:
    """Return the start of the command line with which containerd's shim calls the runtime."""
    bundle = container.bundle
    # The shim keeps here what it needs to clean up after a crash of its own.
    try:
        with open(f"{bundle}/options.json", "rb") as options_file:
            options = json.load(options_file)
        root = os.path.join(options["root"], os.path.basename(os.path.dirname(bundle)))
        command = [options["binary_name"], "--root", root]
    except (OSError, ValueError, KeyError) as error:
        raise WoodfrogError(
            f"cannot tell how docker calls the runtime of container {container.name}: {error}",
            hint=f"use docker's own: docker checkpoint create {container.name} NAME",
        ) from None
    return command
