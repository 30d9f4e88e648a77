"""woodfrog start"""

from __future__ import annotations

import os

from woodfrog.cli.flags import Arguments, Command
from woodfrog.cli.loading import held


def run(arguments: Arguments) -> None:
    """Start a created container."""
    from woodfrog.runtime import lifecycle

    notify_socket = None
    with held(arguments) as container:
        container.require("start")
        if os.environ.get("NOTIFY_SOCKET"):
            from woodfrog.runtime import notify

            notify_socket = notify.listen(container)
        lifecycle.start(container, lifecycle.config_of(container))
    if notify_socket:
        notify_socket.forward()


COMMAND = Command(
    "start",
    "ID",
    "Start the program of a created container. If it can't be executed, this says why.",
    ("woodfrog start web", "woodfrog --root /run/test start web"),
    (),
    run,
)
