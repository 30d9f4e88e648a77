"""woodfrog resume"""

from __future__ import annotations

from woodfrog.cli.flags import Arguments, Command
from woodfrog.cli.loading import held


def run(arguments: Arguments) -> None:
    """Resume a container."""
    from woodfrog.runtime import lifecycle

    with held(arguments) as container:
        lifecycle.resume(container)


COMMAND = Command(
    "resume",
    "ID",
    "Let a paused container run on.",
    ("woodfrog resume web", "woodfrog pause web; sleep 1; woodfrog resume web"),
    (),
    run,
)
