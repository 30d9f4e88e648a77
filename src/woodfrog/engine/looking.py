"""Hold a container and look at everything in it; what can't be kept is noted."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec

from woodfrog.engine import asking_processes, collecting, collecting_shares, guests, tidying
from woodfrog.engine.asking_queues import AskedQueues
from woodfrog.engine.collected import CollectedProcess
from woodfrog.engine.collecting_files import Files
from woodfrog.engine.collecting_namespaces import Namespaces
from woodfrog.engine.collecting_networks import Networks
from woodfrog.engine.detached import DetachedMounts
from woodfrog.engine.guardian import Guardian
from woodfrog.engine.obstacles import Obstacles
from woodfrog.engine.places import Places
from woodfrog.engine.preparing import prepare
from woodfrog.engine.reading_ahead import MappingsAhead
from woodfrog.engine.unanswered import Unanswered
from woodfrog.engine.view import view_of
from woodfrog.engine.world import World
from woodfrog.kernel.procfs.mountinfo import Mount, parse_mount, read_mounts
from woodfrog.remote.held import Held, HeldProcess
from woodfrog.remote.hold import Pause, held
from woodfrog.remote.vdso import Vdso, own_vdso
from woodfrog.resources import cgroups, namespaces, sysctls
from woodfrog.resources.cgroups import Hierarchy
from woodfrog.resources.credentials import bounding_set
from woodfrog.resources.files.base import FileRecord
from woodfrog.resources.files.open_file import IO_URING
from woodfrog.resources.mount_tree import table
from woodfrog.resources.mount_tree.looking import ChangedMounts
from woodfrog.resources.sysctls import Opened, Sysctls, Usual

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
    """A held container, and all that was seen in it, once `add_flags` was called."""

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
    ahead: MappingsAhead

    def add_flags(self, obstacles: Obstacles) -> None:
        """Add the flags of large processes' mappings, which take the kernel a while to tell.

        Until then `processes` may lack them; what can't be kept because of them is noted.
        """
        self.ahead.add_flags(self.processes, obstacles)
        collecting.note_inherited(self.processes)

    def statistics(self) -> dict[str, object]:
        """Return figures for people."""
        return {
            "processes": len(self.tree.processes),
            "threads": sum(1 for _ in self.tree.tasks()),
            "losses": self.losses,
        }


def read_backlogs(looked: Looked, *, of_unix: bool = True) -> None:
    """Read what was sent by who waits to be accepted, as soon as nothing stands in the way.

    To do so they are accepted, and made anew.
    """
    if not looked.world.has_sockets:
        return
    from woodfrog.engine import backlogs

    backlogs.read(looked.world, looked.file_records)
    if of_unix and looked.world.sockets.unix_unread:
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
    flags_may_be_late: bool = False,
) -> Looked:
    """Hold a container until `undo` unwinds, and look at everything; note what can't be kept.

    If only some processes are `wanted`, by their ids inside, the others may have what can't be.

    `noted` are the processes of which the kernel notes for us what is written to. They may lend us
    memory until `lent` unwinds, which is before, and after `add_flags` was called.

    If `flags_may_be_late`, mappings of some processes still lack them then (see late_flags).
    """
    looking = _Looking(undo, init, container, options, obstacles, noted)
    looking.prepare()
    looking.hold(pause, guardian, wanted)
    looking.look_ahead(lent, flags_may_be_late=flags_may_be_late)
    looking.look_at_mounts()
    looking.look_around()
    looking.look_at_contents()
    looking.look_at_files()
    return looking.collect(lent)


class _Looking:
    """A look at a container, by steps, in the order in which they stand here."""

    # Since `prepare`: what a container's sysctls are usually, and its own opened; the directories
    # of its cgroups; its mounts when it was made.
    _usual: Usual
    _opened: Opened | None = None
    _groups: list[tuple[str, str]]
    _created: list[Mount] | None = None

    # Since `hold`. `_doomed` are our pids of the `_others`, whom nobody wants.
    _tree: Held
    _others: list[HeldProcess]
    _doomed: set[int]
    _unanswered: Unanswered
    _stopped: float

    # Since `look_ahead`.
    _ahead: MappingsAhead

    # Since `look_at_mounts`; `_view` is a process that sees the container from its root.
    _view: int
    _nested: Namespaces
    _mounts: ChangedMounts | None = None
    _overlay: Overlay | None = None

    # Since `look_around`.
    _files: Files
    _places: Places
    _world: World

    # Since `look_at_contents`.
    _settings: Sysctls | None
    _hierarchies: list[Hierarchy]
    _networks: Networks

    # Since `look_at_files`.
    _hush: ExitStack

    def __init__(
        self,
        undo: ExitStack,
        init: int,
        container: Container,
        options: CheckpointOptions,
        obstacles: Obstacles,
        noted: AbstractSet[int],
    ) -> None:
        self._undo = undo
        self._init = init
        self._container = container
        self._options = options
        self._obstacles = obstacles
        self._noted = noted
        self._vdso = own_vdso()

    def prepare(self) -> None:
        """Do what takes some time before anything is held."""
        init, container = self._init, self._container
        namespaces.refuse_joined_pid_namespace(init)
        self._usual = sysctls.usual()
        if prepare(init, container) and "network" in container.namespaces:
            self._opened = self._usual.opened(init, self._undo)
        self._groups = list(cgroups.directories(container.cgroups))
        if container.mounts is not None:
            self._created = [parse_mount(os.fsencode(line)) for line in container.mounts]

    def hold(
        self, pause: Pause | None, guardian: Guardian, wanted: AbstractSet[int] | None
    ) -> None:
        """Hold all processes; refuse at once what we could not even look at."""
        tree = self._tree = self._undo.enter_context(held(self._init, pause))
        self._others = [one for one in tree.processes if wanted and one.namespace_pid not in wanted]
        self._doomed = {one.pid for one in self._others}
        self._goes_back = wanted is not None
        self._unanswered = Unanswered(self._created)
        self._unanswered.refuse(tree)
        guests.refuse(tree, self._init, self._groups)
        collecting.refuse_dispatched(tree)
        tidying.remove_leftovers(tree, self._vdso)
        self._stopped = time.monotonic()
        guardian.check()

    def look_ahead(self, lent: ExitStack, *, flags_may_be_late: bool) -> None:
        """Begin to read what takes the kernel longest, beside all that follows."""
        collecting_shares.refuse_shared_parts(self._tree, self._obstacles)
        wanted = [one for one in self._tree.processes if one.pid not in self._doomed]
        self._ahead = MappingsAhead(wanted, self._noted, may_be_late=flags_may_be_late)
        self._ahead.walk()
        self._ahead.begin(self._vdso, lent)

    def look_at_mounts(self) -> None:
        """See who is in which namespace, and what has become of mounts."""
        init, container, obstacles = self._init, self._container, self._obstacles
        view = self._view = self._undo.enter_context(view_of(init))
        nested = self._nested = Namespaces(init, self._tree, obstacles)
        self._undo.callback(nested.close)
        if (created := self._created) is not None:
            with obstacles.at("the container"):
                if namespaces.is_ours(init, "user"):
                    created = table.as_gone_to(created, read_mounts(view))
                nested.look_at_mounts(view, {mount.root for mount in created})
                self._mounts = ChangedMounts(
                    init, view, created, container.tmpfs, namespaces=nested.bound
                )
                self._undo.callback(self._mounts.close)
        if container.rootfs:
            from woodfrog.resources.overlay import Overlay

            with obstacles.at("the container"):
                self._overlay = self._undo.enter_context(Overlay(view))

    def look_around(self) -> None:
        """See which files are open, where paths lead, and so what records may ask for."""
        tree, nested, obstacles = self._tree, self._nested, self._obstacles
        self._unanswered.refuse_own_descriptors(tree.tasks())
        self._files = Files(tree)
        self._undo.callback(self._files.close)
        with obstacles.at("the container"):
            nested.look_at(self._files.files)
        given_mounts = self._mounts.kept if self._mounts else frozenset()
        self._places = Places(self._view, nested, self._undo, given_mounts)
        with obstacles.at("the container"):
            self._places.look(self._init, self._undo)
        options = self._options
        self._world = World(
            self._init,
            self._places,
            tree,
            nested,
            {inode: number for number, inode in enumerate(self._container.stdio)},
            unix_close=options.unix_close,
            tcp_close=options.tcp_close,
            tcp_established=options.tcp_established,
            tcp_skip_in_flight=options.tcp_skip_in_flight,
            noted=self._noted,
            notices=AskedQueues(tree, self._vdso),
            given_mounts=given_mounts,
        )
        self._undo.callback(self._world.close)

    def look_at_contents(self) -> None:
        """Collect what namespaces and cgroups have in them."""
        init, view, container = self._init, self._view, self._container
        world, nested, obstacles = self._world, self._nested, self._obstacles
        with obstacles.at("the container"):
            world.ipc.look_at_posix_queues(world.notices)
        with obstacles.at("the container"):
            world.ipc.look_at_sysv()
        self._settings = sysctls.collect(
            init, view, container.namespaces, container.sysctls, self._usual, self._opened
        )
        self._hierarchies = []
        with obstacles.at("the container"):
            self._hierarchies = cgroups.collect(
                self._groups, container.frozen_groups, world.identify
            )
        with obstacles.at("the container"):
            nested.collect(init, self._usual, container.cgroups)
        self._networks = Networks()
        given = container.network, container.tables
        self._networks.collect(init, view, nested, obstacles, *given, self._usual)

    def look_at_files(self) -> None:
        """Find what belongs together among files; TCP connections hear nothing from here on."""
        world, files, mounts = self._world, self._files, self._mounts
        obstacles = self._obstacles
        world.look_at(files.files)
        self._hush = self._undo.enter_context(ExitStack())
        if mounts:
            world.detached = DetachedMounts(files.files, self._places.all, bounding_set(self._init))
            world.detached.look(self._undo, obstacles)
            with obstacles.at("the container"):
                mounts.add_detached(world.detached.found)
        with obstacles.at("the container"):
            self._places.name_ghosts(mounts, world.links)
        files.refuse_opened_in(self._places.late_files, obstacles)
        if world.has_sockets:
            self._look_at_sockets()

    def _look_at_sockets(self) -> None:
        from woodfrog.engine import backlogs, connections

        world = self._world
        if not self._options.tcp_listen_only:
            backlogs.look(world, own_network="network" in self._container.namespaces)
        if world.sockets.unix_waited_at():
            from woodfrog.engine import unix_backlogs

            unix_backlogs.look(world, self._files)
        self._hush.enter_context(connections.hushed(self._init, world.sockets))

    def collect(self, lent: ExitStack) -> Looked:
        """Collect files and processes, which lend us memory until `lent` unwinds."""
        tree, world, files, obstacles = self._tree, self._world, self._files, self._obstacles
        self._await_rings()
        # What is to be made anew anyway need not be read.
        file_records = files.collect(world, obstacles, self._doomed, but_sockets=self._goes_back)
        processes = collecting.collect_processes(
            tree,
            world,
            files,
            file_records,
            obstacles,
            self._vdso,
            lent,
            self._ahead,
            asking_processes.usual(),
            self._doomed,
        )
        collecting_shares.refuse_unmade(processes, obstacles)
        world.keyrings.refuse_unjoinable(processes, obstacles)
        return Looked(
            tree,
            self._vdso,
            self._settings,
            self._networks,
            self._hierarchies,
            self._mounts,
            self._overlay,
            self._nested,
            world,
            files,
            file_records,
            processes,
            # After all timers and waits were read: their times must not seem to run out early.
            namespaces.clocks(self._init),
            self._stopped,
            losses_of(file_records) + self._networks.losses,
            self._others,
            self._hush,
            self._ahead,
        )

    def _await_rings(self) -> None:
        """Wait for what io_urings still do, and may have written meanwhile."""
        files = self._files
        if any(file.target == IO_URING for file in files.files):
            from woodfrog.engine.rings import Rings

            self._ahead.forget_walks()
            self._ahead.finish()
            self._world.rings = Rings(
                self._tree,
                files,
                self._vdso,
                self._obstacles,
                may_cancel=not self._options.leave_running,
            )


def losses_of(files: Iterable[FileRecord]) -> list[str]:
    """Say what a flag allowed to lose, or programs are told that is lost, for the report."""
    lost: Counter[str] = Counter()
    for file in files:
        lost.update(file.losses())
    return [f"{number} {what}" for what, number in lost.items() if number]
