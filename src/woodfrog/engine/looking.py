"""Hold a container and look at everything in it; what can't be kept is noted."""

from __future__ import annotations

import codecs
import os
import time
from collections import Counter
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec

from woodfrog.engine import collecting, collecting_shares, tidying
from woodfrog.engine.asking_processes import AskingProcesses
from woodfrog.engine.asking_queues import AskedQueues
from woodfrog.engine.collected import CollectedProcess
from woodfrog.engine.collecting_files import Files
from woodfrog.engine.collecting_namespaces import Namespaces
from woodfrog.engine.collecting_networks import Networks
from woodfrog.engine.detached import DetachedMounts
from woodfrog.engine.guardian import Guardian
from woodfrog.engine.obstacles import Obstacles
from woodfrog.engine.places import Places
from woodfrog.engine.reading_ahead import MappingsAhead
from woodfrog.engine.unanswered import Unanswered
from woodfrog.engine.view import view_of
from woodfrog.engine.world import World
from woodfrog.kernel import reading_elsewhere
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.namespaces import processes_in
from woodfrog.kernel.procfs.mountinfo import parse_mount, read_mounts
from woodfrog.remote.held import Held, HeldProcess
from woodfrog.remote.hold import Pause, held
from woodfrog.remote.vdso import Vdso, own_vdso
from woodfrog.resources import catalogue, cgroups, namespaces, sysctls
from woodfrog.resources.cgroups import Hierarchy
from woodfrog.resources.credentials import bounding_set
from woodfrog.resources.files.base import IO_URING, FileRecord
from woodfrog.resources.mount_tree import table
from woodfrog.resources.mount_tree.looking import ChangedMounts
from woodfrog.resources.sysctls import Sysctls

if TYPE_CHECKING:
    from woodfrog.resources.overlay import Overlay


class CheckpointOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the user may choose. `replace` replaces an older image; the closes name what is lost."""

    leave_running: bool = False
    compression: str = "none"
    direct: bool = False  # past the page cache
    sync: str = "full"
    replace: bool = False
    tcp_close: bool = False
    tcp_established: bool = False
    tcp_skip_in_flight: bool = False
    tcp_listen_only: bool = False
    unix_close: bool = False
    with_rootfs: bool = False
    parent: str = ""  # the directory of an image to build on
    track_changes: bool = False  # note from now on what is written to


class Container(msgspec.Struct, frozen=True, kw_only=True):
    """What only the runtime knows. `tmpfs` are the destinations of the container's own tmpfs."""

    id: str
    config: bytes
    spec_hostname: str
    spec_domainname: str = ""
    tmpfs: tuple[str, ...]
    namespaces: frozenset[str] = frozenset()  # that were made for it, by their names in a config
    sysctls: dict[str, str] = {}  # those of its config
    network: bytes | None = None  # how its own was when it started; None if none may change it
    tables: frozenset[str] = frozenset()  # of legacy iptables that it had when it started
    cgroups: dict[str, str] = {}  # its directories, by the names of their hierarchies
    frozen_groups: frozenset[str] = frozenset()  # directories of those frozen by their own freezers
    mounts: list[str] | None = None  # the lines of its mount table when `create` was done
    stdio: list[tuple[int, int]] = []  # device and inode of what `create` gave as 0, 1 and 2
    suspended: list[int] = []  # our pids of those whose GPU state is in their memory
    memory_room: int | None = None  # bytes that its cgroup may still use
    rootfs: str = ""  # where the host has its root, if changes there belong to the image


class Looked(msgspec.Struct, frozen=True):
    """A held container, and all that was seen in it."""

    tree: Held
    vdso: Vdso
    sysctls: Sysctls | None
    networks: Networks
    cgroups: list[Hierarchy]
    mounts: ChangedMounts | None
    overlay: Overlay | None
    namespaces: Namespaces
    world: World
    files: Files
    file_records: list[FileRecord]
    processes: list[CollectedProcess]
    clocks: tuple[int, int]
    stopped: float
    losses: list[str]
    others: list[HeldProcess]  # that are not wanted, and were not looked at themselves
    hush: ExitStack  # while it is open, nothing comes for TCP connections

    def statistics(self) -> dict[str, object]:
        """Return figures for people."""
        return {
            "processes": len(self.tree.processes),
            "threads": sum(1 for _ in self.tree.tasks()),
            "losses": self.losses,
        }


def read_backlogs(looked: Looked) -> None:
    """Read what was sent by who waits to be accepted, as soon as nothing stands in the way.

    To do so they are accepted, and made anew.
    """
    if not looked.world.has_sockets:
        return
    from woodfrog.engine import backlogs

    backlogs.read(looked.world, looked.file_records)
    if looked.world.sockets.unix_unread:
        from woodfrog.engine import unix_backlogs

        unix_backlogs.read(looked)


