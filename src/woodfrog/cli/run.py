"""woodfrog run"""

from __future__ import annotations

from woodfrog.cli import creating
from woodfrog.cli.flags import Arguments, Command, Flag
from woodfrog.cli.report import tell


def run(arguments: Arguments) -> int:
    """Create, start and stay."""
    wanted = creating.request(arguments)
    creating.refuse_lost_terminal(wanted, wanted.config, arguments["detach"])
    from woodfrog.runtime.run import run as run_container

    return run_container(
        wanted,
        tell,
        detach=arguments["detach"],
        keep=arguments["keep"],
        subreaper=not arguments["no_subreaper"],
    )


COMMAND = Command(
    "run",
    "ID",
    "Create a container and start it. In the foreground its terminal is yours, signals go to it,\n"
    "and its exit status comes back; afterwards it is deleted, unless a checkpoint ended it.",
    ("woodfrog run --bundle /srv/web web", "woodfrog run -d -b . --pid-file web.pid web"),
    (
        *creating.FLAGS,
        Flag("detach", "don't wait for its end", short="d"),
        Flag("keep", "don't delete it at its end"),
        Flag("no-subreaper", "don't adopt orphans of a container without a pid namespace"),
    ),
    run,
)
