"""An image that is to be restored, by kinds of records."""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import reduce
from itertools import chain, count
from operator import or_

from woodfrog.engine.pids import Pids
from woodfrog.errors import ImageError
from woodfrog.image.chain import Chain
from woodfrog.resources import (
    credentials,
    nested,
    sysv_memory,
)
from woodfrog.resources.cgroups import Hierarchy
from woodfrog.resources.container import ContainerRecord
from woodfrog.resources.deleted_files import DeletedFile
from woodfrog.resources.files import KINDS
from woodfrog.resources.files.base import ACCESS_MODE, FileRecord
from woodfrog.resources.files.deleted import OpenDeletedFile
from woodfrog.resources.files.pty import PtyMaster
from woodfrog.resources.files.regular import RegularFile
from woodfrog.resources.files.terminal import Terminal
from woodfrog.resources.keyrings import Keyring
from woodfrog.resources.known_files import KnownFile
from woodfrog.resources.layer import Layer
from woodfrog.resources.memory import PageRange
from woodfrog.resources.mount_tree.records import MountTree
from woodfrog.resources.nested import (
    AnyNamespace,
    FilesWithin,
    IpcNamespace,
    Membership,
)
from woodfrog.resources.network.records import Network
from woodfrog.resources.other_vdso import OtherVdso
from woodfrog.resources.packet_filters.legacy import LegacyTable
from woodfrog.resources.packet_filters.nftables import Nftables
from woodfrog.resources.posix_queues import PosixQueue
from woodfrog.resources.pre_dumped import PreDumped
from woodfrog.resources.process import Process, Zombie
from woodfrog.resources.shared_memory import SharedMemory
from woodfrog.resources.sysctls import Sysctls
from woodfrog.resources.sysv_ipc import AnyObject, MessageQueue, Semaphores, values_of
from woodfrog.resources.sysv_memory import Segment
from woodfrog.resources.threads import Thread
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


class Plan:
    """The records of an image; they are sound once it is admitted."""

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

    def semaphores_of(self, member: Process | Thread) -> dict[int, list[int]]:
        """Return the values of the semaphores in an ipc namespace, by the ids of their sets."""
        number = member.namespaces.get("ipc", 0)
        return next((values_of(objects) for one, _, objects in self.ipc() if one == number), {})

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
    def networks(self) -> dict[int, int]:
        """Return the ids of the nested networks that files are made in, by the ids of the files."""
        return {file: where["net"] for file, where in self.within.items() if "net" in where}

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
