"""What the state directory says of the noting of what a container's processes write to."""

from __future__ import annotations

import os
import select

from woodfrog.kernel.caller import HERE
from woodfrog.kernel.process import pidfd_open, pidfd_send_signal
from woodfrog.kernel.signals import signals
from woodfrog.runtime import jsontext
from woodfrog.runtime.state import TRACKING, Container, start_time

_SOON_MS = 10_000

TYPE_CHECKING = False
if TYPE_CHECKING:
    from woodfrog.engine.tracking import Known


class Tracker:
    """Writes it down; it follows the engine's protocol of that name."""

    def __init__(self, container: Container) -> None:
        self._container = container

    def known(self) -> Known | None:
        """See the protocol."""
        from woodfrog.engine.tracking import Known, Noted

        record = self._container.tracking()
        if record is None or not is_alive(*record["holder"]):
            return None
        processes = {int(pid): Noted(*noted) for pid, noted in record["processes"].items()}
        return Known(record["holder"][0], record["image"], tuple(record["file"]), processes)

    def forget(self) -> None:
        """See the protocol."""
        record = self._container.tracking()
        if record is None:
            return
        os.unlink(self._container.path(TRACKING))
        _end(*record["holder"], most_ms=0)

    def begun(self, known: Known) -> None:
        """See the protocol."""
        record = {
            "holder": [known.holder, (start_time(known.holder) or ("", ""))[1]],
            "image": known.image,
            "file": list(known.file),
            "processes": {str(pid): list(noted) for pid, noted in known.processes.items()},
        }
        path = self._container.path(TRACKING)
        with open(f"{path}.new", "w") as file:
            file.write(jsontext.write(record))
        os.rename(f"{path}.new", path)


def is_alive(pid: int, began: str) -> bool:
    """Tell whether a helper is there, and still this very process."""
    known = start_time(pid)
    return known is not None and known[0] not in "ZX" and known[1] == began


def end(container: Container) -> None:
    """End the holder of a container that has ended, and wait for that."""
    if record := container.tracking():
        _end(*record["holder"], most_ms=_SOON_MS)


def _end(pid: int, began: str, *, most_ms: int) -> None:
    """End a helper, if it is still there; wait at most so long until it has ended."""
    try:
        pidfd = pidfd_open(HERE, pid)
    except ProcessLookupError:
        return
    try:
        if is_alive(pid, began):
            pidfd_send_signal(HERE, pidfd, signals.SIGKILL)
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            poll.poll(most_ms)
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)
