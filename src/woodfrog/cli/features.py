"""woodfrog features"""

from __future__ import annotations

import sys

from woodfrog.cli.flags import Arguments, Command


def run(arguments: Arguments) -> None:
    """Print the features."""
    from woodfrog.runtime import jsontext
    from woodfrog.runtime.features import features

    sys.stdout.write(jsontext.write(features(), 4) + "\n")


COMMAND = Command(
    "features",
    "",
    "Show, as JSON for engines, which parts of the OCI specification this runtime does.",
    ("woodfrog features", "woodfrog features | grep -A9 namespaces"),
    (),
    run,
    least=0,
    most=0,
)
