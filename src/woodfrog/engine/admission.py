"""ADMIT: read an image, check it, and see whether the new container may hold what is in it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING

import msgspec

from woodfrog.engine import kinship
from woodfrog.engine.plan import Plan
from woodfrog.errors import ImageError, UnsupportedResource, while_
from woodfrog.kernel.capability import CAP_SYS_CHROOT
from woodfrog.remote.vdso import Vdso
from woodfrog.resources import (
    cgroups,
    cpu,
    credentials,
    huge_pages,
    keyrings,
    limits,
    login,
    membership,
    memory,
    memory_checks,
    memory_modes,
    placed_mappings,
    scheduling,
    semaphore_undo,
    signals,
    threads,
    timers,
)
from woodfrog.resources.cpu import Cpu, CpuCheck
from woodfrog.resources.process import Process, Zombie
from woodfrog.resources.threads import Thread

if TYPE_CHECKING:
    from woodfrog.resources.files.tcp_socket import TcpSocket
    from woodfrog.resources.files.unix_socket import UnixSocketFile

_HIGHEST_PID = 1 << 22
_MOST_DESCRIPTORS = 1 << 20


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """What the new container's own config allows; nothing restored is wider."""

    bounding: int
    no_new_privs: bool
    seccomp: bytes | None  # the filter that the config's profile is compiled to
    rlimits: Mapping[str, tuple[int, int]]
    oom_score_adj: int | None
    spec_hostname: str
    terminal: bool
    cgroups: dict[str, str]
    may_make_cgroups: bool
    tmpfs: tuple[str, ...]
    new_namespaces: frozenset[str]
    tcp_established: bool = False  # TCP connections to outside are taken over
    tcp_close: bool = False  # they are reset
    tcp_listen_only: bool = False  # ... and so are those that nobody has accepted


def admit(plan: Plan, bounds: Bounds, vdso: Vdso, cpu_check: CpuCheck) -> None:
    """Check an image against itself, this machine and the new container; nothing is made yet.

    Of a template's clones, what was found for one holds for the next of the same bounds.
    """
    question = msgspec.structs.replace(bounds, cgroups={}), cpu_check
    if plan.admitted != question:
        plan.admitted = None
        _admit(plan, bounds, vdso, cpu_check)
        plan.admitted = question
    cgroups.refuse_wider(plan.cgroups, bounds.cgroups, writable=bounds.may_make_cgroups)
    memory_checks.refuse_too_many({one.pid: one.memory for one in plan.processes})
    huge_pages.refuse_too_many(
        plan.shared.values(), plan.all_segments(), (one.memory for one in plan.processes)
    )


def _admit(plan: Plan, bounds: Bounds, vdso: Vdso, cpu_check: CpuCheck) -> None:
    """Check what neither another clone nor time can change."""
    plan.has_terminal = bounds.terminal
    _check_tree(plan)
    for process in plan.processes:
        _check_process(process, plan, bounds)
    _check_namespaces(plan)
    _check_contents(plan, bounds)
    keyrings.check(plan.keyrings)
    keyrings.refuse_wider(plan.keyrings, bounds.bounding, bounds.seccomp)
    if not {one.keyring for one in plan.processes} <= {keyrings.FIRST, *plan.keyrings}:
        raise ImageError("a process in the image has a keyring that the image lacks")
    _check_network(plan)
    cgroups.check(plan.cgroups)
    if plan.mounts:
        from woodfrog.resources.mount_tree import records as mount_records

        kinds = {number: one.name for number, one in plan.namespaces.items()}
        mount_records.check(
            plan.mounts, plan.page_bytes, namespaces=kinds, deleted=plan.without_name
        )
    _check_files(plan, bounds)
    if not bounds.terminal and any(file.own for file in plan.files_of("terminal")):
        raise UnsupportedResource(
            "the checkpointed container had a terminal, the new one has none",
            hint='set "terminal": true in the bundle\'s config.json',
        )
    used = reduce(or_, (threads.components(t.xstate) for p in plan.processes for t in p.threads), 0)
    cpu.check(plan.container.cpu)
    cpu.refuse_lesser(plan.container.cpu, Cpu.here(), used, cpu_check)
    if plan.container.vdso != vdso.image:
        from woodfrog.resources.other_vdso import OtherVdso

        plan.other_vdso = OtherVdso(plan.container.vdso, vdso)
        for process in plan.processes:
            plan.other_vdso.refuse(process)


