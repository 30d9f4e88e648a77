"""Create and start in one go, and stay until the end."""

from __future__ import annotations

import os

from woodfrog.runtime import lifecycle
from woodfrog.runtime.create import Created, Request, create
from woodfrog.runtime.foreground import Attached, hold_signals
from woodfrog.runtime.state import STOPPED, UnknownContainer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def run(
    request: Request,
    tell: Callable[[str], None],
    *,
    detach: bool,
    keep: bool,
    subreaper: bool,
    started: Callable[[], None] | None = None,
) -> int:
    """Run a container; attached, the result is its exit status."""
    request.relay_console = not request.console_socket and not detach
    created = create(request)
    container = created.container
    notify_socket = None
    try:
        if request.notify_socket:
            from woodfrog.runtime import notify

            notify_socket = notify.listen(container)
        if not detach:
            hold_signals()
        with container.lock():
            lifecycle.start(container, created.config)
    except BaseException:
        end(created, request.warn)
        raise
    if started:
        started()
    if notify_socket and not detach:
        notify_socket.forward_aside()
    elif notify_socket:
        notify_socket.forward()
    if detach:
        return 0
    return stay(created, request.warn, tell, keep=keep, subreaper=subreaper, is_child=True)


def end(created: Created, warn: Callable[[str], None]) -> None:
    """Remove a container that didn't come to life."""
    container = created.container
    with container.lock():
        lifecycle.destroy(container, container.status(), warn)
    try:
        os.waitpid(container.pid, os.WNOHANG)
    except ChildProcessError:
        pass


def stay(
    created: Created,
    warn: Callable[[str], None],
    tell: Callable[[str], None],
    *,
    keep: bool,
    subreaper: bool,
    is_child: bool,
) -> int:
    """Stay with a running container; returns its exit status, and removes it."""
    container = created.container
    attached = Attached(
        container.pid, created.master, is_child=is_child, reap=subreaper and is_child
    )
    with attached:
        status = attached.wait()
    try:
        # A checkpoint that ended it holds the lock until it has recorded that.
        with container.lock():
            container.reload()
            checkpoint = container.state.get("checkpoint") or {}
            if checkpoint.get("ended") == container.pid:
                tell(f"container {container.id} was frozen into {checkpoint['image']}")
                status = 128 + 9
                keep = keep or not container.state.get("scratch")
            if keep:
                container.state["exitStatus"] = status
                container.save()
            else:
                lifecycle.destroy(container, STOPPED, warn)
    except UnknownContainer:
        pass  # somebody has deleted it already
    return status
