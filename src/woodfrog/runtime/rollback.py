"""What the runtime does around the engine's rollback."""

from __future__ import annotations

import os

from woodfrog.runtime import checkpoint, filling, lifecycle, restore, tracking
from woodfrog.runtime import state as states
from woodfrog.runtime.create import Created
from woodfrog.runtime.state import Container

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def rollback(
    container: Container,
    directory: str,
    *,
    parents: Sequence[str],
    file_validation: str,
    tcp_close: bool,
    run: Callable[[list[str]], int],
) -> dict[str, object]:
    """Set a running container back to directory/checkpoint.img; its lock is held.

    `run` is what runs command lines, for a keeper. Returns statistics.
    """
    from woodfrog.engine import rollback as engine
    from woodfrog.engine.checkpoint import CheckpointOptions
    from woodfrog.engine.restore import Bounds

    filling.finish(container)
    options = restore.Options()
    options.tcp_established = True  # a connection that still stands is left alone
    options.tcp_close = tcp_close
    config = lifecycle.config_of(container)
    # Those that programs made are compared, and never made.
    bounds = restore.bounds(Created(container, config, -1), Bounds, options, shows_cgroups=True)
    noted = tracking.Tracker(container).known() is not None
    with (
        checkpoint.AtWork(container) as at_work,
        tracking.Noting(container, run, is_wanted=noted) as noting,
    ):
        try:
            statistics = engine.rollback(
                container.pid,
                directory,
                container=checkpoint.known(container, CheckpointOptions(with_rootfs=True), []),
                bounds=bounds,
                parents=parents,
                file_validation=file_validation,
                tracker=noting,
                pause=at_work.pause,
            )
        except BaseException as error:
            at_work.has_ended = getattr(error, "touched", False)
            raise
    container.state["restoredFrom"] = {
        "image": os.path.join(os.path.abspath(directory), "checkpoint.img"),
        "time": states.now(),
    }
    container.save()
    return statistics
