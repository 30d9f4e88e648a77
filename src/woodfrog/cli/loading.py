"""Finding the container that a command is about."""

from __future__ import annotations

from contextlib import contextmanager

from woodfrog.runtime.state import Container

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from woodfrog.cli.flags import Arguments


def found(arguments: Arguments) -> Container:
    """Return the container; its recorded global options apply where none were given now."""
    common = arguments.common
    container = Container.load(common.root, arguments.rest[0])
    options = container.state.get("options") or {}
    if not common.log and options.get("log"):
        common.log, common.log_format = options["log"], options.get("logFormat", "text")
    common.debug = common.debug or bool(options.get("debug"))
    return container


@contextmanager
def held(arguments: Arguments) -> Iterator[Container]:
    """Hold the container's lock, with its state as it is now."""
    container = found(arguments)
    with container.lock():
        container.reload()
        if "pausedForCheckpoint" in container.state:
            from woodfrog.runtime import lifecycle

            lifecycle.finish_interrupted(container)
        yield container
