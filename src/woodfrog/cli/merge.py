"""woodfrog merge"""

from __future__ import annotations

import sys

from woodfrog.cli.flags import Arguments, Command, Flag
from woodfrog.cli.images import PARENT_FLAG


def run(arguments: Arguments) -> None:
    """Make one image of an image and its parents."""
    from woodfrog.image.chain import Chain
    from woodfrog.image.inspect import size
    from woodfrog.image.merge import merge

    directory = arguments.rest[0]
    output = arguments["output"] or directory
    with Chain(directory, arguments["parent"]) as chain:
        if not chain.header.parent and output == directory:
            sys.stdout.write(f"{directory}: the image stands alone already\n")
            return
        taken = merge(chain, output)
    sys.stdout.write(f"{output}: the image stands alone; {size(taken)} came from parents\n")


COMMAND = Command(
    "merge",
    "DIR",
    "Make one whole image of DIR/checkpoint.img, which holds only what had changed since its\n"
    "parent, and of its parents. Images whose parent it is need the old one.",
    ("woodfrog merge /srv/images/web2", "woodfrog merge /srv/images/web2 --output=/srv/images/web"),
    (
        Flag("output", "where to write it, instead of in DIR itself", value="DIR"),
        PARENT_FLAG,
    ),
    run,
)
