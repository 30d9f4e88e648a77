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
    """An image, and the container that it was made of, if that is still there."""

    directory: str
    source: Container | None

    @cached_property
    def _records(self) -> list[dict[str, Any]]:
        with Reader(self.directory) as reader:
            return reader.raw_records()

    @cached_property
    def _container(self) -> dict[str, Any]:
        for record in self._records:
            if record.get("kind") == "container":
                return record
        raise ImageError(f"the image in {self.directory} tells nothing about its container")

    @cached_property
    def _config(self) -> dict[str, Any]:
        try:
            config = json.loads(self._container["config"] or b"{}")
        except ValueError:
            config = None
        if not isinstance(config, dict):
            raise ImageError(f"the image in {self.directory} holds no readable configuration")
        return config

    @property
    def _process(self) -> dict[str, Any]:
        found = self._config.get("process")
        return found if isinstance(found, dict) else {}

    @property
    def id(self) -> str:
        """Return the id of the container that it was made of."""
        return str(self._container["id"])

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
        return [str(word) for word in self._process.get("args") or []]

    @property
    def mounts(self) -> list[str]:
        """Return where the container had volumes and directories of the host."""
        return [
            str(mount["destination"])
            for mount in self._config.get("mounts") or []
            if mount.get("type") == "bind" and mount["destination"] not in _DOCKERS_OWN
        ]

    @property
    def has_files(self) -> bool:
        """Tell whether the files that the container had changed are in the image."""
        return any(record.get("kind") == "layer" for record in self._records)


def named(docker: Docker, text: str) -> Checkpoint:
    """Return the checkpoint that CONTAINER:NAME or a directory's path names."""
    if "/" in text or os.path.isdir(text):
        return in_directory(docker, text)
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


def in_directory(docker: Docker, directory: str) -> Checkpoint:
    """Return the checkpoint in a directory."""
    found = Checkpoint(os.path.abspath(directory), None)
    return Checkpoint(found.directory, docker.find(found.id))


def all_of(docker: Docker, container: Container) -> Iterator[tuple[str, str]]:
    """Yield (name, directory) of each checkpoint that docker keeps for a container."""
    place = container.checkpoints(docker.data_root)
    for name in sorted(os.listdir(place)) if os.path.isdir(place) else ():
        if os.path.exists(f"{place}/{name}/{IMAGE_NAME}"):
            yield name, f"{place}/{name}"