def look(
    undo: ExitStack,
    init: int,
    container: Container,
    options: CheckpointOptions,
    pause: Pause | None,
    obstacles: Obstacles,
    guardian: Guardian,
    noted: AbstractSet[int] = frozenset(),
    *,
    lent: ExitStack,
    wanted: AbstractSet[int] | None = None,
) -> Looked:
    """Hold a container until `undo` unwinds, and look at everything; note what can't be kept.

    If only some processes are `wanted`, by their ids inside, the others may have what can't be.

    `noted` are the processes of which the kernel notes for us what is written to. They may lend us
    memory until `lent` unwinds, which is before.
    """
    vdso = own_vdso()
    namespaces.refuse_shared_pid_namespace(init)
    usual = sysctls.usual()
    opened = None
    if not sysctls.is_read_only(init):
        _ = usual.settings  # which takes some time: before anything is held
        if "network" in container.namespaces:
            opened = usual.opened(init, undo)
    _prepare(init)
    asking = AskingProcesses()
    own_groups = list(cgroups.directories(container.cgroups))
    created = None
    if container.mounts is not None:
        created = [parse_mount(os.fsencode(line)) for line in container.mounts]
    tree = undo.enter_context(held(init, pause))
    others = [one for one in tree.processes if wanted and one.namespace_pid not in wanted]
    doomed = {one.pid for one in others}
    unanswered = Unanswered(created)
    unanswered.refuse(tree)
    collecting.refuse_dispatched(tree)
    tidying.remove_leftovers(tree, vdso)
    stopped = time.monotonic()
    guardian.check()
    view = undo.enter_context(view_of(init))
    ahead = MappingsAhead(tree.processes)
    nested = Namespaces(init, tree, obstacles)
    undo.callback(nested.close)
    mounts = None
    if created is not None:
        with obstacles.at("the container"):
            if namespaces.is_ours(init, "user"):
                created = table.as_gone_to(created, read_mounts(view))
            nested.look_at_mounts(view, {mount.root for mount in created})
            mounts = ChangedMounts(init, view, created, container.tmpfs, namespaces=nested.bound)
            undo.callback(mounts.close)
    overlay = None
    if container.rootfs:
        from woodfrog.resources.overlay import Overlay

        with obstacles.at("the container"):
            overlay = undo.enter_context(Overlay(view))
    collecting_shares.refuse_shared_parts(tree, obstacles)
    unanswered.refuse_own_descriptors(tree.tasks())
    files = Files(tree)
    undo.callback(files.close)
    with obstacles.at("the container"):
        nested.look_at(files.files)
    given_mounts = mounts.kept if mounts else frozenset()
    places = Places(view, nested, undo, given_mounts)
    with obstacles.at("the container"):
        places.look(init, undo)
    world = World(
        init,
        places,
        tree,
        nested,
        {inode: number for number, inode in enumerate(container.stdio)},
        unix_close=options.unix_close,
        tcp_close=options.tcp_close,
        tcp_established=options.tcp_established,
        tcp_skip_in_flight=options.tcp_skip_in_flight,
        noted=noted,
        notices=AskedQueues(tree, vdso),
        given_mounts=given_mounts,
    )
    undo.callback(world.close)
    with obstacles.at("the container"):
        world.ipc.look_at_posix_queues(world.notices)
    with obstacles.at("the container"):
        world.ipc.look_at_sysv()
    own = container.namespaces
    settings = sysctls.collect(init, view, own, container.sysctls, usual, opened)
    groups: list[Hierarchy] = []
    with obstacles.at("the container"):
        groups = cgroups.collect(own_groups, container.frozen_groups, world.identify)
    with obstacles.at("the container"):
        nested.collect(init, usual, container.cgroups)
    networks = Networks()
    given = container.network, container.tables
    networks.collect(init, view, nested, obstacles, *given, usual)
    world.look_at(files.files)
    hush = undo.enter_context(ExitStack())
    if mounts:
        world.detached = DetachedMounts(files.files, places.all, bounding_set(init))
        world.detached.look(undo, obstacles)
        with obstacles.at("the container"):
            mounts.add_detached(world.detached.found)
    with obstacles.at("the container"):
        places.name_ghosts(mounts, world.links)
    files.refuse_opened_in(places.late_files, obstacles)
    if world.has_sockets:
        from woodfrog.engine import backlogs, connections

        if not options.tcp_listen_only:
            backlogs.look(world, own_network="network" in container.namespaces)
        if world.sockets.unix_waited_at():
            from woodfrog.engine import unix_backlogs

            unix_backlogs.look(world, files)
        hush.enter_context(connections.hushed(init, world.sockets))
    has_rings = any(file.target == IO_URING for file in files.files)
    if not has_rings:  # whose requests may go on until we have waited for them
        ahead.walk(noted)
    ahead.finish()
    if has_rings:
        from woodfrog.engine.rings import Rings

        world.rings = Rings(tree, files, vdso, obstacles, may_cancel=not options.leave_running)
    file_records = files.collect(world, obstacles, doomed)
    processes = collecting.collect_processes(
        tree, world, files, file_records, obstacles, vdso, lent, ahead, asking, doomed
    )
    collecting_shares.refuse_unmade(processes, obstacles)
    world.keyrings.refuse_unjoinable(processes, obstacles)
    # After all timers and waits have been read: their times must not seem to run out early.
    clocks = namespaces.clocks(init)
    return Looked(
        tree,
        vdso,
        settings,
        networks,
        groups,
        mounts,
        overlay,
        nested,
        world,
        files,
        file_records,
        processes,
        clocks,
        stopped,
        losses_of(file_records) + networks.losses,
        others,
        hush,
    )


def _prepare(init: int) -> None:
    """Import what is needed for the files that there are; before anything is held."""
    codecs.lookup("ascii")
    reading_elsewhere.prepare()
    if catalogue.has_all():
        return  # so who stands by for this has loaded everything
    looks = catalogue.prepare(processes_in(HERE, init))
    if any(look.startswith("socket ") for look in looks):
        from woodfrog.engine import backlogs, connections, sockets  # noqa: F401


def losses_of(files: Iterable[FileRecord]) -> list[str]:
    """Say what a flag allowed to lose, or programs are told that is lost, for the report."""
    lost: Counter[str] = Counter()
    for file in files:
        lost.update(file.losses())
    return [f"{number} {what}" for what, number in lost.items() if number]
