"""The checkpoints that docker's containers have, and those in directories of one's own."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from woodfrog.docker.client import Container, Docker
from woodfrog.errors import ImageError, WoodfrogError
from woodfrog.image.container_file import Reader
from woodfrog.image.layout import IMAGE_NAME

# What docker itself mounts into each container.
_DOCKERS_OWN = ("/etc/resolv.conf", "/etc/hostname", "/etc/hosts", "/sbin/docker-init", "/dev/shm")
_INIT = ["/sbin/docker-init", "--"]


@dataclass(frozen=True)
class Checkpoint:
    """An image, and the container that has it among its checkpoints, if one has.

    An image may be of anybody's making. What it says is shown, and goes into the command that a
    new container shows; no other container is looked for by it.
    """

    directory: str
    owner: Container | None

    @cached_property
    def _records(self) -> list[dict[str, Any]]:
        with Reader(self.directory) as reader:
            return reader.raw_records()

    @cached_property
    def _config(self) -> dict[str, Any]:
        for record in self._records:
            if record.get("kind") == "container":
                try:
                    return _mapping(json.loads(record["config"] or b"{}"))
                except (ValueError, TypeError, KeyError):
                    break
        raise ImageError(f"the image in {self.directory} holds no readable configuration")

    @property
    def _process(self) -> dict[str, Any]:
        return _mapping(self._config.get("process"))

    @property
    def has_terminal(self) -> bool:
        """Tell whether the container had a terminal."""
        return bool(self._process.get("terminal"))

    @property
    def has_init(self) -> bool:
        """Tell whether the container was created with --init."""
        return self._arguments[:2] == _INIT

    @property
    def command(self) -> list[str]:
        """Return the command that the container was started with."""
        return self._arguments[2:] if self.has_init else self._arguments

    @property
    def _arguments(self) -> list[str]:
        return [str(word) for word in _listed(self._process.get("args"))]

    @property
    def volumes(self) -> dict[str, str]:
        """Return where the container had volumes or files of the host, and which."""
        mounts = [_mapping(mount) for mount in _listed(self._config.get("mounts"))]
        places = {
            str(mount.get("destination")): str(mount.get("source"))
            for mount in mounts
            if mount.get("type") == "bind"
        }
        return {place: source for place, source in places.items() if place not in _DOCKERS_OWN}

    @property
    def has_files(self) -> bool:
        """Tell whether the files that the container had changed are in the image."""
        return any(record.get("kind") == "layer" for record in self._records)


def named(docker: Docker, text: str) -> Checkpoint:
    """Return the checkpoint that CONTAINER:NAME or a directory's path names."""
    if "/" in text or os.path.isdir(text):
        return Checkpoint(os.path.abspath(text), None)
    container, colon, name = text.partition(":")
    if not colon or not name:
        raise WoodfrogError(
            f"{text} is neither CONTAINER:NAME nor a directory",
            hint="`docker woodfrog ls` lists the checkpoints that docker keeps",
        )
    return of(docker, docker.container(container), name)


def of(docker: Docker, container: Container, name: str) -> Checkpoint:
    """Return a checkpoint that docker keeps for a container."""
    directory = f"{container.checkpoints(docker.data_root)}/{name}"
    if "/" in name or not os.path.exists(f"{directory}/{IMAGE_NAME}"):
        raise WoodfrogError(
            f"container {container.name} has no checkpoint {name}",
            hint=f"`docker woodfrog ls {container.name}` lists those it has",
        )
    return Checkpoint(directory, container)


def all_of(docker: Docker, container: Container) -> Iterator[tuple[str, str]]:
    """Yield (name, directory) of each checkpoint that docker keeps for a container."""
    place = container.checkpoints(docker.data_root)
    for name in sorted(os.listdir(place)) if os.path.isdir(place) else ():
        if os.path.exists(f"{place}/{name}/{IMAGE_NAME}"):
            yield name, f"{place}/{name}"


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
