"""woodfrog start"""

from __future__ import annotations

from woodfrog.cli.flags import Arguments, Command
from woodfrog.cli.loading import held


def run(arguments: Arguments) -> None:
    """Start a created container."""
    from woodfrog.runtime import lifecycle

    with held(arguments) as container:
        container.require("start")
        lifecycle.start(container, lifecycle.config_of(container))


COMMAND = Command(
    "start",
    "ID",
    "Start the program of a created container. If it can't be executed, this says why.",
    ("woodfrog start web", "woodfrog --root /run/test start web"),
    (),
    run,
)
