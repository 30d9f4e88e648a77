"""Checkpoint: hold, look, collect, write, let go or end."""

import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, suppress

from woodfrog.engine import preparing, writing_records
from woodfrog.engine.changes import ParentImage
from woodfrog.engine.guardian import Guardian, guarded
from woodfrog.engine.late_flags import LateFlags
from woodfrog.engine.looking import (
    CheckpointOptions,
    Container,
    Looked,
    look,
    read_backlogs,
)
from woodfrog.engine.obstacles import Obstacles
from woodfrog.engine.snapshots import Snapshots
from woodfrog.engine.tracking import Known, Tracker, Tracking, still_noted
from woodfrog.engine.writing_pages import PageWriter
from woodfrog.errors import UnsupportedResource
from woodfrog.image.container_file import Writer
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.namespaces import processes_in
from woodfrog.kernel.procfs.status import read_status
from woodfrog.remote.held import living_task
from woodfrog.remote.hold import Pause, end_all
from woodfrog.remote.tracee import EndedError, RanOnError
from woodfrog.resources import ids
from woodfrog.resources.cpu import Cpu

__all__ = ["CheckpointOptions", "Container", "checkpoint", "examine", "prepare"]

# A task that we were kept from stopping in time goes on by itself; then all is looked at once more.
_TRIES = 3


def checkpoint(
    init: int,
    directory: str,
    *,
    container: Container,
    options: CheckpointOptions,
    pause: Pause | None = None,
    tracker: Tracker | None = None,
) -> dict[str, object]:
    """Write the container whose first process is `init` to directory/checkpoint.img.

    On any failure the container runs on as before. Without leave_running its processes are ended
    after the image is complete. `pause` is given for a container that is paused; `tracker` knows
    what is noted of it. Returns statistics.
    """

    def work(guardian: Guardian) -> dict[str, object]:
        first = living_task(init)
        return _checkpoint(first, directory, container, options, pause, tracker, guardian)

    return guarded(lambda guardian: try_again(lambda: work(guardian)))


def prepare(init: int, container: Container) -> None:
    """Load and read beforehand what is needed to look at a container."""
    with suppress(OSError):  # it has ended, as will be seen
        preparing.prepare(living_task(init), container)


def examine(
    init: int,
    *,
    container: Container,
    options: CheckpointOptions,
    pause: Pause | None = None,
    known: Known | None = None,
) -> dict[str, object]:
    """Hold the container for a look, and let it run on: everything that keeps it from being saved.

    Returns statistics, with the `obstacles` as pairs of text and hint.
    """

    def examined(guardian: Guardian) -> dict[str, object]:
        obstacles = Obstacles()
        began = time.monotonic()
        statistics: dict[str, object] = {"processes": 0, "threads": 0, "losses": []}
        with obstacles.at("the container"), ExitStack() as undo:
            looked = look(
                undo,
                living_task(init),
                container,
                options,
                pause,
                obstacles,
                guardian,
                still_noted(known).keys(),
                lent=undo,
            )
            looked.add_flags(obstacles)
            statistics = looked.statistics()
        held_us = int((time.monotonic() - began) * 1e6)
        return {"obstacles": obstacles.found, "frozen_us": held_us} | statistics

    return guarded(lambda guardian: try_again(lambda: examined(guardian)))


def try_again(work: Callable[[], dict[str, object]]) -> dict[str, object]:
    """Do something with a held container; once more, if it could not be held still."""
    for last in (False,) * (_TRIES - 1) + (True,):
        try:
            return work()
        except (RanOnError, EndedError) as error:
            if last:
                raise UnsupportedResource(
                    f"the container cannot be held still: {error}",
                    hint="is this machine overloaded? try again",
                ) from error
    raise AssertionError


