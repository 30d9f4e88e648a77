"""woodfrog uninstall"""

from __future__ import annotations

from woodfrog.cli.flags import Arguments, Command
from woodfrog.cli.install import ENGINES, FLAGS, carry_out, edits_of


def run(arguments: Arguments) -> int:
    """Take back what `install` did."""
    from woodfrog.install.editing import Wanted

    engine, edits = edits_of(arguments, Wanted(name=arguments["name"], command=""))
    return carry_out(arguments, [edit.uninstall() for edit in edits], engine.AFTERWARDS)


COMMAND = Command(
    "uninstall",
    "|".join(ENGINES),
    "Take woodfrog out of an engine's configuration. A file that nobody has changed since\n"
    "`woodfrog install` is again what it was, to the byte.",
    ("woodfrog uninstall docker --dry-run", "woodfrog uninstall docker --yes"),
    FLAGS,
    run,
)
