"""woodfrog wait"""

from __future__ import annotations

import sys

from woodfrog.cli.flags import Arguments, Command, Flag
from woodfrog.cli.loading import found
from woodfrog.errors import UsageError


def run(arguments: Arguments) -> None:
    """Wait for the end of a process, for a checkpoint or for a restore."""
    from woodfrog.runtime import jsontext, waiting

    if len(arguments.given) > 1:
        raise UsageError("wait: one of its flags at a time")
    container = found(arguments)
    if arguments["checkpoint"]:
        waiting.for_checkpoint(container)
        return
    if arguments["restore"]:
        waiting.for_restore(container)
        return
    if (pid := arguments["rootpid"]) is None and arguments["pid"] is not None:
        pid = waiting.host_pid(container, arguments["pid"])
    status = waiting.for_end(container) if pid is None else waiting.for_end_of(container, pid)
    sys.stdout.write(jsontext.write({"id": container.id, "exitStatus": status}) + "\n")


COMMAND = Command(
    "wait",
    "ID",
    "Wait for the end of a container's first process (or another), and show its exit status as\n"
    "JSON: 128 + n after signal n, and null if it had ended before and nobody has kept it.",
    ("woodfrog wait web", "woodfrog wait --checkpoint web && echo frozen"),
    (
        Flag("rootpid", "the process with this pid on the host", value="PID", number=True),
        Flag("pid", "the process with this pid in the container", value="PID", number=True),
        Flag("checkpoint", "wait until the next checkpoint is complete"),
        Flag("restore", "wait until the container is restored"),
    ),
    run,
)
