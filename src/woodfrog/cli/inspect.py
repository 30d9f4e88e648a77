"""woodfrog inspect"""

from __future__ import annotations

import sys

from woodfrog.cli.flags import Arguments, Command, Flag


def run(arguments: Arguments) -> None:
    """Show an image."""
    from woodfrog.image.container_file import Reader
    from woodfrog.image.inspect import render

    with Reader(arguments.rest[0]) as reader:
        sys.stdout.write(render(reader, arguments["json"]))


COMMAND = Command(
    "inspect",
    "DIR",
    "Show what is in the image DIR/checkpoint.img: processes with their commands, threads, memory\n"
    "and descriptors, sizes, when and where it was made.",
    ("woodfrog inspect /srv/images/web", "woodfrog inspect --json /srv/images/web"),
    (Flag("json", "everything, as JSON"),),
    run,
)
