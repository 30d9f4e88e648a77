"""Restore: admit, make a stub, open files, build the tree, fill it, limit it, let it go."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from woodfrog.engine import (
    belongings,
    connections,
    finishing,
    kinship,
    reading_pages,
    root_stub,
    terminals,
    tying,
)
from woodfrog.engine import body as body_module
from woodfrog.engine.admission import Bounds
from woodfrog.engine.admitting import Admitted, Wishes
from woodfrog.engine.body import Body
from woodfrog.engine.finishing import Release
from woodfrog.engine.inheriting import Inheritance, Inherited
from woodfrog.engine.late_files import LateFiles
from woodfrog.engine.making_files import Making
from woodfrog.engine.making_namespaces import MadeNamespaces
from woodfrog.engine.plan import Plan
from woodfrog.engine.stages import Stage
from woodfrog.engine.tree import Tree
from woodfrog.errors import MORE_DESCRIPTORS, UnsupportedResource
from woodfrog.image.chain import Chain
from woodfrog.kernel import syscalls
from woodfrog.kernel.capability import CAP_SYS_ADMIN
from woodfrog.kernel.procfs.maps import read_maps
from woodfrog.remote.address import free_range
from woodfrog.remote.program import ProgramError
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

if TYPE_CHECKING:
    from woodfrog.engine.tracking import Tracking
    from woodfrog.resources.mount_tree.ghosts import Ghosts
    from woodfrog.resources.mount_tree.records import Base, MountTree

__all__ = ["Bounds", "Wishes", "restore", "silence_for"]


def restore(init: int, directory: str, wishes: Wishes) -> dict[str, object]:
    """Turn the waiting init of a created container into the image's processes.

    A refusal before anything was touched carries `touched = False`; then init still waits. After
    any other failure all its processes have ended. Returns statistics.
    """
    began = time.monotonic()
    with ExitStack() as undo:
        try:
            admitted = Admitted(init, directory, wishes, undo)
        except Exception as error:
            error.touched = False  # type: ignore[attr-defined]
            raise
        admitted_at = time.monotonic()
        reader, plan, tracker = admitted.reader, admitted.plan, wishes.tracker
        tracking: Tracking | None = None
        if tracker:
            from woodfrog.engine.tracking import Tracking

            tracking = undo.enter_context(Tracking())
        try:
            if plan.layer and admitted.overlay:
                from woodfrog.resources import layer

                layer.restore(plan.layer, admitted.overlay, admitted.pages, admitted.base)
            silence = wishes.silence or connections.Silence(
                init,
                plan.files_of("tcp-socket"),
                plan.networks,
                new_network="network" in wishes.bounds.new_namespaces,
            )
            with silence:
                statistics = _restore(init, admitted, silence, tracking, undo)
        except BaseException as error:
            root_stub.end(init)
            admitted.background.abandon()
            if isinstance(error, ProgramError) and error.opened:
                raise _cannot_open(error) from error
            if isinstance(error, ProgramError) and error.errno == errno.EADDRNOTAVAIL:
                error.add_note("the container's TCP connections need the address that they had")
                error.add_note("--tcp-close restores them as reset")
            raise
        if tracking and tracker:
            tracking.keep(tracker, init)
            tracking.settle(tracker, reader.digest, reader.identity)
    statistics["admit_us"] = int((admitted_at - began) * 1e6)
    statistics["restore_us"] = int((time.monotonic() - began) * 1e6)
    statistics["page_bytes"] = reader.page_bytes
    statistics["losses"] = admitted.losses
    return statistics


def silence_for(init: int, directory: str, parents: Sequence[str] = ()) -> connections.Silence:
    """Drop what comes for an image's connections, before a new container can be reached.

    Its network namespace is that of `init`: a new one, without a network yet.
    """
    with Chain(directory, parents) as reader:
        plan = Plan(reader)
    return connections.Silence(init, plan.files_of("tcp-socket"), plan.networks, new_network=True)


def _cannot_open(error: ProgramError) -> UnsupportedResource:
    """Say which file the new container lacks."""
    reason = os.strerror(error.errno or 0)
    found = UnsupportedResource(
        f"cannot open {os.fsdecode(error.opened)} in the new container: {reason}",
        hint=MORE_DESCRIPTORS
        if error.errno == errno.EMFILE
        else "a container needs the files that it had open or mapped, where they were;"
        " bring what it had written along",
    )
    for note in getattr(error, "__notes__", ()):
        found.add_note(note)
    return found


def _restore(
    init: int,
    admitted: Admitted,
    silence: connections.Silence,
    tracking: Tracking | None,
    undo: ExitStack,
) -> dict[str, object]:
    wishes, plan, vdso = admitted.wishes, admitted.plan, admitted.vdso
    networking, background = admitted.networking, admitted.background
    reader, pages, base = admitted.reader, admitted.pages, admitted.base
    bounds, template = wishes.bounds, wishes.template
    started = time.monotonic()
    marks: dict[str, object] = {}

    def mark(stage: Stage) -> None:
        nonlocal started
        now = time.monotonic()
        marks[f"{stage.name.lower()}_us"] = int((now - started) * 1e6)
        started = now

    # ROOT
    container = plan.container
    most_descriptors, most_now = root_stub.raise_descriptor_limit(init)
    room = plan.room_for_descriptors(most_now)
    offsets = None
    if wishes.clock == "container":
        offsets = namespaces.time_offsets(container.monotonic_ns, container.boottime_ns)
    if template:
        from woodfrog.engine import forked_stub

        root, store = forked_stub.make(
            init, template, high=room.start, pages=pages, time_offsets=offsets
        )
    else:
        used = plan.used_memory() + [(m[0], m[1]) for m in read_maps(init)]
        place = free_range(used, root_stub.STUB_BYTES + 4096)
        root, store = root_stub.make(
            init,
            place.start,
            root_stub.STUB_BYTES,
            vdso,
            high=room.start,
            pages=pages,
            time_offsets=offsets,
        )
    if "uts" in bounds.new_namespaces:
        root_stub.set_names(init, container)
    for files, lacking in admitted.tmpfs:
        from woodfrog.resources import tmpfs

        tmpfs.restore(init, files, lacking, pages, base)
    permitted = credentials.permitted_set(init)
    if plan.sysctls:
        from woodfrog.resources import sysctls

        sysctls.restore(root, plan.sysctls, bounding=bounds.bounding, permitted=permitted)
    uncovered = _open_before_mounts(root, plan, room.start, bounds.bounding, permitted)

    ghosts: Ghosts | None = None
    if plan.mounts or plan.namespaces:
        from woodfrog.resources.mount_tree.ghosts import Ghosts

        ghosts = Ghosts(plan.deleted, room.start)

    detached: dict[int, int] = {}

    def mount(tree: MountTree, proc: Callable[[Base], int] | None, owned: bool) -> None:
        from woodfrog.resources.mount_tree import making as mount_making

        assert ghosts is not None
        detached.update(
            mount_making.restore(
                root,
                tree,
                bounding=bounds.bounding | (1 << CAP_SYS_ADMIN if owned else 0),
                permitted=permitted,
                pages=pages,
                base=base,
                namespace=made.give_bound,
                ghosts=ghosts,
                proc=proc,
                high=room.start,
            )
        )

    cgroups.make(plan.cgroups, bounds.cgroups)
    made = MadeNamespaces(root, mount, bounds.cgroups, undo)
    made.make(one for one in plan.namespaces.values() if one.name != "mnt")
    if plan.mounts:
        mount(plan.mounts, None, False)
        known_files.refuse_changed(
            init, plan.files_in_new_mounts, plan.growing_files, admitted.validation
        )
    mark(Stage.ROOT)

    # FILES
    made.make(one for one in plan.namespaces.values() if one.name == "mnt")
    silence.spread(lambda number: made.descriptor("net", number))
    missing = networking.set_up(root, permitted, made)
    making = Making(
        root,
        room,
        capabilities=bounds.bounding,
        permitted=permitted,
        tcp_close=bounds.tcp_close,
        undo=undo,
        new_network="network" in bounds.new_namespaces,
        namespaces=made,
        may_force_buffers=namespaces.is_ours(init, "user"),
        spare_pid=plan.spare_pid,
        uncovered=uncovered,
        ghosts=ghosts,
        detached=detached,
    )
    making.missing += missing
    forced: set[int] = set()
    inherit = partial(reading_pages.fill_pages, reader, root.pid)
    for number, queues, objects in plan.ipc():
        if not queues and not objects:
            continue
        from woodfrog.resources import posix_queues, sysv_ipc, sysv_memory

        with made.visited(root, "ipc", number):
            if plan.segments[number] and sysv_memory.leave_unattached(root.pid):
                forced.add(number)
            posix_queues.restore(root, queues)
            sysv_ipc.restore(root, objects, plan.shared, making.send, store, base, inherit)
    written, only_read = plan.written_by_mapping, plan.only_read_by_mapping
    making.make_shared_memory(plan.files_in_memory, written, only_read, store, base, inherit)
    making.make_deleted_files(plan.deleted.values(), plan.opened_deleted, written, store, base)
    records, moves = own_addresses.moved(plan.files_at_home, init, networking.addresses)
    making.missing += moves
    making.make_files([*records, *plan.files_elsewhere], plan.unheld, plan.within)
    mark(Stage.FILES)

    # TREE
    default = scheduling.collect(init)
    files_of_root = making.descriptors

    def bring_in(pid: int) -> Stub:
        from woodfrog.engine import outsiders

        return outsiders.make(init, pid, root, vdso, files_of_root, store)

    inheritance = None
    if not background.is_wanted and template is None:
        inheritance = Inheritance(reader, plan.processes, bounds.bounding, permitted)
    tree = Tree(plan, root, made, inheritance, bring_in)
    narrowing = root.program()
    credentials.narrow(narrowing, plan.all_credentials, credentials.bounding_set(root.pid))
    tree.build(narrowing)
    made.mount_late(plan.namespaces.values())
    if plan.mounts and plan.mounts.late:
        from woodfrog.resources.mount_tree import admitting as mount_admitting

        mount_admitting.refuse_outside(init, plan.mounts.late)
        mount(plan.mounts.late, None, False)
    late = LateFiles(root, tree, plan, making, made, undo)
    late.open_those_of_ended()
    has_sharers = plan.has_sharers
    bodies = {
        record.pid: Body(
            record,
            tree.stubs[record.pid],
            bounds.seccomp,
            plan.other_vdso,
            background.at_once(record),
            inheritance.of(record.pid) if inheritance else Inherited(),
            template.staged(record.pid) if template else (),
            made,
            waits_for_others=has_sharers,
            clocks_go_on=wishes.clock == "container",
            alike=template.alike if template else None,
        )
        for record in plan.processes
    }
    mark(Stage.TREE)

    # BODY
    def fill(bodies: Collection[Body]) -> None:
        if template:
            for body in bodies:
                template.fill(body.stub.pid, body.record.pid)
        else:
            reading_pages.fill(reader, [body.lacking for body in bodies])

    body_module.make(plan, bodies.values(), making, fill)
    making.seal()
    background.begin(bodies.values(), admitted.check.result)
    for number, segments in plan.segments.items():
        with made.visited(root, "ipc", number):
            bodies[1].remove_segments(segments)
            if number in forced:
                from woodfrog.resources import sysv_memory

                sysv_memory.remove_unattached(root.pid)
    maps = ids.maps_of(init)
    for body in bodies.values():
        making.missing += belongings.set_login(body, bounds.bounding, maps)
        body.enter_user_namespace(permitted)
        body.make_threads()
        belongings.restore_undo(body, plan)
    orphaned = kinship.orphaned_groups(plan.processes)
    for body in bodies.values():
        body.stop_again(orphaned, making.missing)
    for body in bodies.values():
        body.forget_stops(bodies)
    side = SideBySide()
    for body in bodies.values():
        body.restore_signals(side)
    side.finish()
    for body in bodies.values():
        body.make_timers()
    for body in bodies.values():
        body.leave_future()
    mark(Stage.BODY)

    # CONNECT
    for body in bodies.values():
        terminals.set_foreground(body.stub, plan, body.record)
    late.open_and_hand_out(bodies.values())
    tying.connect_files(plan, bodies)
    locked: set[object] = set()
    for body in bodies.values():
        belongings.own_files(body, plan)
        # Whoever closes a file loses its locks: they come last.
        belongings.separate_tables(body, making)
        belongings.lock_files(body, plan, locked, making)
        belongings.notices(body)
    mark(Stage.CONNECT)

    # LIMITS
    tasks = {
        thread.tid: task.pid
        for body in bodies.values()
        for thread, task in zip(body.record.threads, body.tasks, strict=True)
    }
    cgroups.restore(plan.cgroups, bounds.cgroups, tasks, maps)
    finishing.restore_limits(
        bodies.values(), bounds, default, making.missing, descriptors=most_descriptors
    )
    if rings := plan.files_of("io-uring", "polled-io-uring"):
        from woodfrog.engine import making_rings

        making_rings.restore(rings, bodies)
    tying.connect_files(plan, bodies, last=True)
    for body in bodies.values():
        finishing.restore_last(body)
    if plan.sysctls and plan.sysctls.pid:
        from woodfrog.resources import pid_settings

        making.missing += pid_settings.restore(init, plan.sysctls.pid)
    mark(Stage.LIMITS)

    # GO
    admitted.check.result()
    background.confirm()
    for body in bodies.values() if tracking else ():
        if tracking and not body.record.shares.memory:
            tracking.begin_in(body.stub, body.record.memory.mappings)
    releases = [Release(body, vdso) for body in bodies.values()]
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
    making.missing += networking.filter()
    silence.end()
    making.complete()
    cgroups.freeze(plan.cgroups, bounds.cgroups)
    finishing.let_all_go(releases)
    shortened.restore()
    mark(Stage.GO)
    for body in bodies.values():
        body.stub.close()
    marks["missing"] = making.missing
    return marks


def _open_before_mounts(
    root: Stub, plan: Plan, high: int, bounding: int, permitted: int
) -> dict[bytes, int]:
    """Open the directories that the image's mounts will hide, and lead to files of the image.

    By no right that the new container lacks.
    """
    wanted = {file.place[0] for file in plan.files_of("regular") if file.covered}
    if not wanted:
        return {}
    program = root.program()
    credentials.set_effective(program, bounding, permitted)
    opened = {}
    for path in wanted:
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        directory = syscalls.openat2(program, path, flags)
        opened[path] = syscalls.duplicate_above(program, directory, high)
        syscalls.close(program, directory)
    credentials.set_effective(program, permitted, permitted)
    root.run(program)
    return {path: program[directory] for path, directory in opened.items()}
