"""Checkpoint: hold, look, collect, write, let go or end."""

import time
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, suppress

from woodfrog.engine import collecting, looking
from woodfrog.engine.changes import ParentImage
from woodfrog.engine.collecting import parents_first
from woodfrog.engine.guardian import Guardian, guarded
from woodfrog.engine.late_flags import LateFlags
from woodfrog.engine.looking import (
    CheckpointOptions,
    Container,
    Looked,
    look,
    losses_of,
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
from woodfrog.kernel.process_memory import ProcessMemory
from woodfrog.kernel.procfs.status import read_status
from woodfrog.remote.held import living_task
from woodfrog.remote.hold import Pause, end_all
from woodfrog.remote.tracee import EndedError, RanOnError
from woodfrog.resources import ids, known_files, namespaces, tmpfs
from woodfrog.resources.container import ContainerRecord
from woodfrog.resources.cpu import Cpu
from woodfrog.resources.files.regular import RegularFile
from woodfrog.resources.known_files import KnownFile
from woodfrog.resources.mount_tree.looking import NOT_MOUNTED

__all__ = ["CheckpointOptions", "Container", "checkpoint", "examine", "prepare"]

# A task that we were kept from stopping in time goes on by itself; then all is looked at once more.
_TRIES = 3
_MOST_RING_BYTES = 8 << 20


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
        looking.prepare(living_task(init), container)


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
            statistics = look(
                undo,
                living_task(init),
                container,
                options,
                pause,
                obstacles,
                guardian,
                still_noted(known).keys(),
                lent=undo,
            ).statistics()
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
            looked = _look(hold, init, container, options, pause, guardian, noted)
            times = _Times(looked.tree.began)
            times.note("stop", looked.stopped)
            times.note("collect")
            statistics = looked.statistics()
            parent.look(looked.processes)
            snapshots = undo.enter_context(Snapshots(init, looked.vdso))
            if options.leave_running and pause is None:
                snapshots.take(pages.keep_changed(looked.processes), container.memory_room)
            late = LateFlags(looked.processes, snapshots)
            if options.leave_running and options.track_changes and tracker:
                tracking.take_over(tracker)
                for one in looked.processes:
                    tracking.begin(one, looked.vdso)
            times.note("snapshot")
            _write(image, container, looked, snapshots, pages)
            guardian.check()
            _finish_records(image, init, container, looked, cpu)
            if not options.leave_running:
                image.seal()
                times.note("write")
                _end(init, looked)
        times.note("write", looked.tree.let_go)
        times.note_frozen()
        if options.leave_running:
            late.read()
            _write_snapshots(image, looked, snapshots, pages)
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
    guardian: Guardian,
    noted: AbstractSet[int],
) -> Looked:
    """Hold the container, and look at everything; refuse what can't be kept."""
    obstacles = Obstacles()
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
    read_backlogs(looked)
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


def _write(
    image: Writer,
    container: Container,
    looked: Looked,
    snapshots: Snapshots,
    pages: PageWriter,
) -> None:
    """Write everything to the image but the memory that is in snapshots."""
    _write_processes(image, looked, snapshots, pages)
    _write_namespaces(image, looked)
    _write_mounts(image, container, looked)
    _write_files(image, looked)
    for known in _known_files(looked):
        image.add(known)
    for zombie in looked.tree.zombies:
        image.add(collecting.zombie_record(zombie, looked.world))


def _write_processes(
    image: Writer, looked: Looked, snapshots: Snapshots, pages: PageWriter
) -> None:
    """Write processes and the memory that they share; those in snapshots come later."""
    world = looked.world
    for one in parents_first(looked.processes):
        if pages.has_kept(one):
            continue
        if snapshots.of(one.held) is None:
            written = pages.write(one, one.held.pid, ProcessMemory(one.held.memory))
            image.add(one.record(written, world.news))
        else:
            pages.write_unforked(one)
    for shared in world.links.objects.values():
        image.add(pages.write_object(shared))


