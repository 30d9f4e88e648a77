"""Bringing the files that a container has changed to the one that is to go on in its place."""

from __future__ import annotations

import os
import subprocess

from woodfrog.docker.client import Container
from woodfrog.errors import WoodfrogError


def move(source: Container, target: Container) -> bool:
    """Copy what one container's writable layer holds into another's; tell if there was anything.

    The layer is an overlay's upper directory: what was removed stands there as a device of its
    own kind, and extended attributes have a meaning, both of which `cp -a` keeps.
    """
    if not os.listdir(_layer(source)):
        return False
    if source.told["Image"] != target.told["Image"]:
        raise WoodfrogError(
            f"containers {source.name} and {target.name} have different images, between which"
            " changed files can't be moved",
            hint="bring them by yourself (docker cp), and give --keep-files",
        )
    command = ["cp", "-a", "--reflink=auto", f"{_layer(source)}/.", _layer(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        why = done.stderr.partition("\n")[0]
        raise WoodfrogError(f"the changed files of {source.name} can't be copied: {why}")
    return True


def _layer(container: Container) -> str:
    if not container.upper:
        raise WoodfrogError(
            f"the changed files of container {container.name} can't be moved:"
            f" docker's storage driver {container.told.get('Driver')} shows no layer of them",
            hint="bring them by yourself (docker cp), and give --keep-files",
        )
    return container.upper
