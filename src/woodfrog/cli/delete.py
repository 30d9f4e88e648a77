"""woodfrog delete"""

from __future__ import annotations

from woodfrog.cli.flags import Arguments, Command, Flag
from woodfrog.cli.report import warner


def run(arguments: Arguments) -> None:
    """Delete a container."""
    from woodfrog.runtime import lifecycle

    lifecycle.delete(
        arguments.common.root,
        arguments.rest[0],
        force=arguments["force"],
        warn=warner(arguments.common),
    )


COMMAND = Command(
    "delete",
    "ID",
    "Remove a stopped container: its cgroup, its state, whatever was made for it.",
    ("woodfrog delete web", "woodfrog delete --force web   # also if it runs, or is gone already"),
    (Flag("force", "end it first if it runs; an unknown id is no error", short="f"),),
    run,
)