def _check_namespaces(plan: Plan) -> None:
    membership.check_made_for_children(process.namespaces for process in plan.processes)
    if not plan.namespaces:
        return
    from woodfrog.resources import nested

    nested.check_owners(plan.namespaces)
    nested.check(plan.namespaces.values(), plan.shared, plan.page_bytes, deleted=plan.without_name)


def _check_contents(plan: Plan, bounds: Bounds) -> None:
    """Check what the container's own namespaces and file systems have in them."""
    if plan.shared:
        from woodfrog.resources import shared_memory

        for shared in plan.shared.values():
            shared_memory.check(shared, plan.store_bytes)
    if not plan.deleted.keys().isdisjoint(plan.shared):
        raise ImageError("shared memory and a deleted file of the image have the same id")
    if plan.deleted:
        from woodfrog.resources import deleted_files

        for deleted in plan.deleted.values():
            deleted_files.check(deleted, plan.page_bytes)
            where = {"mnt": deleted.mounts} if deleted.mounts else {}
            membership.check_membership("a deleted file", where, plan.namespaces)
    if plan.sysv:
        from woodfrog.resources import sysv_ipc

        sysv_ipc.check(plan.sysv, plan.shared)
    if plan.posix_queues:
        from woodfrog.resources import posix_queues

        posix_queues.check(plan.posix_queues)
    if plan.layer:
        from woodfrog.resources import layer

        layer.check(plan.layer, plan.page_bytes)
    if plan.sysctls:
        from woodfrog.resources import sysctls

        sysctls.check(plan.sysctls)
    for one in plan.tmpfs:
        from woodfrog.resources import tmpfs

        tmpfs.check(one, plan.page_bytes)
        if one.destination not in bounds.tmpfs and len(one.entries) > 1:
            raise UnsupportedResource(
                f"the image has files of a tmpfs at {one.destination},"
                " which the new container does not have",
                hint="mount a tmpfs there in the bundle's config.json",
            )


def _check_network(plan: Plan) -> None:
    """Check what programs had set up in the container's networks."""
    networks = {0: plan.network} if plan.network else {}
    for namespace in plan.networks_made:
        if namespace.network:
            networks[namespace.id] = namespace.network
    if networks:
        from woodfrog.resources.network import records

        if plan.network:
            records.check(plan.network)
        records.check_pairs(networks)
    if plan.rules:
        from woodfrog.resources.packet_filters import nftables

        nftables.check(plan.rules)
    if plan.tracked:
        from woodfrog.resources.packet_filters import tracked

        tracked.check(plan.tracked)
    if plan.tables:
        from woodfrog.resources.packet_filters import legacy

        legacy.check(plan.tables)


def _check_rights(file: UnixSocketFile, plan: Plan) -> None:
    """Check that the files in flight in a queue can be sent."""
    queues = [(file.queue, one) for one in file.rights]
    queues += [(client.queue, one) for client in file.arrived for one in client.rights]
    for queue, one in queues:
        carried = [plan.files.get(number) for number in one.files]
        if not 0 <= one.message < len(queue) or len(carried) > 253:
            raise ImageError("files are in flight with no message")
        if any(other is None or other.late for other in carried):
            raise ImageError("a file is in flight that the image lacks, or that comes too late")


