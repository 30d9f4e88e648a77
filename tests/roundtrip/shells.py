"""Containers in which the host's shell runs a script, to be frozen."""

from pathlib import Path

from bundles import Bundle
from containers import Container, Woodfrog

WAIT = "while [ ! -e /work/check ]; do sleep 0.02; done"


def shell(woodfrog: Woodfrog, script: str) -> Bundle:
    """Return a bundle in which the host's shell runs a script."""
    bundle = Bundle(woodfrog.directory / "bundle", ["/bin/sh", "-c", script])
    bundle.add_host_programs()
    return bundle


def frozen(container: Container, *flags: str) -> Path:
    """Freeze a container, delete it, and return its image."""
    image = container.woodfrog.directory / "image"
    container.checkpoint(image, *flags)
    container.wait()
    container.delete()
    return image
