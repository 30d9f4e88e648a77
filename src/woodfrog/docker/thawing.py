"""Thawing a checkpoint into a container of docker's that was made for it."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass

from woodfrog.docker import checkpoints, files, options
from woodfrog.docker.checkpoints import Checkpoint
from woodfrog.docker.client import Container, Docker
from woodfrog.docker.telling import tell
from woodfrog.errors import StateError, UsageError, WoodfrogError
from woodfrog.runtime import handover


@dataclass(frozen=True)
class WantedFiles:
    """Where the files come from that the frozen container had changed.

    That is the image, if they are in it, or the container that owns the checkpoint.
    """

    source: str = ""  # ... or this container
    keep: bool = False  # ... or nowhere: the new container's are right


def start(
    docker: Docker,
    name: str,
    checkpoint: str,
    directory: str,
    attach: list[str],
    wanted: WantedFiles,
) -> int:
    """Start a container that was created with the checkpoint of this or another container."""
    container = docker.container(name)
    if directory:
        found = Checkpoint(os.path.abspath(os.path.join(directory, checkpoint)), None)
    elif ":" in checkpoint:
        found = checkpoints.named(docker, checkpoint)
    else:
        found = checkpoints.of(docker, container, checkpoint)
    status = _thaw(docker, found, container, attach, wanted)
    if not attach:
        sys.stdout.write(f"{name}\n")
    return status


def restore(docker: Docker, words: list[str], own_help: str) -> int:
    """Create a container and start it with a checkpoint; prints its id unless it is attached.

    The words are options of ours and of `docker create`, the image, and perhaps a command.
    """
    given = options.split(words, own_help + docker("create", "--help"))
    checkpoint = given.take("from")
    wanted = WantedFiles("".join(given.take("files-from")[-1:]), bool(given.take("keep-files")))
    if not checkpoint or not given.arguments:
        raise UsageError(
            "restore: the checkpoint or the image is missing",
            hint="docker woodfrog restore --from CONTAINER:NAME|DIR [options] IMAGE [COMMAND]",
        )
    found = checkpoints.named(docker, checkpoint[-1])
    create = given.words()
    if not given.has("runtime"):
        runtime = found.owner.runtime if found.owner else "woodfrog"
        create.append(f"--runtime={runtime}")
    if found.has_terminal and not given.has("tty"):
        create += ["--tty", "--interactive"]
    if found.has_init and not given.has("init"):
        create.append("--init")
    command = given.arguments
    if len(command) == 1 and found.command and not given.has("entrypoint"):
        create.append(f"--entrypoint={found.command[0]}")
        command = [*command, *found.command[1:]]
    container = docker.container(docker("create", *create, *command).strip())
    attach = ["--attach"] if given.has("attach") else []
    if attach and (given.has("interactive") or found.has_terminal):
        attach.append("--interactive")
    try:
        status = _thaw(docker, found, container, attach, wanted)
    except BaseException:
        docker("rm", "--force", container.id)
        raise
    if not attach:
        sys.stdout.write(f"{container.id}\n")
    elif status and (left := docker.find(container.id)) and left.status == "created":
        docker("rm", container.id)  # it was never restored, as docker's client has said
    return status


def _thaw(
    docker: Docker,
    found: Checkpoint,
    container: Container,
    attach: list[str],
    wanted: WantedFiles,
) -> int:
    _check(docker, found, container)
    _bring_files(docker, found, container, wanted)
    ticket = handover.Ticket(found.directory, container.checkpoints(docker.data_root))
    words = ["start", *attach, f"--checkpoint={ticket.name}", container.id]
    try:
        if not attach:
            docker(*words)
            _pass_on_warnings(docker, container)
            return 0
        with docker.attached(*words) as client:
            while client.poll() is None and not ticket.is_taken():
                time.sleep(0.01)
            ticket.withdraw()
            while client.poll() is None and docker.container(container.id).pid == 0:
                time.sleep(0.05)
            if client.poll() is None:
                _pass_on_warnings(docker, container)
        return client.returncode
    finally:
        ticket.withdraw()


def _pass_on_warnings(docker: Docker, container: Container) -> None:
    """Tell what the runtime has warned of, which docker keeps to itself."""
    running = docker.find(container.id)
    for warning in running.warnings() if running else ():
        tell(warning)


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
    there = {mount["Destination"]: mount["Source"] for mount in container.told.get("Mounts") or []}
    for place, source in found.volumes.items():
        if place not in there:
            tell(f"the frozen container had a volume at {place}: the new one needs --volume, too")
        elif there[place] != source:
            tell(
                f"{place} is another volume than the frozen container's, with other contents"
                " (--volumes-from gives the new one the same)"
            )


def _bring_files(
    docker: Docker, found: Checkpoint, container: Container, wanted: WantedFiles
) -> None:
    if wanted.keep or (found.has_files and not wanted.source):
        return
    source = docker.container(wanted.source) if wanted.source else found.owner
    if source is None:
        tell(
            "not kept: the files that the container had changed, which are not in its checkpoint"
            " (--files-from copies them from a container)"
        )
        return
    moved = source.id != container.id and files.move(source, container)
    if moved and source.status in ("running", "paused"):
        tell(f"the changed files are those that container {source.name} has now: it runs on")
