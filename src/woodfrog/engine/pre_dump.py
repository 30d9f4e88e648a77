"""Pre-dump: an image of memory alone. The container runs on, and the next image builds on it."""

from collections.abc import Set as AbstractSet
from contextlib import ExitStack

from woodfrog.engine import tidying
from woodfrog.engine.changes import ParentImage
from woodfrog.engine.collected import CollectedProcess
from woodfrog.engine.collecting import parents_first
from woodfrog.engine.guardian import Guardian, guarded
from woodfrog.engine.looking import CheckpointOptions
from woodfrog.engine.snapshots import Snapshots
from woodfrog.engine.tracking import Tracker, Tracking, still_noted
from woodfrog.engine.unanswered import Unanswered
from woodfrog.engine.writing_pages import PageWriter
from woodfrog.errors import while_
from woodfrog.image.container_file import Writer
from woodfrog.kernel.process_memory import ProcessMemory
from woodfrog.kernel.procfs.maps import read_smaps
from woodfrog.remote.held import Held, living_task
from woodfrog.remote.hold import Pause, held
from woodfrog.remote.vdso import own_vdso
from woodfrog.resources import memory, namespaces
from woodfrog.resources.memory import PageRange
from woodfrog.resources.pre_dumped import Pages, PreDumped


def pre_dump(
    init: int,
    directory: str,
    *,
    options: CheckpointOptions,
    room: int | None,
    pause: Pause | None,
    tracker: Tracker,
) -> dict[str, object]:
    """Write the memory of a container to directory/checkpoint.img, and note what changes then.

    It runs on, whatever happens. `room` is how much memory it may still use. Returns statistics.
    """

    def work(guardian: Guardian) -> dict[str, object]:
        return _pre_dump(living_task(init), directory, options, room, pause, tracker, guardian)

    return guarded(work)


def _pre_dump(
    init: int,
    directory: str,
    options: CheckpointOptions,
    room: int | None,
    pause: Pause | None,
    tracker: Tracker,
    guardian: Guardian,
) -> dict[str, object]:
    namespaces.refuse_joined_pid_namespace(init)
    vdso = own_vdso()
    with ExitStack() as undo:
        parent = ParentImage(undo, options, tracker)
        image = undo.enter_context(
            Writer(
                directory,
                compression=options.compression,
                direct=options.direct,
                sync=options.sync,
                replace=options.replace,
                check=guardian.check,
                parent=parent.name,
            )
        )
        pages = PageWriter(image, parent.changes)
        tracking = undo.enter_context(Tracking())

        def add(one: CollectedProcess, written: list[PageRange]) -> None:
            image.add(PreDumped(pid=one.held.namespace_pid, memory=Pages(pages=written)))

        with held(init, pause) as tree:
            Unanswered(None).refuse(tree)
            tidying.remove_leftovers(tree, vdso)
            processes = parents_first(_with_memory(tree, init, still_noted(parent.known).keys()))
            parent.look(processes)
            snapshots = undo.enter_context(Snapshots(init, vdso))
            if pause is None:
                snapshots.take(pages.keep_changed(processes), room)
            tracking.take_over(tracker)
            for one in processes:
                tracking.begin(one, vdso)
            for one in processes:
                if pages.has_kept(one):
                    continue
                if snapshots.of(one.held) is None:
                    memory_of_it = ProcessMemory(one.held.memory)
                    add(one, pages.write(one, one.held.pid, memory_of_it))
                else:
                    pages.write_unforked(one)
        for one in processes:
            if pages.has_kept(one):
                add(one, pages.write_kept(one))
            elif snapshot := snapshots.of(one.held):
                snapshots.let_go_of_shared_memory(one.held, one.space.mappings)
                add(one, pages.write(one, snapshot.pid, snapshot.memory))
        snapshots.end(tree.resumed)
        guardian.check()
        tracking.keep(tracker, init)
        image.seal()
        tracking.settle(tracker, image.digest, image.identity)
    return {"page_bytes": pages.bytes, "unchanged_bytes": pages.unchanged}


def _with_memory(tree: Held, init: int, noted: AbstractSet[int]) -> list[CollectedProcess]:
    """Return held processes of which only the mappings were looked at."""
    found = []
    for one in tree.processes:
        with while_(f"collecting {one.name}"):
            space = memory.collect(
                one.pid,
                one.leader.stat,
                read_smaps(one.pid),
                (0, 0),
                lambda *_: 0,
                f"/proc/{init}/root",
                0,
                (b"", 0),
                noted=one.pid in noted,
            )
        found.append(CollectedProcess(one, space, {}))
    return found
