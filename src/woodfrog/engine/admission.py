"""ADMIT: read an image, check it, and see whether the new container may hold what is in it."""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import reduce
from itertools import chain, count
from operator import or_

import msgspec

from woodfrog.engine import kinship
from woodfrog.engine.pids import Pids
from woodfrog.errors import ImageError, UnsupportedResource, while_
from woodfrog.image.chain import Chain
from woodfrog.remote.vdso import Vdso
from woodfrog.resources import (
    cgroups,
    cpu,
    credentials,
    deleted_files,
    huge_pages,
    keyrings,
    layer,
    login,
    memory,
    memory_checks,
    memory_modes,
    nested,
    placed_mappings,
    posix_queues,
    scheduling,
    shared_memory,
    signals,
    sysctls,
    sysv_ipc,
    sysv_memory,
    threads,
    timers,
    tmpfs,
)
from woodfrog.resources.cgroups import Hierarchy
from woodfrog.resources.container import ContainerRecord
from woodfrog.resources.cpu import Cpu, CpuCheck
from woodfrog.resources.deleted_files import DeletedFile
from woodfrog.resources.files import KINDS, tcp_socket
from woodfrog.resources.files.base import ACCESS_MODE, FileRecord
from woodfrog.resources.files.bpf_map import BpfMap
from woodfrog.resources.files.deleted import OpenDeletedFile
from woodfrog.resources.files.namespace_file import NamespaceFile
from woodfrog.resources.files.packet_socket import PacketSocket
from woodfrog.resources.files.pty import PtyMaster
from woodfrog.resources.files.regular import RegularFile
from woodfrog.resources.files.terminal import Terminal
from woodfrog.resources.files.unix_socket import UnixSocketFile
from woodfrog.resources.keyrings import Keyring
from woodfrog.resources.known_files import KnownFile
from woodfrog.resources.layer import Layer
from woodfrog.resources.memory import PageRange
from woodfrog.resources.mount_tree import records as mount_records
from woodfrog.resources.mount_tree.records import MountTree
from woodfrog.resources.nested import (
    AnyNamespace,
    FilesWithin,
    IpcNamespace,
    Membership,
    NetworkNamespace,
)
from woodfrog.resources.network import records as network_records
from woodfrog.resources.network.records import Network
from woodfrog.resources.other_vdso import OtherVdso
from woodfrog.resources.packet_filters import legacy, nftables
from woodfrog.resources.packet_filters.legacy import LegacyTable
from woodfrog.resources.packet_filters.nftables import Nftables
from woodfrog.resources.posix_queues import PosixQueue
from woodfrog.resources.pre_dumped import PreDumped
from woodfrog.resources.process import Process, Zombie
from woodfrog.resources.shared_memory import SharedMemory
from woodfrog.resources.sysctls import Sysctls
from woodfrog.resources.sysv_ipc import AnyObject, MessageQueue, Semaphores
from woodfrog.resources.sysv_memory import Segment
from woodfrog.resources.tmpfs import Tmpfs

_CONTENTS = (
    SharedMemory
    | DeletedFile
    | AnyObject
    | AnyNamespace
    | FilesWithin
    | PosixQueue
    | Tmpfs
    | Layer
    | MountTree
    | Sysctls
    | Keyring
    | Network
    | Nftables
    | LegacyTable
    | Hierarchy
    | KnownFile
    | PreDumped
)
RECORDS = reduce(or_, KINDS, ContainerRecord | Process | Zombie | _CONTENTS)

# Open files that can be mapped, and are nowhere in a file system.
_WITH_MEMORY = (PacketSocket, BpfMap)
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


