"""An image that is to be restored, by kinds of records."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import chain, count, pairwise
from typing import TYPE_CHECKING, Any

import msgspec

from woodfrog.engine.pids import Pids
from woodfrog.errors import ImageError
from woodfrog.image.record import tag_of
from woodfrog.resources import catalogue
from woodfrog.resources.files.open_file import ACCESS_MODE

if TYPE_CHECKING:
    from woodfrog.image.chain import Chain
    from woodfrog.resources.cgroups import Hierarchy
    from woodfrog.resources.container import ContainerRecord
    from woodfrog.resources.credentials import Credentials
    from woodfrog.resources.deleted_files import DeletedFile
    from woodfrog.resources.files.base import FileRecord
    from woodfrog.resources.files.deleted import OpenDeletedFile
    from woodfrog.resources.keyrings import Keyring
    from woodfrog.resources.known_files import KnownFile
    from woodfrog.resources.layer import Layer
    from woodfrog.resources.membership import Membership
    from woodfrog.resources.memory import Mapping as MemoryMapping
    from woodfrog.resources.memory import PageRange
    from woodfrog.resources.mount_tree.records import MountTree
    from woodfrog.resources.nested import AnyNamespace, NetworkNamespace
    from woodfrog.resources.network.records import Network
    from woodfrog.resources.other_vdso import OtherVdso
    from woodfrog.resources.packet_filters.legacy import LegacyTable
    from woodfrog.resources.packet_filters.nftables import Nftables
    from woodfrog.resources.packet_filters.tracked import Tracked
    from woodfrog.resources.posix_queues import PosixQueue
    from woodfrog.resources.process import Process, Zombie
    from woodfrog.resources.shared_memory import SharedMemory
    from woodfrog.resources.sysctls import Sysctls
    from woodfrog.resources.sysv_ipc import AnyObject
    from woodfrog.resources.sysv_memory import Segment
    from woodfrog.resources.threads import Thread
    from woodfrog.resources.tmpfs import Tmpfs

# Of which an image has one at most, and what it has otherwise.
_SINGLE = {
    "layer": "changes of two root file systems",
    "network": "two networks",
    "nftables": "two rulesets",
    "conntrack": "what two networks had tracked",
    "mount-tree": "mounts of two containers",
}
_NOTHING = b"\x90"
# No stub has descriptors of its own below the first; and so many besides the files it makes.
_LOWEST_OF_STUBS, _FOR_STUBS = 16, 256


def prepare() -> None:
    """Have msgspec look at all classes of records now, which it else does as it meets them."""
    classes: Any = catalogue.all_classes()
    msgspec.msgpack.decode(_NOTHING, type=list[classes])


class Plan:
    """The records of an image; they are sound once it is admitted."""

    container: ContainerRecord

    def __init__(self, reader: Chain) -> None:
        self.processes: list[Process] = []
        self.zombies: list[Zombie] = []
        self.files: dict[int, FileRecord] = {}
        self.shared: dict[int, SharedMemory] = {}
        self.deleted: dict[int, DeletedFile] = {}
        self.has_terminal = False  # the new container
        self.admitted: object = None  # by what container's bounds
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
        self.tracked: Tracked | None = None
        self.tables: list[LegacyTable] = []
        self.known: list[KnownFile] = []
        self.other_vdso: OtherVdso | None = None
        tags = reader.tags()
        _check(tags)
        namespaces: list[AnyNamespace] = []
        for tag, record in zip(tags, reader.records(catalogue.union(tags)), strict=True):
            if tag.endswith("-namespace"):
                namespaces.append(record)
            else:
                self._add(tag, record)
        self.namespaces = _by_id(namespaces)
        self.page_bytes = reader.page_bytes
        self.store_bytes = reader.store_bytes
        self.pids = Pids([*self.processes, *self.zombies], self.namespaces.values())
        # By the ids of ipc namespaces; 0: the container's own.
        self.segments = {number: _segments(objects) for number, _, objects in self.ipc()}

    def _add(self, tag: str, record: Any) -> None:
        """Put a record where others look for its kind."""
        match tag:
            case "process":
                self.processes.append(record)
            case "zombie":
                self.zombies.append(record)
            case "shared-memory":
                self.shared[record.id] = record
            case "deleted-file":
                self.deleted[record.id] = record
            case "sysv-semaphores" | "sysv-message-queue" | "sysv-shared-memory":
                self.sysv.append(record)
            case "files-within":
                self.within |= dict.fromkeys(record.files, record.namespaces)
            case "posix-message-queue":
                self.posix_queues.append(record)
            case "layer":
                self.layer = record
            case "keyring":
                self.keyrings[record.id] = record
            case "sysctls":
                self.sysctls = record
            case "network":
                self.network = record
            case "iptables":
                self.tables.append(record)
            case "nftables":
                self.rules = record
            case "conntrack":
                self.tracked = record
            case "cgroups":
                self.cgroups.append(record)
            case "mount-tree":
                self.mounts = record
            case "tmpfs":
                self.tmpfs.append(record)
            case "known-file":
                self.known.append(record)
            case "container":
                self.container = record
            case _:
                self.files[record.id] = record

    def files_of(self, *tags: str) -> list[Any]:
        """Return the open files of some kinds; who asks for none of a kind need not import it."""
        return [file for file in self.files.values() if tag_of(file) in tags]

    def ipc(self) -> Iterator[tuple[int, list[PosixQueue], list[AnyObject]]]:
        """Yield what is in each ipc namespace, by its id; 0 is the container's own."""
        yield 0, self.posix_queues, self.sysv
        if not self.namespaces:
            return
        from woodfrog.resources.nested import IpcNamespace

        for one in self.namespaces.values():
            if isinstance(one, IpcNamespace):
                yield one.id, one.queues, list(one.objects)

    @property
    def networks_made(self) -> list[NetworkNamespace]:
        """Return the nested network namespaces."""
        if not self.namespaces:
            return []
        from woodfrog.resources.nested import NetworkNamespace

        return [one for one in self.namespaces.values() if isinstance(one, NetworkNamespace)]

    def segments_of(self, process: Process) -> Mapping[int, Segment]:
        """Return the System V shared memory of a process's ipc namespace, by ids."""
        return self.segments[process.namespaces.get("ipc", 0)]

    def semaphores_of(self, member: Process | Thread) -> dict[int, list[int]]:
        """Return the values of the semaphores in an ipc namespace, by the ids of their sets."""
        number = member.namespaces.get("ipc", 0)
        from woodfrog.resources.sysv_ipc import values_of

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
        for file in self.files_of("pty-master"):
            if file.index == number:
                return bytes(file.terminal)
        for file in self.files_of("terminal"):
            if file.index == number:
                return b"" if self.has_terminal else bytes(file.path)
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
    def without_name(self) -> set[int]:
        """Return the ids of the deleted files that have no other name, and had one."""
        return {one.id for one in self.deleted.values() if not one.link and not one.unnamed}

    @property
    def opened_deleted(self) -> dict[int, list[OpenDeletedFile]]:
        """Return the open files of each deleted file, by its id."""
        found: dict[int, list[OpenDeletedFile]] = defaultdict(list)
        for file in self.files_of("deleted"):
            found[file.deleted].append(file)
        return found

    @property
    def has_sharers(self) -> bool:
        """Tell whether processes share something since clone(2)."""
        return any(any(one.shares.owners) for one in self.processes)

    @property
    def written_by_mapping(self) -> set[int]:
        """Return the ids of what a shared mapping may write to."""
        return {mapping.object for mapping in self._shared_mappings if mapping.writable}

    @property
    def only_read_by_mapping(self) -> set[int]:
        """Return the ids of what a shared mapping may read, and never write to."""
        return {mapping.object for mapping in self._shared_mappings if not mapping.writable}

    @property
    def _shared_mappings(self) -> Iterator[MemoryMapping]:
        """Return the mappings whose contents others may see."""
        for process in self.processes:
            yield from (mapping for mapping in process.memory.mappings if mapping.shared)

    @property
    def brought_files(self) -> set[bytes]:
        """Return the paths of the files that the image brings along."""
        brought = {b"/" + entry.path for entry in self.layer.entries} if self.layer else set()
        for one in self.tmpfs:
            place = os.fsencode(one.destination.rstrip("/"))
            brought |= {place + b"/" + entry.path for entry in one.entries}
        return brought

    @property
    def own_files(self) -> list[KnownFile]:
        """Return the known files that the new container must have: the image lacks them."""
        brought = self.brought_files
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
    def all_credentials(self) -> Iterator[Credentials]:
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
            for file in self.files_of("regular")
            if file.flags & ACCESS_MODE != os.O_RDONLY
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

    def room_for_descriptors(self, most: int) -> range:
        """Return numbers below `most` that no process has a descriptor at, for those of stubs.

        After all others, unless there is no room.
        """
        used = {d.number for p in self.processes for table in p.tables for d in table}
        numbers = sorted({_LOWEST_OF_STUBS - 1, *(n for n in used if n >= _LOWEST_OF_STUBS)})
        needed = 2 * (len(self.files) + len(self.shared) + len(self.deleted)) + _FOR_STUBS
        after = range(numbers[-1] + 1, most)
        if len(after) >= needed:
            return after
        gaps = (range(low + 1, high) for low, high in pairwise(numbers))
        return max(*gaps, after, key=len)

    def used_memory(self) -> list[tuple[int, int]]:
        """Return the addresses that any process uses, the vDSO included."""
        used = [(m.start, m.end) for p in self.processes for m in p.memory.mappings]
        # The vDSO and its data pages: a generous span around where it was.
        used += [(p.memory.vdso, p.memory.vdso + 0x40000) for p in self.processes if p.memory.vdso]
        return used


def _check(tags: list[str]) -> None:
    """Check which kinds of records an image has, before any is decoded."""
    if "pre-dump" in tags:
        raise ImageError(
            "the image is a pre-dump: it has memory, and nothing else of a container",
            hint="restore the checkpoint that was made after it",
        )
    if tags.count("container") != 1:
        raise ImageError("the image does not describe one container")
    for tag, what in _SINGLE.items():
        if tags.count(tag) > 1:
            raise ImageError(f"the image has {what}")


def _by_id(found: list[AnyNamespace]) -> dict[int, AnyNamespace]:
    if not found:
        return {}
    from woodfrog.resources import nested

    return nested.by_id(found)


def _segments(objects: list[AnyObject]) -> Mapping[int, Segment]:
    if not objects:
        return {}
    from woodfrog.resources import sysv_memory

    return sysv_memory.by_id(objects)
