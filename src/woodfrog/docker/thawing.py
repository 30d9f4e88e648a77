"""Thawing a checkpoint into a container of docker's that was made for it."""

from __future__ import annotations

import os
import sys
import time

from woodfrog.docker import checkpoints, files, options
from woodfrog.docker.checkpoints import Checkpoint
from woodfrog.docker.client import Container, Docker
from woodfrog.errors import StateError, UsageError, WoodfrogError
from woodfrog.runtime import handover


def start(
    docker: Docker,
    name: str,
    checkpoint: str,
    directory: str,
    attach: list[str],
    *,
    keep_files: bool,
) -> int:
    """Start a container that was created with the checkpoint of this or another container."""
    container = docker.container(name)
    if directory:
        found = checkpoints.in_directory(docker, os.path.join(directory, checkpoint))
    elif ":" in checkpoint:
        found = checkpoints.named(docker, checkpoint)
    else:
        found = checkpoints.of(docker, container, checkpoint)
    status = _thaw(docker, found, container, attach, keep_files)
    if not attach and not status:
        sys.stdout.write(f"{name}\n")
    return status


def restore(docker: Docker, words: list[str], own_help: str) -> int:
    """Create a container and start it with a checkpoint; prints its id unless it is attached.

    The words are options of ours and of `docker create`, the image, and perhaps a command.
    """
    given = options.split(words, own_help + docker("create", "--help"))
    checkpoint, keep_files = given.take("from"), given.take("keep-files")
    if not checkpoint or not given.arguments:
        raise UsageError(
            "restore: the checkpoint or the image is missing",
            hint="docker woodfrog restore --from CONTAINER:NAME|DIR [options] IMAGE [COMMAND]",
        )
    found = checkpoints.named(docker, checkpoint[-1])
    create = given.words()
    if not given.has("runtime"):
        runtime = found.source.runtime if found.source else "woodfrog"
        create.append(f"--runtime={runtime}")
    if found.has_terminal and not given.has("tty"):
        create += ["--tty", "--interactive"]
    if found.has_init and not given.has("init"):
        create.append("--init")
    command = given.arguments
    if len(command) == 1 and not given.has("entrypoint"):
        entrypoint, *rest = found.command
        create.append(f"--entrypoint={entrypoint}")
        command = [*command, *rest]
    container = docker.container(docker("create", *create, *command).strip())
    attach = ["--attach"] if given.has("attach") else []
    if attach and (given.has("interactive") or found.has_terminal):
        attach.append("--interactive")
    try:
        status = _thaw(docker, found, container, attach, bool(keep_files))
    except BaseException:
        docker("rm", "--force", container.id)
        raise
    if not attach:
        sys.stdout.write(f"{container.id}\n")
    return status


def _thaw(
    docker: Docker, found: Checkpoint, container: Container, attach: list[str], keep_files: bool
) -> int:
    _check(docker, found, container)
    if not keep_files:
        _bring_files(found, container)
    name = f"woodfrog-{os.getpid()}"
    at = f"{container.checkpoints(docker.data_root)}/{name}"
    words = ["start", *attach, f"--checkpoint={name}", container.id]
    offer = handover.Offer(found.directory, at)
    try:
        if not attach:
            docker(*words)
            _pass_on_warnings(docker, container)
            return 0
        with docker.attached(*words) as client:
            while client.poll() is None and not offer.is_taken():
                time.sleep(0.01)
            offer.withdraw()
            while client.poll() is None and docker.container(container.id).pid == 0:
                time.sleep(0.05)
            if client.poll() is None:
                _pass_on_warnings(docker, container)
        return client.returncode
    finally:
        offer.withdraw()


def _pass_on_warnings(docker: Docker, container: Container) -> None:
    """Tell what the runtime has warned of, which docker keeps to itself."""
    running = docker.find(container.id)
    for warning in running.warnings() if running else ():
        _say(warning)


def _check(docker: Docker, found: Checkpoint, container: Container) -> None:
    if container.status not in ("created", "exited"):
        raise StateError(
            f"cannot restore into container {container.name}, which is {container.status}",
            hint="it has to be created and not started, or to have ended",
        )
    docker.check_runtime(container.runtime)
    if found.has_terminal != container.has_terminal:
        has, had = ("no terminal", "one") if found.has_terminal else ("a terminal", "none")
        raise WoodfrogError(
            f"container {container.name} has {has}, and that of the checkpoint had {had}",
            hint=f"create it with{'' if found.has_terminal else 'out'} --tty",
        )
    there = {mount["Destination"] for mount in container.told.get("Mounts") or []}
    for place in found.mounts:
        if place not in there:
            _say(f"not kept: what was mounted at {place} (create the container with --volume)")


def _bring_files(found: Checkpoint, container: Container) -> None:
    source = found.source
    if found.has_files or (source and source.id == container.id):
        return
    if not source:
        _say(
            "not kept: the files that the container had changed: it is gone, and they are not in"
            " its checkpoint"
        )
    elif files.move(source, container) and source.status == "running":
        _say(f"the changed files are those that container {source.name} has now: it runs on")


def _say(text: str) -> None:
    sys.stderr.write(f"woodfrog: {text}\n")
