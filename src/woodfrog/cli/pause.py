"""woodfrog pause"""

from __future__ import annotations

from woodfrog.cli.flags import Arguments, Command
from woodfrog.cli.loading import held


def run(arguments: Arguments) -> None:
    """Pause a container."""
    from woodfrog.runtime import lifecycle

    with held(arguments) as container:
        lifecycle.pause(container)


COMMAND = Command(
    "pause",
    "ID",
    "Stop every process of a container where it is, until `resume`.",
    ("woodfrog pause web", "woodfrog pause web && woodfrog state web"),
    (),
    run,
)
