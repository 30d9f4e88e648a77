"""woodfrog create"""

from __future__ import annotations

from woodfrog.cli import creating
from woodfrog.cli.flags import Arguments, Command


def run(arguments: Arguments) -> None:
    """Create a container."""
    wanted = creating.request(arguments)
    from woodfrog.runtime.create import create

    create(wanted)


COMMAND = Command(
    "create",
    "ID",
    "Create a container from a bundle. Its namespaces, mounts and limits are made, and its first\n"
    "process waits for `start` or `restore`.",
    (
        "woodfrog create --bundle /srv/web web",
        "woodfrog create -b . --pid-file web.pid web && woodfrog start web",
    ),
    creating.FLAGS,
    run,
)
