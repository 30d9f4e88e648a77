"""NOTIFY_SOCKET: a program in the container tells the host's service manager that it is ready."""

from __future__ import annotations

import array
import os
import select
import socket

from woodfrog.kernel.caller import HERE
from woodfrog.kernel.process import pidfd_open

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from woodfrog.runtime.state import Container

_INSIDE = "/run/notify"
_NAME = "notify.sock"
# systemd closes the barrier's pipe when it has read all before it; others may never.
_BARRIER_MILLISECONDS = 30_000


def offer(container: Container, config: dict[str, Any]) -> None:
    """Have the container see the place where its program is to send READY=1."""
    directory = container.path("notify")
    os.mkdir(directory, 0o755)
    mount = {
        "destination": _INSIDE,
        "type": "bind",
        "source": directory,
        "options": ["bind", "nosuid", "noexec", "nodev", "ro"],
    }
    config["mounts"] = [*(config.get("mounts") or []), mount]
    process = config["process"]
    process["env"] = [*(process.get("env") or []), f"NOTIFY_SOCKET={_INSIDE}/{_NAME}"]


class NotifySocket:
    """The socket at that place, between the container and the host's own."""

    def __init__(self, container: Container, host: str) -> None:
        self._container = container
        self._host = "\0" + host[1:] if host.startswith("@") else host
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        directory = os.open(container.path("notify"), os.O_PATH | os.O_CLOEXEC)
        try:
            # The path of a socket is short; that of a state directory needn't be.
            path = f"/proc/self/fd/{directory}/{_NAME}"
            self._socket.bind(path)
            os.chmod(path, 0o777)
        finally:
            os.close(directory)

    def forward(self) -> None:
        """Wait until the program is ready, and tell the host so; or until it has ended."""
        pidfd = pidfd_open(HERE, self._container.pid)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.register(self._socket, select.POLLIN)
        try:
            while self._socket.fileno() in dict(poll.poll()):
                lines = self._socket.recv(4096).split(b"\n")
                if ready := [line for line in lines if line.startswith(b"READY=")]:
                    self._tell_host(ready[0])
                    return
        finally:
            os.close(pidfd)
            self._socket.close()

    def forward_aside(self) -> None:
        """Do the same while we do something else; the host not listening stops nothing."""
        import _thread

        _thread.start_new_thread(self._forward_if_possible, ())

    def _forward_if_possible(self) -> None:
        try:
            self.forward()
        except OSError:
            pass

    def _tell_host(self, ready: bytes) -> None:
        ours, theirs = os.pipe()
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as host:
                host.connect(self._host)
                host.send(b"%s\nMAINPID=%d" % (ready, self._container.pid))
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [theirs]))
                host.sendmsg([b"BARRIER=1"], [rights])
            os.close(theirs)
            theirs = -1
            poll = select.poll()
            poll.register(ours, select.POLLIN)
            poll.poll(_BARRIER_MILLISECONDS)
        finally:
            os.close(ours)
            if theirs >= 0:
                os.close(theirs)


def listen(container: Container) -> NotifySocket | None:
    """Return the socket if we were told where to notify, and the container is prepared for it."""
    host = os.environ.get("NOTIFY_SOCKET")
    if not host or not os.path.isdir(container.path("notify")):
        return None
    return NotifySocket(container, host)