class Plan:
    """An admitted image, by kind of record."""

    def __init__(self, reader: Chain) -> None:
        self.processes: list[Process] = []
        self.zombies: list[Zombie] = []
        self.files: dict[int, FileRecord] = {}
        self.shared: dict[int, SharedMemory] = {}
        self.deleted: dict[int, DeletedFile] = {}
        self.has_terminal = False  # the new container
        self.namespaces: dict[int, AnyNamespace] = {}
        # The nested namespaces that files are made in, by the ids of the files.
        self.within: dict[int, Membership] = {}
        self.sysv: list[AnyObject] = []
        self.posix_queues: list[PosixQueue] = []
        self.tmpfs: list[Tmpfs] = []
        self.layer: Layer | None = None
        self.mounts: MountTree | None = None
        self.cgroups: list[Hierarchy] = []
        self.sysctls: Sysctls | None = None
        self.keyrings: dict[int, Keyring] = {}
        self.network: Network | None = None
        self.rules: Nftables | None = None
        self.tables: list[LegacyTable] = []
        self.known: list[KnownFile] = []
        self.other_vdso: OtherVdso | None = None
        containers: list[ContainerRecord] = []
        namespaces: list[AnyNamespace] = []
        for record in reader.records(RECORDS):
            match record:
                case Process():
                    self.processes.append(record)
                case Zombie():
                    self.zombies.append(record)
                case SharedMemory():
                    self.shared[record.id] = record
                case DeletedFile():
                    self.deleted[record.id] = record
                case Semaphores() | MessageQueue() | Segment():
                    self.sysv.append(record)
                case _ if isinstance(record, AnyNamespace):
                    namespaces.append(record)
                case FilesWithin():
                    self.within |= dict.fromkeys(record.files, record.namespaces)
                case PosixQueue():
                    self.posix_queues.append(record)
                case Layer() if self.layer is None:
                    self.layer = record
                case Layer():
                    raise ImageError("the image has changes of two root file systems")
                case Keyring():
                    self.keyrings[record.id] = record
                case Sysctls():
                    self.sysctls = record
                case Network() if self.network is None:
                    self.network = record
                case Network():
                    raise ImageError("the image has two networks")
                case LegacyTable():
                    self.tables.append(record)
                case Nftables() if self.rules is None:
                    self.rules = record
                case Nftables():
                    raise ImageError("the image has two rulesets")
                case Hierarchy():
                    self.cgroups.append(record)
                case MountTree() if self.mounts is None:
                    self.mounts = record
                case MountTree():
                    raise ImageError("the image has mounts of two containers")
                case Tmpfs():
                    self.tmpfs.append(record)
                case KnownFile():
                    self.known.append(record)
                case PreDumped():
                    raise ImageError(
                        "the image is a pre-dump: it has memory, and nothing else of a container",
                        hint="restore the checkpoint that was made after it",
                    )
                case ContainerRecord():
                    containers.append(record)
                case _:
                    self.files[record.id] = record
        if len(containers) != 1:
            raise ImageError("the image does not describe one container")
        self.container = containers[0]
        self.namespaces = nested.by_id(namespaces)
        self.page_bytes = reader.page_bytes
        self.store_bytes = reader.store_bytes
        self.pids = Pids([*self.processes, *self.zombies], self.namespaces.values())
        # By the ids of ipc namespaces; 0: the container's own.
        self.segments = {number: sysv_memory.by_id(objects) for number, _, objects in self.ipc()}

    def ipc(self) -> Iterator[tuple[int, list[PosixQueue], list[AnyObject]]]:
        """Yield what is in each ipc namespace, by its id; 0 is the container's own."""
        yield 0, self.posix_queues, self.sysv
        for one in self.namespaces.values():
            if isinstance(one, IpcNamespace):
                yield one.id, one.queues, list(one.objects)

    def segments_of(self, process: Process) -> Mapping[int, Segment]:
        """Return the System V shared memory of a process's ipc namespace, by ids."""
        return self.segments[process.namespaces.get("ipc", 0)]

    def all_segments(self) -> Iterator[Segment]:
        """Yield the System V shared memory of all ipc namespaces."""
        for segments in self.segments.values():
            yield from segments.values()

    @property
    def files_in_memory(self) -> list[SharedMemory]:
        """Return the shared memory that is not System V's."""
        segments = {segment.contents for segment in self.all_segments()}
        return [one for one in self.shared.values() if one.id not in segments]

    def terminal(self, number: int) -> bytes:
        """Return the path of a terminal by its number; empty if it has become another one."""
        for file in self.files.values():
            if isinstance(file, PtyMaster) and file.index == number:
                return file.terminal
            if isinstance(file, Terminal) and file.index == number:
                return b"" if self.has_terminal else file.path
        raise ImageError(f"the image lacks the terminal {number}, which a session has")

    def holders(self, file: int) -> set[int]:
        """Return the ids of the processes that have a file open."""
        return {one.pid for one in self.processes if any(d.file == file for d in one.descriptors)}

    @property
    def files_at_home(self) -> list[FileRecord]:
        """Return the files that are made in the container's own network."""
        return [one for one in self.files.values() if "net" not in self.within.get(one.id, {})]

    @property
    def files_elsewhere(self) -> list[FileRecord]:
        """Return those that are made in nested networks."""
        return [one for one in self.files.values() if "net" in self.within.get(one.id, {})]

    @property
    def opened_deleted(self) -> dict[int, list[OpenDeletedFile]]:
        """Return the open files of each deleted file, by its id."""
        found: dict[int, list[OpenDeletedFile]] = defaultdict(list)
        for file in self.files.values():
            if isinstance(file, OpenDeletedFile):
                found[file.deleted].append(file)
        return found

    @property
    def has_sharers(self) -> bool:
        """Tell whether processes share something since clone(2)."""
        return any(any(one.shares.owners) for one in self.processes)

    @property
    def written_by_mapping(self) -> set[int]:
        """Return the ids of what a shared mapping may write to."""
        mappings = (mapping for process in self.processes for mapping in process.memory.mappings)
        return {mapping.object for mapping in mappings if mapping.writable}

    @property
    def own_files(self) -> list[KnownFile]:
        """Return the known files that the new container must have: the image lacks them."""
        brought = {b"/" + entry.path for entry in self.layer.entries} if self.layer else set()
        for one in self.tmpfs:
            place = os.fsencode(one.destination.rstrip("/"))
            brought |= {place + b"/" + entry.path for entry in one.entries}
        return [
            file
            for file in self.known
            if file.path not in brought and not (self.mounts and self.mounts.shows(file.path))
        ]

    @property
    def files_in_new_mounts(self) -> list[KnownFile]:
        """Return the known files that the new container has once the image's mounts are made."""
        mounts = self.mounts
        if mounts is None:
            return []
        return [
            file
            for file in self.known
            if mounts.shows(file.path) and not mounts.is_brought(file.path)
        ]

    @property
    def all_credentials(self) -> Iterator[credentials.Credentials]:
        """Return those of all threads, also of first ones that have ended."""
        for process in self.processes:
            yield from (thread.credentials for thread in process.threads)
            if process.ended_thread:
                yield process.ended_thread.credentials

    @property
    def unheld(self) -> set[int]:
        """Return the ids of the files that no process has: they are in flight."""
        held = {one.file for process in self.processes for one in process.descriptors}
        return self.files.keys() - held

    @property
    def growing_files(self) -> set[bytes]:
        """Return the paths of files that the container writes to."""
        growing = {
            file.path
            for file in self.files.values()
            if isinstance(file, RegularFile) and file.flags & ACCESS_MODE != os.O_RDONLY
        }
        for process in self.processes:
            growing |= {one.path for one in process.memory.mappings if one.writable}
        return growing

    @property
    def pages(self) -> Iterator[PageRange]:
        """Go through the pages of all processes."""
        return chain.from_iterable(process.memory.pages for process in self.processes)

    @property
    def spare_pid(self) -> int:
        """Return an id that no process or thread has."""
        used = {thread.tid for one in self.processes for thread in one.threads}
        used |= {one.pid for one in self.processes} | {one.pid for one in self.zombies}
        return next(number for number in count(2) if number not in used)

    @property
    def highest_descriptor(self) -> int:
        return max(
            (d.number for p in self.processes for table in p.tables for d in table), default=2
        )

    def used_memory(self) -> list[tuple[int, int]]:
        """Return the addresses that any process uses, the vDSO included."""
        used = [(m.start, m.end) for p in self.processes for m in p.memory.mappings]
        # The vDSO and its data pages: a generous span around where it was.
        used += [(p.memory.vdso, p.memory.vdso + 0x40000) for p in self.processes if p.memory.vdso]
        return used


