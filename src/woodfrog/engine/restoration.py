"""The stages of a restore that come after ADMIT: one method each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from woodfrog.engine import (
    belongings,
    body,
    connections,
    finishing,
    one_processor,
    reading_pages,
    root_stub,
    terminals,
    tying,
)
from woodfrog.engine.admitting import Admitted
from woodfrog.engine.body import Body
from woodfrog.engine.finishing import Release
from woodfrog.engine.inheriting import Inheritance, Inherited
from woodfrog.engine.late_files import LateFiles
from woodfrog.engine.making_files import Making
from woodfrog.engine.making_namespaces import MadeNamespaces
from woodfrog.engine.one_processor import OneProcessor
from woodfrog.engine.tree import Tree
from woodfrog.kernel.procfs.id_maps import IdMaps
from woodfrog.kernel.procfs.maps import read_maps
from woodfrog.remote.address import free_range
from woodfrog.remote.side_by_side import SideBySide
from woodfrog.remote.socket_waits import Shortened
from woodfrog.remote.stub import Stub
from woodfrog.resources import (
    cgroups,
    credentials,
    ids,
    known_files,
    namespaces,
    scheduling,
)
from woodfrog.resources.files import own_addresses
from woodfrog.resources.scheduling import Scheduling

if TYPE_CHECKING:
    from woodfrog.engine.mounting import Mounting
    from woodfrog.engine.tracking import Tracking
    from woodfrog.resources.memory import PageRange


class Restoration:
    """What becomes of a waiting init, from an image that was admitted; see stages.py.

    The stages are called in the order in which they stand here, each once. What one leaves to those
    that come after it stands in the attributes.

    `silence` drops what comes for the image's connections until GO. With `tracking` what is written
    to is noted from then on. `undo` closes descriptors of ours.
    """

    # Since ROOT: the root stub, its descriptor of the page store, and its capabilities.
    _root: Stub
    _store: int
    _permitted: int
    # The numbers of descriptors that only stubs have; and how many the waiting init might have.
    _room: range
    _most_descriptors: int
    # The root stub's descriptors of directories that mounts of the image hide, by their paths.
    _uncovered: dict[bytes, int]
    _mounting: Mounting | None = None
    _namespaces: MadeNamespaces
    # How the waiting init was scheduled; and the processor that it has in common with us, if so.
    _scheduling: Scheduling
    _one_processor: OneProcessor | None = None

    # Since FILES; and the ipc namespaces where segments that nobody has attached end
    # (kernel.shm_rmid_forced), which they don't until BODY.
    _making: Making
    _forced: set[int]

    # Since TREE: the processes, by their ids inside.
    _late: LateFiles
    _bodies: dict[int, Body]

    # Since BODY: the id maps of the container's own user namespace, None if it has ours.
    _maps: IdMaps | None

    def __init__(
        self,
        init: int,
        admitted: Admitted,
        silence: connections.Silence,
        tracking: Tracking | None,
        undo: ExitStack,
    ) -> None:
        self._init = init
        self._admitted = admitted
        self._plan = admitted.plan
        self._wishes = admitted.wishes
        self._bounds = admitted.wishes.bounds
        self._template = admitted.wishes.template
        self._silence = silence
        self._tracking = tracking
        self._undo = undo

    @property
    def missing(self) -> list[str]:
        """What the new container is without, for people to know."""
        return self._making.missing

    def make_root(self) -> None:
        """ROOT: init becomes the root stub, and what its namespaces have in them comes back."""
        self._scheduling = scheduling.collect(self._init)
        if self._template and one_processor.suits(self._plan):
            self._one_processor = OneProcessor(self._init, self._undo)
        self._become_root_stub()
        self._furnish()
        self._make_namespaces()

    def _become_root_stub(self) -> None:
        admitted, init = self._admitted, self._init
        self._most_descriptors, most_now = root_stub.raise_descriptor_limit(init)
        root_stub.raise_memory_limits(init, self._bounds.rlimits)
        self._room = self._plan.room_for_descriptors(most_now)
        high = self._room.start
        offsets = None
        if self._wishes.clock == "container":
            container = self._plan.container
            offsets = namespaces.time_offsets(container.monotonic_ns, container.boottime_ns)
        if self._template:
            from woodfrog.engine import forked_stub

            self._root, self._store = forked_stub.make(
                init, self._template, high=high, pages=admitted.pages, time_offsets=offsets
            )
        else:
            used = self._plan.used_memory() + [(m[0], m[1]) for m in read_maps(init)]
            place = free_range(used, root_stub.STUB_BYTES + 4096)
            self._root, self._store = root_stub.make(
                init,
                place.start,
                root_stub.STUB_BYTES,
                admitted.vdso,
                high=high,
                pages=admitted.pages,
                time_offsets=offsets,
            )

    def _furnish(self) -> None:
        """Fill in names, the container's own tmpfs, and sysctls."""
        init, plan, bounds = self._init, self._plan, self._bounds
        if "uts" in bounds.new_namespaces:
            root_stub.set_names(init, plan.container)
        for files, lacking in self._admitted.tmpfs:
            from woodfrog.resources import tmpfs

            tmpfs.restore(init, files, lacking, self._admitted.pages, self._admitted.base)
        self._permitted = credentials.permitted_set(init)
        if plan.sysctls:
            from woodfrog.resources import sysctls

            sysctls.restore(
                self._root, plan.sysctls, bounding=bounds.bounding, permitted=self._permitted
            )

    def _make_namespaces(self) -> None:
        """Make nested namespaces but those of mounts, and the container's own mounts."""
        plan, bounds = self._plan, self._bounds
        self._uncovered = {}
        if covered := {file.place[0] for file in plan.files_of("regular") if file.covered}:
            from woodfrog.engine import mounting

            self._uncovered = mounting.open_before(
                self._root, covered, self._room.start, bounds.bounding, self._permitted
            )
        if plan.mounts or plan.namespaces:
            from woodfrog.engine.mounting import Mounting

            self._mounting = Mounting(
                self._root,
                plan.deleted,
                high=self._room.start,
                bounding=bounds.bounding,
                permitted=self._permitted,
                pages=self._admitted.pages,
                base=self._admitted.base,
            )
        cgroups.make(plan.cgroups, bounds.cgroups)
        self._namespaces = MadeNamespaces(self._root, self._mounting, bounds.cgroups, self._undo)
        self._namespaces.make(one for one in plan.namespaces.values() if one.name != "mnt")
        if plan.mounts and self._mounting:
            self._mounting.make(plan.mounts, self._namespaces.give_bound)
            known_files.refuse_changed(
                self._init, plan.files_in_new_mounts, plan.growing_files, self._admitted.validation
            )

    def make_files(self) -> None:
        """FILES: the root stub makes networks, IPC objects and shared memory, and opens files."""
        init, plan, root, made = self._init, self._plan, self._root, self._namespaces
        networking = self._admitted.networking
        made.make(one for one in plan.namespaces.values() if one.name == "mnt")
        self._silence.spread(lambda number: made.descriptor("net", number))
        missing = networking.set_up(root, self._permitted, made)
        making = self._making = self._workshop()
        making.missing += missing
        store, base = self._store, self._admitted.base
        inherit = partial(reading_pages.fill_pages, self._admitted.reader, root.pid)
        self._make_ipc(inherit)
        written, only_read = plan.written_by_mapping, plan.only_read_by_mapping
        making.make_shared_memory(plan.files_in_memory, written, only_read, store, base, inherit)
        making.make_deleted_files(plan.deleted.values(), plan.opened_deleted, written, store, base)
        records, moves = own_addresses.moved(plan.files_at_home, init, networking.addresses)
        making.missing += moves
        making.make_files([*records, *plan.files_elsewhere], plan.unheld, plan.within)

    def _workshop(self) -> Making:
        bounds = self._bounds
        return Making(
            self._root,
            self._room,
            capabilities=bounds.bounding,
            permitted=self._permitted,
            tcp_close=bounds.tcp_close,
            undo=self._undo,
            new_network="network" in bounds.new_namespaces,
            namespaces=self._namespaces,
            may_force_buffers=namespaces.is_ours(self._init, "user"),
            spare_pid=self._plan.spare_pid,
            uncovered=self._uncovered,
            ghosts=self._mounting.ghosts if self._mounting else None,
            detached=self._mounting.detached if self._mounting else {},
        )

    def _make_ipc(self, inherit: Callable[[Sequence[PageRange]], None]) -> None:
        plan, root, making = self._plan, self._root, self._making
        self._forced = set()
        for number, queues, objects in plan.ipc():
            if not queues and not objects:
                continue
            from woodfrog.resources import posix_queues, sysv_ipc, sysv_memory

            with self._namespaces.visited(root, "ipc", number):
                if plan.segments[number] and sysv_memory.leave_unattached(root.pid):
                    self._forced.add(number)
                posix_queues.restore(root, queues)
                sysv_ipc.restore(
                    root,
                    objects,
                    plan.shared,
                    making.send,
                    self._store,
                    self._admitted.base,
                    inherit,
                )

    def make_tree(self) -> None:
        """TREE: all processes are there, blank; zombies have died."""
        init, plan, root, made = self._init, self._plan, self._root, self._namespaces
        inheritance = None
        if not self._admitted.background.is_wanted and self._template is None:
            inheritance = Inheritance(
                self._admitted.reader, plan.processes, self._bounds.bounding, self._permitted
            )
        tree = Tree(plan, root, made, inheritance, self._outsiders())
        narrowing = root.program()
        credentials.narrow(narrowing, plan.all_credentials, credentials.bounding_set(root.pid))
        tree.build(narrowing)
        made.mount_late(plan.namespaces.values())
        if plan.mounts and plan.mounts.late and self._mounting:
            from woodfrog.resources.mount_tree import admitting

            admitting.refuse_outside(init, plan.mounts.late)
            self._mounting.make(plan.mounts.late, made.give_bound)
        self._late = LateFiles(root, tree, plan, self._making, made, self._undo)
        self._late.open_those_of_ended()
        self._bodies = self._blank_bodies(tree, inheritance)

    def _outsiders(self) -> Callable[[int], Stub]:
        """Give what makes the processes that `exec` had brought in, by their ids inside."""
        # Who has it must not have us: what refers to each other stays for long.
        init, root, vdso, store = self._init, self._root, self._admitted.vdso, self._store
        files, bounds = self._making.descriptors, self._bounds.rlimits

        def bring_in(pid: int) -> Stub:
            from woodfrog.engine import outsiders

            return outsiders.make(init, pid, root, vdso, files, store, bounds)

        return bring_in

    def _blank_bodies(self, tree: Tree, inheritance: Inheritance | None) -> dict[int, Body]:
        plan, template = self._plan, self._template
        has_sharers = plan.has_sharers
        return {
            record.pid: Body(
                record,
                tree.stubs[record.pid],
                self._bounds.seccomp,
                plan.other_vdso,
                self._admitted.background.at_once(record),
                inheritance.of(record.pid) if inheritance else Inherited(),
                template.staged(record.pid) if template else (),
                self._namespaces,
                waits_for_others=has_sharers,
                clocks_go_on=self._wishes.clock == "container",
                alike=template.alike if template else None,
            )
            for record in plan.processes
        }

    def make_bodies(self) -> None:
        """BODY: processes have their descriptors, memory, threads and signals; no timer runs."""
        bodies, background = self._bodies.values(), self._admitted.background
        body.make(self._plan, bodies, self._making, self._fill)
        self._making.seal()
        background.begin(bodies, self._admitted.check.result)
        self._remove_segments()
        self._make_threads()
        if any(one.stopped_by or one.continued or one.stop_heard for one in self._plan.processes):
            from woodfrog.engine import stops

            stops.restore(self._bodies, self.missing)
        side = SideBySide()
        for one in bodies:
            one.restore_signals(side)
        side.finish()
        for one in bodies:
            one.make_timers()
        for one in bodies:
            one.leave_future()

    def _fill(self, bodies: Collection[Body]) -> None:
        if self._template:
            for one in bodies:
                self._template.fill(one.stub.pid, one.record.pid)
        else:
            reading_pages.fill(self._admitted.reader, [one.lacking for one in bodies])

    def _remove_segments(self) -> None:
        """Remove the System V shared memory that had been, now that it is attached."""
        for number, segments in self._plan.segments.items():
            with self._namespaces.visited(self._root, "ipc", number):
                self._bodies[1].remove_segments(segments)
                if number in self._forced:
                    from woodfrog.resources import sysv_memory

                    sysv_memory.remove_unattached(self._root.pid)

    def _make_threads(self) -> None:
        self._maps = ids.maps_of(self._init)
        for one in self._bodies.values():
            self._making.missing += belongings.set_login(one, self._bounds.bounding, self._maps)
            one.enter_user_namespace(self._permitted)
            one.make_threads()
            belongings.restore_undo(one, self._plan)

    def connect(self) -> None:
        """CONNECT: what points at others does."""
        plan, making, bodies = self._plan, self._making, self._bodies.values()
        for one in bodies:
            terminals.set_foreground(one.stub, plan, one.record)
        self._late.open_and_hand_out(bodies)
        tying.connect_files(plan, self._bodies)
        locked: set[object] = set()
        for one in bodies:
            belongings.own_files(one, plan)
            # Whoever closes a file loses its locks: they come last.
            belongings.separate_tables(one, making)
            belongings.lock_files(one, plan, locked, making)
            belongings.notices(one)

    def limit(self) -> None:
        """LIMITS: processes have only their own rights from here on."""
        plan, bodies = self._plan, self._bodies.values()
        tasks = {
            thread.tid: task.pid
            for one in bodies
            for thread, task in zip(one.record.threads, one.tasks, strict=True)
        }
        cgroups.restore(plan.cgroups, self._bounds.cgroups, tasks, self._maps)
        finishing.restore_limits(
            bodies,
            self._bounds,
            self._scheduling,
            self.missing,
            descriptors=self._most_descriptors,
        )
        if rings := plan.files_of("io-uring", "polled-io-uring"):
            from woodfrog.engine import making_rings

            making_rings.restore(rings, self._bodies)
        tying.connect_files(plan, self._bodies, last=True)
        for one in bodies:
            finishing.restore_last(one)
        if plan.sysctls and plan.sysctls.pid:
            from woodfrog.resources import pid_settings

            self._making.missing += pid_settings.restore(self._init, plan.sysctls.pid)

    def let_go(self) -> None:
        """GO: timers and calls go on with the time that was left; everyone is let go."""
        admitted = self._admitted
        admitted.check.result()
        admitted.background.confirm()
        self._begin_tracking()
        releases = [Release(one, admitted.vdso) for one in self._bodies.values()]
        side = SideBySide()
        for release in releases:
            release.arm(side)
        side.finish()
        for release in releases:
            release.expand_state()
        # Whose the memory is comes last.
        for release in sorted(releases, key=lambda one: not one.body.record.shares.memory):
            release.leave_stub()
        for release in releases:
            release.settle()
        shortened = Shortened(wait for release in releases for wait in release.waits_at_sockets())
        self._making.missing += admitted.networking.filter()
        self._silence.end()
        self._making.complete()
        self._leave_processor()
        cgroups.freeze(self._plan.cgroups, self._bounds.cgroups)
        finishing.let_all_go(releases)
        shortened.restore()

    def _leave_processor(self) -> None:
        """Have all run wherever they may."""
        if not self._one_processor:
            return
        for one in self._bodies.values():
            tasks = zip(one.tasks, one.record.threads, strict=True)
            self._one_processor.leave(
                ((task.pid, thread.scheduling) for task, thread in tasks), self._scheduling
            )

    def _begin_tracking(self) -> None:
        """Have the kernel note from now on what is written to."""
        if not self._tracking:
            return
        for one in self._bodies.values():
            if not one.record.shares.memory:
                self._tracking.begin_in(one.stub, one.record.memory.mappings)

    def close(self) -> None:
        """Close what we had of the processes."""
        for one in self._bodies.values():
            one.stub.close()