def _checkpoint(
    init: int,
    directory: str,
    container: Container,
    options: CheckpointOptions,
    pause: Pause | None,
    tracker: Tracker | None,
    guardian: Guardian,
) -> dict[str, object]:
    cpu = Cpu.here()
    with ExitStack() as undo:
        parent = ParentImage(undo, options, tracker)
        image = _image(undo, init, directory, options, guardian, parent)
        pages = PageWriter(image, parent.changes)
        tracking = undo.enter_context(Tracking())
        with ExitStack() as hold:
            noted = still_noted(parent.known).keys()
            obstacles = Obstacles()
            looked = _look(hold, init, container, options, pause, obstacles, guardian, noted)
            times = _Times(looked.tree.began)
            times.note("stop", looked.stopped)
            times.note("collect")
            statistics = looked.statistics()
            parent.look(looked.processes)
            takes_copies = options.leave_running and pause is None
            copied = pages.keep_changed(looked.processes) if takes_copies else []
            looked.add_flags(obstacles)
            obstacles.raise_if_any()
            read_backlogs(looked)
            snapshots = undo.enter_context(Snapshots(init, looked.vdso))
            snapshots.take(copied, container.memory_room)
            late = LateFlags(looked.processes, snapshots)
            if options.leave_running and options.track_changes and tracker:
                tracking.take_over(tracker)
                for one in looked.processes:
                    tracking.begin(one, looked.vdso)
            times.note("snapshot")
            writing_records.write(image, container, looked, snapshots, pages)
            guardian.check()
            writing_records.finish_records(image, init, container, looked, cpu)
            if not options.leave_running:
                image.seal()
                times.note("write")
                _end(init, looked)
        times.note("write", looked.tree.let_go)
        times.note_frozen()
        if options.leave_running:
            late.read()
            writing_records.write_snapshots(image, looked, snapshots, pages)
            snapshots.end(looked.tree.resumed)
            guardian.check()
            if tracker:
                tracking.keep(tracker, init)
            image.seal()
            if tracker:
                tracking.settle(tracker, image.digest, image.identity)
            times.note("write")
    counts: dict[str, object] = {
        "page_bytes": pages.bytes,
        "unchanged_bytes": pages.unchanged,
        "compared_bytes": parent.changes.compared if parent.changes else 0,
        "snapshots": snapshots.count,
    }
    return times.statistics() | counts | statistics


def _image(
    undo: ExitStack,
    init: int,
    directory: str,
    options: CheckpointOptions,
    guardian: Guardian,
    parent: ParentImage,
) -> Writer:
    """Begin the image; refuse if there is no room for it, before anything is held."""
    maps = ids.maps_of(init)
    image = undo.enter_context(
        Writer(
            directory,
            compression=options.compression,
            direct=options.direct,
            sync=options.sync,
            replace=options.replace,
            check=guardian.check,
            turn=lambda record: ids.inside(record, maps),
            parent=parent.name,
        )
    )
    image.check_space(0 if parent.name else _estimated_bytes(init))
    return image


def _look(
    hold: ExitStack,
    init: int,
    container: Container,
    options: CheckpointOptions,
    pause: Pause | None,
    obstacles: Obstacles,
    guardian: Guardian,
    noted: AbstractSet[int],
) -> Looked:
    """Hold the container, and look at everything; refuse what can't be kept, but for its flags."""
    looked = look(
        hold,
        init,
        container,
        options,
        pause,
        obstacles,
        guardian,
        noted,
        lent=hold,
        # Whose pages are compared, or noted from now on, is to be known at once.
        flags_may_be_late=options.leave_running
        and pause is None
        and not options.parent
        and not options.track_changes,
    )
    obstacles.raise_if_any()
    guardian.check()
    return looked


def _end(init: int, looked: Looked) -> None:
    """End the container, whose image is complete; who it is connected to hears nothing of that."""
    if looked.world.has_sockets:
        from woodfrog.engine import connections

        connections.end_silently(init, looked.files.files, looked.file_records)
    end_all(looked.tree, init)


class _Times:
    """How long each part took; what is done in several pieces adds up."""

    def __init__(self, began: float) -> None:
        """`began` is when the first part did, by the monotonic clock."""
        self._spans: dict[str, float] = {}
        self._began = self._last = began

    def note(self, part: str, at: float | None = None) -> None:
        """Note that a part is done, now or at a time of the monotonic clock."""
        at = at or time.monotonic()
        self._spans[part] = self._spans.get(part, 0) + at - self._last
        self._last = at

    def note_frozen(self) -> None:
        """Note that the container runs again, or has ended."""
        self._spans["frozen"] = self._last - self._began

    def statistics(self) -> dict[str, object]:
        """Return the times in microseconds."""
        return {f"{part}_us": int(span * 1e6) for part, span in self._spans.items()}


def _estimated_bytes(init: int) -> int:
    """Estimate, before anything is stopped, how much memory there is to be written."""
    total = 0
    for pid in processes_in(HERE, init):
        try:
            status = read_status(f"/proc/{pid}")
        except OSError:
            continue
        for name in ("RssAnon", "VmSwap"):
            total += int(status.get(name, "0 kB").split()[0]) * 1024
    return total
