"""woodfrog verify"""

from __future__ import annotations

import sys

from woodfrog.cli.flags import Arguments, Command
from woodfrog.cli.images import PARENT_FLAG


def run(arguments: Arguments) -> None:
    """Check an image."""
    from woodfrog.image.chain import Chain

    with Chain(arguments.rest[0], arguments["parent"]) as reader:
        reader.verify_pages()
    sys.stdout.write(f"{arguments.rest[0]}: the image is complete and undamaged\n")


COMMAND = Command(
    "verify",
    "DIR",
    "Check every byte of the image DIR/checkpoint.img against its checksums.",
    ("woodfrog verify /srv/images/web", "woodfrog verify . && echo good"),
    (PARENT_FLAG,),
    run,
)