def _check_tree(plan: Plan) -> None:
    tids = [t.tid for p in plan.processes for t in p.threads] + [z.pid for z in plan.zombies]
    tids += [one.pid for one in plan.processes if one.ended_thread]
    if len(set(tids)) != len(tids) or any(not 0 < tid < _HIGHEST_PID for tid in tids):
        raise ImageError("the image has impossible process ids")
    if not all(signals.can_end_by(zombie.status) for zombie in plan.zombies):
        raise ImageError("the image has a zombie that ended in an impossible way")
    plan.pids.check()
    known = {process.pid for process in plan.processes}
    if 1 not in known:
        raise ImageError("the image has no first process")
    members: list[Process | Zombie] = [*plan.processes, *plan.zombies]
    unmade = {one.pid for one in members if one.pid != 1} - kinship.makers(members).keys()
    if unmade:
        raise ImageError(f"processes {sorted(unmade)} share what nobody has who could make them")
    for one in members:
        if not signals.can_tell_end(one.exit_signal):
            raise ImageError(f"the end of process {one.pid} is told by an impossible signal")
        if one.parent not in known and one.parent != 0:
            raise ImageError(f"process {one.pid} has an unknown parent, {one.parent}")
        if one.parent == one.pid:
            raise ImageError(f"process {one.pid} is its own parent")


def _check_files(plan: Plan, bounds: Bounds) -> None:
    for file in plan.files.values():
        with while_(f"looking at file {file.id} of the image ({type(file).__name__})"):
            file.refuse_wider(bounds.bounding)
            within = plan.within.get(file.id, {})
            membership.check_membership(f"file {file.id}", within, plan.namespaces)
            if not within.keys() <= {"ipc", "mnt", "net"}:
                raise ImageError("a file of the image is in an impossible namespace")
            if file.late:
                file.refuse_holders(plan.holders(file.id), bounds.bounding)
    for opened in plan.files_of("namespace-file", "late-namespace-file"):
        if opened.namespace:
            which = {opened.name: opened.namespace}
            membership.check_membership(f"file {opened.id}", which, plan.namespaces)
            if not opened.late and opened.name in ("pid", "time"):
                raise ImageError("the image has a file of a namespace that isn't made yet")
    for unix in plan.files_of("unix-socket"):
        _check_rights(unix, plan)
    rings = plan.files_of("io-uring", "polled-io-uring")
    placed_mappings.refuse_forbidden(rings, bounds.seccomp, bounds.bounding)
    if connections := plan.files_of("tcp-socket"):
        _check_connections(connections, bounds)


def _check_connections(sockets: list[TcpSocket], bounds: Bounds) -> None:
    from woodfrog.resources.files import tcp_socket

    tcp_socket.check_backlogs(sockets)
    outside = tcp_socket.count_outside(sockets, new_network="network" in bounds.new_namespaces)
    if outside and not (bounds.tcp_established or bounds.tcp_close):
        raise UnsupportedResource(
            f"the image has {outside} TCP connections to outside",
            hint="--tcp-established takes them over, if the address is the same;"
            " --tcp-close resets them",
        )


def _check_process(process: Process, plan: Plan, bounds: Bounds) -> None:
    who = f"process {process.pid} of the image"
    memory_checks.check(process.memory, plan.store_bytes)
    memory_modes.check(process.modes)
    limits.check(who, process.limits)
    if ended := process.ended_thread:
        threads.check_ended(ended)
        credentials.refuse_wider(who, ended.credentials, bounds.bounding)
    if not process.threads or (process.threads[0].tid == process.pid) == (ended is not None):
        raise ImageError(f"{who} has no first thread, or two")
    memory_checks.refuse_wider(who, process.memory, bounds.rlimits, bounds.bounding)
    _refuse_other_root(who, process, bounds)
    if process.stopped_by not in (0, *signals.STOPPING):
        raise ImageError(f"{who} was stopped by an impossible signal, {process.stopped_by}")
    timers.refuse_wider(who, process.posix_timers, bounds.bounding, len(process.threads))
    login.check(process.login)
    scheduling.refuse_nicer(who, process.session_nice, bounds.bounding)
    _check_threads(who, process, plan, bounds)
    if not signals.check_pending(process.pending):
        raise ImageError(f"{who} has impossible queued signals")
    _check_mapped(who, process, plan)
    members: list[Process | Thread] = [process, *process.threads]
    for member in members:
        if member.undo:
            semaphore_undo.check(who, member.undo, plan.semaphores_of(member))
    _check_shares(who, process)
    _check_descriptors(who, process, plan)


