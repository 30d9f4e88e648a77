"""What the state directory says of memory that is still being filled in after a restore."""

from __future__ import annotations

import os
import select

from woodfrog.errors import StateError
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.process import pidfd_open, pidfd_send_signal
from woodfrog.kernel.signals import signals
from woodfrog.runtime import cgroups, jsontext
from woodfrog.runtime.state import FILLING, Container, start_time

_SOON_MS = 10_000

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Teller:
    """Writes it down, in the processes that fill; `complain` writes to the log.

    It follows the engine's protocol of that name.
    """

    def __init__(self, container: Container, complain: Callable[[str], None]) -> None:
        self._container = container
        self._complain = complain
        self._record: dict[str, Any] = {}

    def begun(self, holder: int, server: int, total: int) -> None:
        """See the protocol."""
        for name, pid in (("holder", holder), ("server", server)):
            self._record[name] = [pid, (start_time(pid) or ("", ""))[1]]
        self.tell(0, total)

    def tell(self, filled: int, total: int) -> None:
        """See the protocol."""
        self._record |= {"bytes": filled, "of": total}
        self._write()

    def lost(self, reason: str) -> None:
        """See the protocol."""
        try:
            text = f"container {self._container.id} was ended: {reason}"
            self._complain(text)
            self._record = self._container.filling() or self._record
            self._record["failure"] = reason
            self._write()
        finally:
            groups = self._container.state["cgroup"]
            cgroups.kill(groups, signals.SIGKILL)
            if groups["version"] == 1:
                cgroups.freeze(groups, False)  # frozen tasks of v1 don't even die

    def ended(self) -> None:
        """See the protocol."""
        try:
            os.unlink(self._container.path(FILLING))
        except FileNotFoundError:
            pass

    def _write(self) -> None:
        """Replace the file as a whole; nothing is made in a directory that is being removed."""
        path = self._container.path(FILLING)
        with open(f"{path}.new", "w") as file:
            file.write(jsontext.write(self._record))
        os.rename(f"{path}.new", path)


def failure(container: Container) -> str:
    """Return why not all memory could be filled in; empty if nothing has failed."""
    return str((container.filling() or {}).get("failure", ""))


def is_going_on(container: Container) -> bool:
    """Tell whether memory is still being filled in; raises StateError if that has failed."""
    if reason := failure(container):
        raise StateError(f"container {container.id} was ended: {reason}")
    found = container.filling()
    return found is not None and _is_alive(*found["holder"])


def finish(container: Container) -> None:
    """Wait until all memory is in, without any pauses."""
    found = container.filling()
    if found is None:
        return
    _signal(*found["server"], number=signals.SIGUSR1)
    _await_end(*found["holder"])
    is_going_on(container)


def end(container: Container) -> None:
    """Wait for the end of those who fill in the memory of a container that has ended."""
    found = container.filling()
    if found is not None and not _await_end(*found["holder"], most_ms=_SOON_MS):
        for name in ("holder", "server"):
            _signal(*found[name], number=signals.SIGKILL)
        _await_end(*found["holder"])


def _await_end(pid: int, began: str, *, most_ms: int | None = None) -> bool:
    """Wait for the end of a process; tell whether it has come in time."""
    try:
        pidfd = pidfd_open(HERE, pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return not _is_alive(pid, began) or bool(poll.poll(most_ms))
    finally:
        os.close(pidfd)


def _is_alive(pid: int, began: str) -> bool:
    known = start_time(pid)
    return known is not None and known[0] not in "ZX" and known[1] == began


def _signal(pid: int, began: str, *, number: int) -> None:
    """Send a signal to this very process, if it is there."""
    try:
        pidfd = pidfd_open(HERE, pid)
    except ProcessLookupError:
        return
    try:
        if _is_alive(pid, began):
            pidfd_send_signal(HERE, pidfd, number)
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)
