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
    from collections.abc import Callable
    from types import TracebackType

    from woodfrog.engine.tracking import Known
    from woodfrog.runtime.keeping import Link


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


class Noting(Tracker):
    """One that has a keeper, if it `is_wanted`; it ends with the `with` block.

    Unless it was told to stay. `run` is what runs a command line in it.
    """

    def __init__(
        self, container: Container, run: Callable[[list[str]], int], *, is_wanted: bool
    ) -> None:
        super().__init__(container)
        self._run = run
        self._is_wanted = is_wanted
        self._link: Link | None = None

    def __enter__(self) -> Noting:
        if self._is_wanted:
            from woodfrog.runtime import asking, keeping

            # Here, as it is for good that it has what is on our stack now.
            worker = asking.worker()
            if worker and worker.channel >= 0:
                self._link = keeping.of_worker(worker)
            else:
                self._link = keeping.start(self._container.directory, self._run)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._link:
            self._link.close()

    def forget(self) -> None:
        """See the protocol."""
        record = self._container.tracking()
        if record is None:
            return
        os.unlink(self._container.path(TRACKING))
        if self._link and self._link.pid == record["holder"][0]:
            self._link.forget()
        else:
            _end(*record["holder"], most_ms=0)

    def keep(self, init: int, descriptors: list[int]) -> tuple[int, list[int]]:
        """See the protocol."""
        assert self._link
        return self._link.pid, self._link.keep(init, descriptors)

    def begun(self, known: Known) -> None:
        """See the protocol."""
        record = {
            "holder": [known.keeper, (start_time(known.keeper) or ("", ""))[1]],
            "image": known.image,
            "file": list(known.file),
            "processes": {str(pid): list(noted) for pid, noted in known.processes.items()},
        }
        path = self._container.path(TRACKING)
        with open(f"{path}.new", "w") as file:
            file.write(jsontext.write(record))
        os.rename(f"{path}.new", path)
        assert self._link
        self._link.stay()


def is_alive(pid: int, began: str) -> bool:
    """Tell whether a helper is there, and still this very process."""
    known = start_time(pid)
    return known is not None and known[0] not in "ZX" and known[1] == began


def end(container: Container) -> None:
    """End the keeper of a container that has ended, and wait for that."""
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
