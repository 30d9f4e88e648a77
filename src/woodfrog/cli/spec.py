"""woodfrog spec"""

from __future__ import annotations

import os

from woodfrog.cli.flags import Arguments, Command, Flag
from woodfrog.errors import UsageError


def run(arguments: Arguments) -> None:
    """Write a config.json."""
    from woodfrog.runtime import jsontext
    from woodfrog.runtime.spec_default import default_config, for_user

    config = default_config()
    if arguments["rootless"]:
        for_user(config, os.geteuid(), os.getegid())
    path = os.path.join(arguments["bundle"], "config.json")
    try:
        with open(path, "x", encoding="ascii") as file:
            file.write(jsontext.write(config, 4) + "\n")
    except FileExistsError:
        raise UsageError(f"{path} exists already", hint="remove it first") from None


COMMAND = Command(
    "spec",
    "",
    "Write a config.json to start from: a shell in the directory rootfs beside it, on a terminal.",
    ("woodfrog spec", "woodfrog spec --bundle /srv/web"),
    (
        Flag("bundle", "where to write it", short="b", value="DIR", default="."),
        Flag("rootless", "with a user namespace in which you are root, and nobody else is"),
    ),
    run,
    least=0,
    most=0,
)
