"""The scratch layer of `woodfrog do`: the files that its overlay holds, outside the container."""

import os

import msgspec

from woodfrog.errors import ImageError
from woodfrog.image.container_file import Reader
from woodfrog.resources import tmpfs
from woodfrog.resources.tmpfs import Tmpfs, WritePages

# No mount inside a container has this name.
DESTINATION = "scratch"


def collect(path: str, write_pages: WritePages) -> Tmpfs:
    """Read the upper directory of a container's overlay."""
    found = tmpfs.collect(os.getpid(), path, write_pages)
    if found is None:
        raise ImageError(f"the scratch layer {path} is gone")
    return msgspec.structs.replace(found, destination=DESTINATION)


def fill(directory: str, path: str) -> None:
    """Put the scratch layer of an image into a new upper directory, before it is mounted."""
    from woodfrog.engine.admission import RECORDS  # which imports this module

    with Reader(directory) as reader:
        layers = [
            one
            for one in reader.records(RECORDS)
            if isinstance(one, Tmpfs) and one.destination == DESTINATION
        ]
        if len(layers) != 1:
            raise ImageError(f"the image in {directory} is not of a container of `woodfrog do`")
        reader.verify_pages()
        tmpfs.check(layers[0], reader.page_bytes)
        pages, base = reader.open_pages()
        layer = msgspec.structs.replace(layers[0], destination=path)
        # What is removed in an overlay is a device 0:0; the cgroup forbids to use real ones.
        tmpfs.restore(os.getpid(), layer, pages, base, may_make_devices=True)
