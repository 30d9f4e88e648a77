"""woodfrog criu"""

from __future__ import annotations

from woodfrog.cli.flags import Arguments, Command
from woodfrog.errors import UsageError


def run(arguments: Arguments) -> None:
    """Answer requests of CRIU's RPC until the engine hangs up."""
    mode, descriptor = arguments.rest
    if mode != "swrk" or not descriptor.isdigit():
        raise UsageError(
            f"criu {mode}: this is woodfrog in CRIU's place, which only answers engines",
            hint="woodfrog checkpoint and woodfrog restore need no CRIU",
        )
    from woodfrog.runtime import criu_answers

    criu_answers.serve(int(descriptor))


COMMAND = Command(
    "criu",
    "swrk DESCRIPTOR",
    "Answer for CRIU. Before they let a runtime checkpoint, podman and others run `criu swrk` and\n"
    "ask for its version, although woodfrog needs no CRIU. Where there is none, a script named\n"
    "criu on their PATH that runs this is enough; `woodfrog install podman` makes one. It can do\n"
    "nothing else.",
    (
        """printf '#!/bin/sh\\nexec woodfrog criu "$@"\\n' > /usr/local/bin/criu""",
        "woodfrog criu swrk 3",
    ),
    (),
    run,
    least=2,
    most=2,
)