def _write_namespaces(image: Writer, looked: Looked) -> None:
    """Write what is in namespaces, keyrings and cgroups, but for the container's own mounts."""
    world, networks = looked.world, looked.networks
    leased = world.leased
    for one_of_ipc in world.ipc.records(0):
        image.add(one_of_ipc)
    for namespace in looked.namespaces.records:
        image.add(world.ipc.furnished(namespace))
    for number, _ in looked.namespaces.descriptors("mnt"):
        image.add(world.places.record(number, image.write_pages, leased))
    for within in looked.files.within():
        image.add(within)
    for ring in world.keyrings.records.values():
        image.add(ring)
    if looked.sysctls:
        image.add(looked.sysctls)
    for part in (networks.network, networks.rules, *networks.tables, networks.tracked):
        if part:
            image.add(part)
    for hierarchy in looked.cgroups:
        image.add(hierarchy)


def _write_mounts(image: Writer, container: Container, looked: Looked) -> None:
    """Write the container's own mounts, and what files in memory and its root's layer have."""
    world, mounts = looked.world, looked.mounts
    leased = world.leased
    for destination in container.tmpfs:
        copy = mounts.copy_of(destination) if mounts else None
        if copy == NOT_MOUNTED:
            continue
        files_of_mount = tmpfs.collect(world.view, destination, image.write_pages, copy, leased)
        if files_of_mount is not None:
            image.add(files_of_mount)
    if mounts and (mount_tree := mounts.record(image.write_pages, leased)):
        image.add(mount_tree)
    if looked.overlay:
        from woodfrog.resources import layer

        image.add(layer.collect(looked.overlay, container.rootfs, image.write_pages, leased))


def _write_files(image: Writer, looked: Looked) -> None:
    """Write open files, but for io_urings whose requests are still to be cancelled."""
    rings = looked.world.rings
    unclear = {ring.file.number for ring in rings.unclear} if rings else set()
    for record in looked.file_records:
        if record.id not in unclear:
            image.add(record)


def _known_files(looked: Looked) -> Iterable[KnownFile]:
    """Return what the new container must have."""
    world = looked.world
    # What is known of files in other mount namespaces could be looked for only there.
    elsewhere = {n for one in looked.files.within() if "mnt" in one.namespaces for n in one.files}
    opened = [
        one.path
        for one in looked.file_records
        if isinstance(one, RegularFile)
        and one.is_data
        and not one.covered
        and one.id not in elsewhere
    ]
    mapped = {
        path
        for process in looked.processes
        if world.is_at_home(process.held.pid)
        for path in process.space.mapped_paths
    }
    return known_files.collect(world.view, opened, mapped)


def _finish_records(
    image: Writer, init: int, container: Container, looked: Looked, cpu: Cpu
) -> None:
    """Write the records that come last."""
    rings = looked.world.rings
    if rings and rings.unclear:
        from woodfrog.engine import cancelling_rings

        image.rehearse(_MOST_RING_BYTES * len(rings.unclear))
        cancelled = cancelling_rings.cancel(rings, looked.vdso, looked.file_records)
        looked.losses.extend(losses_of(cancelled))
        for ring in cancelled:
            image.add(ring)
    image.add(_container_record(init, container, looked, cpu))


def _write_snapshots(
    image: Writer, looked: Looked, snapshots: Snapshots, pages: PageWriter
) -> None:
    """Write the memory that is in snapshots, while the container runs on."""
    for one in parents_first(looked.processes):
        if pages.has_kept(one):
            image.add(one.record(pages.write_kept(one), looked.world.news))
        elif snapshot := snapshots.of(one.held):
            snapshots.let_go_of_shared_memory(one.held, one.space.mappings)
            written = pages.write(one, snapshot.pid, snapshot.memory)
            image.add(one.record(written, looked.world.news))


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


def _container_record(init: int, container: Container, looked: Looked, cpu: Cpu) -> ContainerRecord:
    monotonic, boottime = looked.clocks
    maps = ids.maps_of(init)
    with namespaces.inside(init, "uts"):
        hostname, domainname = namespaces.names()
    return ContainerRecord(
        id=container.id,
        config=container.config,
        hostname=hostname,
        spec_hostname=container.spec_hostname.encode(),
        domainname=domainname,
        spec_domainname=container.spec_domainname.encode(),
        vdso=looked.vdso.image,
        monotonic_ns=monotonic,
        boottime_ns=boottime,
        cpu=cpu,
        uid_map=maps.users.text if maps else b"",
        gid_map=maps.groups.text if maps else b"",
        losses=looked.losses,
        cuda=[looked.world.identify(pid) for pid in container.suspended],
    )
