"""What has changed in a container's root file system, as an archive."""

from collections.abc import Callable
from typing import BinaryIO

from woodfrog.engine.guardian import Guardian, guarded
from woodfrog.remote.hold import held
from woodfrog.resources import layer_tar, namespaces
from woodfrog.resources.mount_tree import comparing
from woodfrog.resources.overlay import Overlay


def write(init: int, rootfs: str, mounts: list[str], output: BinaryIO, *, paused: bool) -> None:
    """Write an archive of the changes in the overlay that `rootfs` is.

    Meanwhile the container stands still: held, unless it is paused anyway.
    """

    def work(check: Callable[[], None]) -> None:
        comparing.refuse_new(init, mounts)
        with Overlay(init) as overlay:
            layer_tar.write(overlay, rootfs, output, check)
            output.flush()

    def hold_and_work(guardian: Guardian) -> None:
        with held(init):
            work(guardian.check)

    if paused:
        work(lambda: None)
    else:
        namespaces.refuse_shared_pid_namespace(init)
        guarded(hold_and_work)