def admit(plan: Plan, bounds: Bounds, vdso: Vdso, cpu_check: CpuCheck) -> None:
    """Check an image against itself, this machine and the new container; nothing is made yet."""
    plan.has_terminal = bounds.terminal
    _check_tree(plan)
    for process in plan.processes:
        _check_process(process, plan, bounds)
    nested.check_owners(plan.namespaces)
    nested.check(plan.namespaces.values(), plan.shared, plan.page_bytes)
    nested.check_made_for_children(process.namespaces for process in plan.processes)
    for shared in plan.shared.values():
        shared_memory.check(shared, plan.page_bytes)
    if not plan.deleted.keys().isdisjoint(plan.shared):
        raise ImageError("shared memory and a deleted file of the image have the same id")
    for deleted in plan.deleted.values():
        deleted_files.check(deleted, plan.page_bytes)
    sysv_ipc.check(plan.sysv, plan.shared)
    huge_pages.refuse_too_many(
        plan.shared.values(), plan.all_segments(), (one.memory for one in plan.processes)
    )
    posix_queues.check(plan.posix_queues)
    if plan.layer:
        layer.check(plan.layer, plan.page_bytes)
    if plan.sysctls:
        sysctls.check(plan.sysctls)
    keyrings.check(plan.keyrings)
    if not {one.keyring for one in plan.processes} <= {keyrings.FIRST, *plan.keyrings}:
        raise ImageError("a process in the image has a keyring that the image lacks")
    if plan.network:
        network_records.check(plan.network)
    networks = {0: plan.network} if plan.network else {}
    for number, namespace in plan.namespaces.items():
        if isinstance(namespace, NetworkNamespace) and namespace.network:
            networks[number] = namespace.network
    network_records.check_pairs(networks)
    if plan.rules:
        nftables.check(plan.rules)
    legacy.check(plan.tables)
    cgroups.check(plan.cgroups)
    cgroups.refuse_wider(plan.cgroups, bounds.cgroups, writable=bounds.may_make_cgroups)
    if plan.mounts:
        mount_records.check(plan.mounts, plan.page_bytes)
    for one in plan.tmpfs:
        tmpfs.check(one, plan.page_bytes)
        if one.destination not in bounds.tmpfs and len(one.entries) > 1:
            raise UnsupportedResource(
                f"the image has files of a tmpfs at {one.destination},"
                " which the new container does not have",
                hint="mount a tmpfs there in the bundle's config.json",
            )
    _check_files(plan, bounds)
    if not bounds.terminal and any(
        isinstance(file, Terminal) and file.own for file in plan.files.values()
    ):
        raise UnsupportedResource(
            "the checkpointed container had a terminal, the new one has none",
            hint='set "terminal": true in the bundle\'s config.json',
        )
    used = reduce(or_, (threads.components(t.xstate) for p in plan.processes for t in p.threads), 0)
    cpu.check(plan.container.cpu)
    cpu.refuse_lesser(plan.container.cpu, Cpu.here(), used, cpu_check)
    if plan.container.vdso != vdso.image:
        plan.other_vdso = OtherVdso(plan.container.vdso, vdso)
        for process in plan.processes:
            plan.other_vdso.refuse(process)


