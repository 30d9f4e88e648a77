"""woodfrog tar"""

from __future__ import annotations

import os

from woodfrog.cli.flags import Arguments, Command, Flag
from woodfrog.cli.loading import held
from woodfrog.errors import UsageError

_WHAT = "rootfs-upper"


def run(arguments: Arguments) -> None:
    """Write an archive."""
    what = arguments.rest.pop(0)
    if what != _WHAT:
        raise UsageError(f"tar: {what} is unknown", hint=f"it can archive {_WHAT}")
    path = arguments["file"]
    if path == "-" and os.isatty(1):
        raise UsageError("tar: an archive is nothing for a terminal", hint="give --file=FILE")
    from woodfrog.runtime.tar import write_rootfs

    with held(arguments) as container:
        write_rootfs(container, path)


COMMAND = Command(
    "tar",
    f"{_WHAT} ID",
    "Write what has changed in a container's root file system, an overlay, as a tar archive: an\n"
    "OCI layer. The container, running or paused, stands still meanwhile.",
    (
        "woodfrog tar rootfs-upper --file=changes.tar web",
        "woodfrog tar rootfs-upper web | tar -tv",
    ),
    (Flag("file", "where to; -: standard output", value="FILE", default="-"),),
    run,
    least=2,
    most=2,
)
