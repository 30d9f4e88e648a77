"""woodfrog inspect"""

from __future__ import annotations

import sys

from woodfrog.cli.flags import Arguments, Command, Flag
from woodfrog.cli.images import PARENT_FLAG


def run(arguments: Arguments) -> None:
    """Show an image."""
    from woodfrog.image.chain import Chain
    from woodfrog.image.inspect import render

    with Chain(arguments.rest[0], arguments["parent"]) as reader:
        sys.stdout.write(render(reader, arguments["json"]))


COMMAND = Command(
    "inspect",
    "DIR",
    "Show what is in the image DIR/checkpoint.img: processes with their commands, threads, memory\n"
    "and descriptors, sizes, when and where it was made.",
    ("woodfrog inspect /srv/images/web", "woodfrog inspect --json /srv/images/web"),
    (Flag("json", "everything, as JSON"), PARENT_FLAG),
    run,
)