def _check_rights(file: UnixSocketFile, plan: Plan) -> None:
    """Check that the files in flight in a queue can be sent."""
    for one in file.rights:
        carried = [plan.files.get(number) for number in one.files]
        if not 0 <= one.message < len(file.queue) or len(carried) > 253:
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
            if isinstance(file, NamespaceFile) and file.namespace:
                opened = {file.name: file.namespace}
                nested.check_membership(f"file {file.id}", opened, plan.namespaces)
                if file.name in ("pid", "time"):
                    raise ImageError("the image has a file of a namespace that isn't made yet")
            within = plan.within.get(file.id, {})
            nested.check_membership(f"file {file.id}", within, plan.namespaces)
            if not within.keys() <= {"ipc", "mnt", "net"}:
                raise ImageError("a file of the image is in an impossible namespace")
            if isinstance(file, UnixSocketFile):
                _check_rights(file, plan)
            if file.late:
                file.refuse_holders(plan.holders(file.id), bounds.bounding)
    placed_mappings.refuse_forbidden(plan.files.values(), bounds.seccomp, bounds.bounding)
    tcp_socket.check_backlogs(plan.files.values())
    outside = tcp_socket.count_outside(
        plan.files.values(), new_network="network" in bounds.new_namespaces
    )
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
    if ended := process.ended_thread:
        threads.check_ended(ended)
        credentials.refuse_wider(who, ended.credentials, bounds.bounding)
    if not process.threads or (process.threads[0].tid == process.pid) == (ended is not None):
        raise ImageError(f"{who} has no first thread, or two")
    memory_checks.refuse_wider(who, process.memory, bounds.rlimits, bounds.bounding)
    if process.stopped_by not in (0, *signals.STOPPING):
        raise ImageError(f"{who} was stopped by an impossible signal, {process.stopped_by}")
    timers.refuse_wider(who, process.posix_timers, bounds.bounding, len(process.threads))
    login.check(process.login)
    scheduling.refuse_nicer(who, process.session_nice, bounds.bounding)
    for thread in process.threads:
        threads.check(thread)
        nested.check_membership(who, thread.namespaces, plan.namespaces)
        # Who makes a user namespace has all capabilities in it, and none outside.
        if "user" not in process.namespaces:
            credentials.refuse_wider(who, thread.credentials, bounds.bounding)
        scheduling.refuse_wider(who, thread.scheduling, bounds.bounding)
        if not signals.check_pending(thread.pending):
            raise ImageError(f"{who} has impossible queued signals")
    if not signals.check_pending(process.pending):
        raise ImageError(f"{who} has impossible queued signals")
    nameless = {process.memory.executable_object, process.directory_deleted, process.root_deleted}
    for mapping in process.memory.mappings:
        if mapping.source is memory.Source.SHARED:
            nameless.add(mapping.object)
        if mapping.source is memory.Source.SYSV:
            sysv_memory.check_mapping(mapping, plan.segments_of(process))
        if mapping.source is memory.Source.OPENED:
            shown = plan.files.get(mapping.object)
            if not mapping.shared or not isinstance(shown, _WITH_MEMORY):
                raise ImageError(f"{who} maps a file that has no memory")
    placed_mappings.check(process.memory, plan.files)
    if not nameless <= {0, *plan.shared, *plan.deleted}:
        raise ImageError(f"{who} has shared memory or deleted files that the image lacks")
    shares = process.shares
    if (shares.descriptors and process.descriptors) or (
        shares.memory and process.memory != memory.NONE
    ):
        raise ImageError(f"{who} has something of its own and of another")
    if shares.actions and not shares.memory:
        raise ImageError(f"{who} shares signal actions, but no memory")
    for table in process.tables:
        numbers = {descriptor.number for descriptor in table}
        if len(numbers) != len(table) or any(not 0 <= one < _MOST_DESCRIPTORS for one in numbers):
            raise ImageError(f"{who} has impossible descriptors")
        if any(descriptor.file not in plan.files for descriptor in table):
            raise ImageError(f"{who} has descriptors of files that the image lacks")
    numbers = {descriptor.number for descriptor in process.descriptors}
    used = {lock.descriptor for lock in process.locks}
    used |= {one.descriptor for one in process.file_signals}
    if not used <= numbers:
        raise ImageError(f"{who} has a lock or an owner of a file that it hasn't open")
