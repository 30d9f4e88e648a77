"""Freezing a container of docker's by its runtime, without docker carrying the image."""

from __future__ import annotations

import json
import os
import subprocess
import time

from woodfrog.docker.client import Container, Docker
from woodfrog.errors import StateError, WoodfrogError

# What the runtime says of a container that was paused; which is for us to say.
_PAUSED = " (the container is paused as before)"


def freeze(
    docker: Docker, name: str, directory: str, flags: list[str], *, leave_running: bool
) -> str:
    """Freeze a container into a directory, or among its own checkpoints; returns which."""
    container = docker.container(name)
    if container.status not in ("running", "paused"):
        raise StateError(
            f"cannot checkpoint container {container.name}, which is {container.status}",
            hint=f"start it first: docker start {container.name}",
        )
    docker.check_runtime(container.runtime)
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
    was_paused = container.status == "paused"
    if not was_paused:
        docker("pause", container.id)
    try:
        _call_runtime(container, directory, flags)
    except BaseException as error:
        if not was_paused:
            docker("unpause", container.id)
        error.add_note(f"the container is {container.status} as before")
        raise
    if not leave_running:
        # It is paused: not one instruction is run between the image and the end.
        docker("kill", container.id)
    elif not was_paused:
        docker("unpause", container.id)
    return f"{container.name}:{os.path.basename(directory)}" if own else directory


def _call_runtime(container: Container, directory: str, flags: list[str]) -> None:
    command = [*_runtime_of(container), "checkpoint", f"--image-path={directory}"]
    if container.upper:
        command.append("--with-rootfs")  # docker's writable layer
    done = subprocess.run(
        [*command, "--leave-running", *flags, container.id],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=False,
    )
    told = done.stderr.replace("woodfrog: ", "").strip()
    if done.returncode:
        raise WoodfrogError(told.replace(_PAUSED, ""))
    if told:
        os.write(2, told.encode(errors="surrogateescape") + b"\n")


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
