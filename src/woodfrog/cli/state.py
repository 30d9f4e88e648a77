"""woodfrog state"""

from __future__ import annotations

import sys

from woodfrog.cli.flags import Arguments, Command
from woodfrog.cli.loading import found


def run(arguments: Arguments) -> None:
    """Print the state."""
    from woodfrog.runtime import jsontext

    sys.stdout.write(jsontext.write(found(arguments).report(), 2) + "\n")


COMMAND = Command(
    "state",
    "ID",
    "Show the state of a container as JSON: created, running, paused or stopped, and from which\n"
    "image it was restored.",
    ("woodfrog state web", "woodfrog --root /run/test state web"),
    (),
    run,
)