def _refuse_other_root(who: str, process: Process, bounds: Bounds) -> None:
    has_other_root = process.root != b"/" or process.root_deleted
    # Who made a user namespace may do that in it.
    if (
        has_other_root
        and "user" not in process.namespaces
        and not (bounds.bounding >> CAP_SYS_CHROOT & 1)
    ):
        raise UnsupportedResource(
            f"{who} has a root directory of its own (chroot), which the new container may not have",
            hint="add CAP_SYS_CHROOT to process.capabilities of config.json",
        )


def _check_threads(who: str, process: Process, plan: Plan, bounds: Bounds) -> None:
    for thread in process.threads:
        threads.check(thread)
        membership.check_membership(who, thread.namespaces, plan.namespaces)
        # Who makes a user namespace has all capabilities in it, and none outside.
        if "user" not in process.namespaces:
            credentials.refuse_wider(who, thread.credentials, bounds.bounding)
        scheduling.refuse_wider(who, thread.scheduling, bounds.bounding)
        if not signals.check_pending(thread.pending):
            raise ImageError(f"{who} has impossible queued signals")


def _check_mapped(who: str, process: Process, plan: Plan) -> None:
    """Check that the image has what a process has mapped, runs, and stands in."""
    nameless = {process.memory.executable_object, process.directory_deleted, process.root_deleted}
    for mapping in process.memory.mappings:
        if mapping.source is memory.Source.SHARED:
            nameless.add(mapping.object)
        if mapping.source is memory.Source.SYSV:
            from woodfrog.resources import sysv_memory

            sysv_memory.check_mapping(mapping, plan.segments_of(process))
        if mapping.source is memory.Source.OPENED:
            shown = plan.files.get(mapping.object)
            if not mapping.shared or shown is None or not shown.has_memory:
                raise ImageError(f"{who} maps a file that has no memory")
    placed_mappings.check(process.memory, plan.files)
    if not nameless <= {0, *plan.shared, *plan.deleted}:
        raise ImageError(f"{who} has shared memory or deleted files that the image lacks")


def _check_shares(who: str, process: Process) -> None:
    shares = process.shares
    if (
        (shares.descriptors and process.descriptors)
        or (shares.memory and process.memory != memory.NONE)
        or (shares.undo and process.undo)
    ):
        raise ImageError(f"{who} has something of its own and of another")
    if shares.actions and not shares.memory:
        raise ImageError(f"{who} shares signal actions, but no memory")


def _check_descriptors(who: str, process: Process, plan: Plan) -> None:
    for table in process.tables:
        numbers = {descriptor.number for descriptor in table}
        if len(numbers) != len(table) or any(not 0 <= one < _MOST_DESCRIPTORS for one in numbers):
            raise ImageError(f"{who} has impossible descriptors")
        if any(descriptor.file not in plan.files for descriptor in table):
            raise ImageError(f"{who} has descriptors of files that the image lacks")
    numbers = {descriptor.number for descriptor in process.descriptors}
    used = {lock.descriptor for lock in process.locks}
    used |= {one.descriptor for one in process.file_signals}
    used |= {number for one in process.queue_notices for number in one.descriptors}
    if not all(one.is_possible for one in process.queue_notices):
        raise ImageError(f"{who} waits for impossible notifications")
    if not used <= numbers:
        raise ImageError(f"{who} has a lock or an owner of a file that it hasn't open")
