"""The list of checkpoints."""

from __future__ import annotations

import os
import shlex
import time

from woodfrog.docker import checkpoints
from woodfrog.docker.checkpoints import Checkpoint
from woodfrog.docker.client import Docker
from woodfrog.errors import ImageError
from woodfrog.image.container_file import Reader
from woodfrog.image.inspect import readable, size

_HEADINGS = ("CHECKPOINT", "FROZEN", "SIZE", "COMMAND")


def rows(docker: Docker, wanted: list[str]) -> list[tuple[str, ...]]:
    """Return a table of the checkpoints of some containers and directories, or of all."""
    names = [name for name in wanted if "/" not in name and not os.path.isdir(name)]
    directories = [name for name in wanted if name not in names]
    if not wanted:
        names = docker("ps", "--all", "--quiet", "--no-trunc").split()
    found: list[tuple[str, ...]] = [_HEADINGS]
    for container in docker.containers(names):
        for name, directory in checkpoints.all_of(docker, container):
            found.append((f"{container.name}:{name}", *_facts(directory)))
    for directory in directories:
        found.append((directory, *_facts(directory)))
    return found


def _facts(directory: str) -> tuple[str, str, str]:
    try:
        with Reader(directory) as reader:
            header = reader.header
        command = readable(shlex.join(Checkpoint(directory, None).command))
    except ImageError as error:
        return "?", "?", str(error)
    made = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(header.made))
    return made, size(header.file_bytes), command if len(command) < 60 else f"{command[:57]}..."
