"""A seccomp profile's notifications: the listener is passed on to the agent that answers them."""

from __future__ import annotations

import os

from woodfrog.errors import WoodfrogError
from woodfrog.runtime import hooks, jsontext
from woodfrog.runtime.delivery import fetch_descriptor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from woodfrog.runtime.state import Container


def pass_on(
    config: dict[str, Any], container: Container, status: str, pid: int, listener: int
) -> None:
    """Send descriptor `listener` of the container's process `pid` to the profile's agent."""
    import socket

    profile = config["linux"]["seccomp"]
    state = hooks.state_of(container, status)
    about = {
        "ociVersion": state["ociVersion"],
        "fds": ["seccompFd"],
        "pid": pid,
        "metadata": profile.get("listenerMetadata") or "",
        "state": state,
    }
    path = profile["listenerPath"]
    address = "\0" + path[1:] if path.startswith("@") else path
    descriptor = fetch_descriptor(pid, listener)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(address)
            socket.send_fds(connection, [jsontext.write(about).encode()], [descriptor])
    except OSError as error:
        raise WoodfrogError(
            "failed to connect with seccomp agent specified in the seccomp profile:"
            f" {path}: {(error.strerror or str(error)).lower()}",
            hint="start the agent that linux.seccomp.listenerPath names",
        ) from None
    finally:
        os.close(descriptor)
