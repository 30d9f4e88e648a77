"""Finding the container that a command is about."""

from __future__ import annotations

from woodfrog.runtime import interrupted
from woodfrog.runtime.state import Container

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

    from woodfrog.cli.flags import Arguments


def found(arguments: Arguments) -> Container:
    """Return the container; its recorded global options apply where none were given now."""
    common = arguments.common
    container = Container.load(common.root, arguments.rest[0])
    options = container.state.get("options") or {}
    if not common.log and options.get("log"):
        common.log, common.log_format = options["log"], options.get("logFormat", "text")
    common.debug = common.debug or bool(options.get("debug"))
    interrupted.recover(container)
    return container


class held:
    """Hold the container's lock, with its state as it is now."""

    def __init__(self, arguments: Arguments, *, wait: bool = True) -> None:
        """Without `wait` entering raises BlockingIOError if somebody else holds it."""
        self._container = found(arguments)
        self._lock = self._container.lock(wait=wait)

    def __enter__(self) -> Container:
        self._lock.__enter__()
        try:
            self._container.reload()
        except BaseException:
            self._lock.release()
            raise
        return self._container

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._lock.release()
