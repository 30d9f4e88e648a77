"""All open files of a held container: each description once, however many descriptors name it."""

from __future__ import annotations

import bisect
import fcntl
import itertools
import os
import socket
import stat
import struct
from collections import defaultdict
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from operator import itemgetter
from typing import TYPE_CHECKING

import msgspec

from woodfrog.engine.obstacles import Obstacles
from woodfrog.engine.world import World
from woodfrog.errors import UnsupportedResource
from woodfrog.image.record import tag_of
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.kcmp import KCMP_FILES, compare_files
from woodfrog.remote.held import Held, HeldProcess, HeldTask
from woodfrog.remote.program import Program
from woodfrog.resources import catalogue, file_signals
from woodfrog.resources.descriptor import Descriptor
from woodfrog.resources.file_signals import FileSignals
from woodfrog.resources.files.base import FileRecord
from woodfrog.resources.files.open_file import EPOLL, O_CLOEXEC, O_PATH, OpenFile
from woodfrog.resources.membership import Membership

if TYPE_CHECKING:
    from woodfrog.resources.files.epoll import Watch
    from woodfrog.resources.nested import FilesWithin

_EVENTFD = b"anon_inode:[eventfd]"


class Files:
    """The open files of all processes and which descriptors name them."""

    def __init__(self, tree: Held) -> None:
        self._tables: dict[int, list[tuple[int, OpenFile, bool]]] = {}
        self._names = {process.pid: process.name for process in tree.processes}
        # Where files are that no process has.
        self._where: dict[int, str] = {}
        self.files: list[OpenFile] = []
        self._signals: dict[int, list[FileSignals]] = defaultdict(list)
        # Those that look alike, in the order that kcmp(2) has them in.
        self._known: dict[tuple[object, ...], list[OpenFile]] = defaultdict(list)
        self._ours: list[int] = []
        # Where their records are in the list of all.
        self._places: dict[int, int] = {}
        # Threads that have tables of their own; what only they hold comes after all else.
        self._of_threads: set[int] = set()
        self._within: dict[tuple[tuple[str, int], ...], list[int]] = defaultdict(list)
        for process in tree.processes:
            # A table that is shared is that of the parent.
            shared = KCMP_FILES in process.shares
            self._tables[process.pid] = [] if shared else self._table(process.pid)
        for process in tree.processes:
            for task in process.tasks:
                if task.has_own_descriptors:
                    self._names[task.pid] = f"a thread of {process.name}"
                    self._of_threads.add(task.pid)
                    self._tables[task.pid] = self._table(task.pid)
        for file in self.files:
            # Those that are found may have others in their queues: the list grows.
            if file.fdinfo.get("scm_fds", "0") != "0":
                self._look_into(file)
        for number, file in enumerate(self.files, 1):
            file.number = number

    def _table(self, pid: int) -> list[tuple[int, OpenFile, bool]]:
        """Read the descriptors of a process or thread, by their numbers."""
        table = []
        directory = os.fsencode(f"/proc/{pid}/fd")
        for number in sorted(map(int, os.listdir(directory))):
            target = os.readlink(b"%s/%d" % (directory, number))
            found = OpenFile(pid, number, target)
            file = self._known_one(found)
            if file is not found:
                file.holders.append((pid, number))
            table.append((number, file, found.cloexec))
        return table

    def table(self, process: HeldProcess) -> list[tuple[int, OpenFile, bool]]:
        """Return a process's descriptors: number, file, and whether it is close-on-exec."""
        return self._tables[process.pid]

    def _known_one(self, found: OpenFile) -> OpenFile:
        """Return the file that was found before and is the same, or else this one, from now on."""
        key = (found.target, found.flags, found.position, found.mnt_id, found.inode)
        alike = self._known[key]
        low, high = 0, len(alike)
        while low < high:
            middle = (low + high) // 2
            order = compare_files(*alike[middle].holders[0], found.pid, found.fd)
            if order == 0:
                return alike[middle]
            low, high = (middle + 1, high) if order == 1 else (low, middle)
        alike.insert(low, found)
        self.files.append(found)
        return found

    def find(self, descriptor: int) -> OpenFile | None:
        """Return the file that a descriptor of ours names, if it was found anywhere."""
        pid = os.getpid()
        found = OpenFile(pid, descriptor, os.readlink(os.fsencode(f"/proc/{pid}/fd/{descriptor}")))
        for other in self.files:
            alike = other.target == found.target
            if alike and compare_files(*other.holders[0], pid, descriptor) == 0:
                return other
        return None

    def add(self, descriptor: int, world: World) -> FileRecord:
        """Take in a file that is in flight and was not found before; we keep a descriptor of it.

        Only of what can be made without others that were not looked at either.
        """
        pid, ours = os.getpid(), os.dup(descriptor)
        self._ours.append(ours)
        found = OpenFile(pid, ours, os.readlink(os.fsencode(f"/proc/{pid}/fd/{ours}")))
        if not (stat.S_ISREG(found.stat.st_mode) or found.target == _EVENTFD):
            raise UnsupportedResource(f"{os.fsdecode(found.target)} is in flight only there")
        found.number = len(self.files) + 1
        self._where[id(found)] = "in flight to one that nobody has accepted"
        record = self._record(found, world)
        self.files.append(found)
        return record

    def _look_into(self, file: OpenFile) -> None:
        """Find the files that are in flight in the queue of a unix socket."""
        from woodfrog.resources.files import unix_queue

        pid = os.getpid()
        with socket.socket(fileno=os.dup(file.descriptor)) as one:
            if one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return  # with clients that nobody has accepted: see engine/unix_backlogs.py
            messages = unix_queue.peek(one, most=unix_queue.waiting(one))
        file.messages = [msgspec.structs.replace(one, descriptors=[]) for one in messages]
        for number, message in enumerate(messages):
            for fd in message.descriptors:
                target = os.readlink(os.fsencode(f"/proc/{pid}/fd/{fd}"))
                found = self._known_one(OpenFile(pid, fd, target))
                file.in_flight.setdefault(number, []).append(found)
                if found.holders[0] == (pid, fd):
                    self._where[id(found)] = f"in flight to {self._place(file)}"
                    self._ours.append(fd)
                else:
                    os.close(fd)

    def _place(self, file: OpenFile) -> str:
        """Say where a file is, for people."""
        pid, fd = file.holders[0]
        return self._where.get(id(file)) or f"descriptor {fd} of {self._names[pid]}"

    def refuse_opened_in(self, mounts: AbstractSet[int], obstacles: Obstacles) -> None:
        """Refuse files that were opened where something is mounted only when all files are open."""
        for file in self.files if mounts else ():
            if file.mnt_id in mounts:
                with obstacles.at(self._place(file)):
                    raise UnsupportedResource(
                        f"{os.fsdecode(file.target)} was opened where a terminal or the file of a"
                        " socket is mounted, which cannot be saved yet",
                        hint="open it by its own path",
                    )

    def collect(
        self,
        world: World,
        obstacles: Obstacles,
        doomed: AbstractSet[int] = frozenset(),
        *,
        but_sockets: bool = False,
    ) -> list[FileRecord]:
        """Read every file into its record; what only `doomed` processes have may be left out.

        And unix sockets that can't be saved, if `but_sockets`.
        """
        records: list[FileRecord] = []
        # Before anything is read, even if it is put back: that may be news.
        watches: dict[int, list[Watch]] = {}
        for file in self.files:
            if file.target == EPOLL:
                with obstacles.at(self._place(file)):
                    watches[file.number] = self._watches(file)
        for file in self.files:
            is_doomed = bool(doomed) and all(pid in doomed for pid, _ in file.holders)
            may_fail = is_doomed or (but_sockets and world.is_unix_socket(file))
            with obstacles.unless(may_fail).at(self._place(file)):
                self._look_at_signals(file, world)
                records.append(self._record(file, world))
        by_number = {record.id: record for record in records}
        for file in self.files:
            record = by_number.get(file.number)
            if record and record.id in watches:
                some = watches[record.id]
                with obstacles.at(self._place(file)):
                    if id(file) in self._where and any(self._is_late(one) for one in some):
                        raise UnsupportedResource(
                            "is an epoll that watches a file of a process, and can be saved only"
                            " while a process has it"
                        )
                    by_number[record.id] = msgspec.structs.replace(record, watches=some)
        self._places = {number: place for place, number in enumerate(sorted(by_number))}
        return [by_number[number] for number in self._places]

    def _look_at_signals(self, file: OpenFile, world: World) -> None:
        if file.flags & O_PATH:
            return
        pid, fd = file.holders[0]
        found = file_signals.collect(
            fd, file.descriptor, file.flags, world.identify, world.identify_group
        )
        if found is not None:
            if id(file) in self._where:
                raise UnsupportedResource(
                    "sends signals (F_SETOWN), and can be saved only while a process has it"
                )
            if found.owner and stat.S_ISDIR(file.stat.st_mode):
                raise UnsupportedResource(
                    "is a directory whose changes may be told by signals (F_NOTIFY): for what, no"
                    " kernel tells",
                    hint="inotify can be saved",
                )
            self._refuse_in_thread(pid, "sends signals (F_SETOWN)")
            self._signals[pid].append(found)

    def _refuse_in_thread(self, pid: int, what: str) -> None:
        if pid in self._of_threads:
            raise UnsupportedResource(
                f"{what}, and only a thread has it, in a table of its own; that cannot be saved yet"
            )

    def thread_descriptors(self, task: HeldTask) -> list[Descriptor] | None:
        """Return a thread's own descriptor table; None if it has its process's."""
        if task.pid not in self._of_threads:
            return None
        for number, file, _ in self._tables[task.pid]:
            lines = OpenFile(task.pid, number, file.target).lines
            own = file.holders[0][0] in self._of_threads
            if any(line.startswith("lock:") and (own or " POSIX " in line) for line in lines):
                raise UnsupportedResource(
                    f"has a thread with descriptors of its own, that has locked {number}; that"
                    " cannot be saved yet"
                )
        return [
            Descriptor(number=number, file=file.number, cloexec=cloexec)
            for number, file, cloexec in self._tables[task.pid]
        ]

    def signals(self, process: HeldProcess) -> list[FileSignals]:
        """Return who gets signals from files that the process is the first to hold."""
        return self._signals[process.pid]

    def within(self) -> list[FilesWithin]:
        """Return which files must be made again in nested namespaces, once all are collected."""
        if not self._within:
            return []
        from woodfrog.resources.nested import FilesWithin

        return [
            FilesWithin(namespaces=dict(membership), files=files)
            for membership, files in self._within.items()
        ]

    def _record(self, file: OpenFile, world: World) -> FileRecord:
        for kind in catalogue.likely_kinds(file):
            if kind.recognises(file, world):
                file.is_late = kind.late
                if kind.late or file.target == EPOLL:
                    self._refuse_in_thread(file.holders[0][0], "is tied to others")
                if id(file) in self._where:
                    _refuse_in_flight(kind, file)
                record = kind.collect(file.number, file, world)
                if within := world.within(file):
                    _refuse_connection(record, within)
                    self._within[tuple(sorted(within.items()))].append(file.number)
                return record
        from woodfrog.resources.files import refused

        what, hint = refused.explain(file)
        raise UnsupportedResource(f"is {what}, which cannot be saved yet", hint=hint)

    def _watches(self, file: OpenFile) -> list[Watch]:
        from woodfrog.resources.files.epoll import Watch, parse_watches, tell_told

        watches = []
        met: dict[int, int] = defaultdict(int)
        for number, events, data, inode in parse_watches(file.lines):
            found = self._watched(file, number, inode, met)
            if found is None or (id(found) in self._where and id(file) not in self._where):
                raise UnsupportedResource(
                    f"is an epoll that watches what was descriptor {number},"
                    " which no process of the container has any more; it cannot be saved yet"
                )
            watch = Watch(descriptor=number, file=found.number, events=events, data=data)
            watches.append((watch, found.descriptor))
        return tell_told(file.descriptor, watches)

    def _is_late(self, watch: Watch) -> bool:
        return self.files[watch.file - 1].is_late

    def _watched(
        self, epoll: OpenFile, number: int, inode: int, met: dict[int, int]
    ) -> OpenFile | None:
        """Find the file that an epoll watches under a number, which may have been closed since.

        `met` counts those that were met under each number.
        """
        pid, fd = epoll.holders[0]
        from woodfrog.resources.files.epoll import KCMP_EPOLL_TFD

        slot = struct.pack("<3I", fd, number, met[number])
        met[number] += 1
        table = self._tables.get(pid, [])
        place = bisect.bisect_left(table, number, key=itemgetter(0))
        likely = [one for n, one, _ in table[place : place + 1] if n == number]
        for one in itertools.chain(likely, self.files):
            if one.inode in (inode, 0):
                holder, descriptor = one.holders[0]
                if HERE.call(SYS.KCMP, holder, pid, KCMP_EPOLL_TFD, descriptor, slot) == 0:
                    return one
        return None

    def descriptors(self, process: HeldProcess, inherited: set[int]) -> list[Descriptor]:
        """Return a process's descriptor table; `inherited` are not close-on-exec for certain."""
        return [
            Descriptor(
                number=number,
                file=file.number,
                cloexec=cloexec and number not in inherited,
            )
            for number, file, cloexec in self._tables[process.pid]
        ]

    def ask_peers(
        self, process: HeldProcess, program: Program, records: list[FileRecord]
    ) -> Callable[[], None]:
        """Add the calls that tell which processes, ended since, unix sockets have as their peers.

        Only inside have those a number still. The answer goes into `records`.
        """
        asked = []
        for number, file, _ in self._tables[process.pid] if len(process.ids) == 1 else ():
            place = self._places.get(file.number)
            record = records[place] if place is not None else None
            if place is not None and record and tag_of(record) == "unix-socket":
                from woodfrog.resources.files import unix_peers
                from woodfrog.resources.files.unix_socket import UnixSocketFile

                assert isinstance(record, UnixSocketFile)
                peer = record.peer
                if peer and not peer.pid:
                    asked.append((place, record, peer, unix_peers.ask(program, number)))

        def answered() -> None:
            for place, record, peer, told in asked:
                known = msgspec.structs.replace(peer, pid=max(told(), 0))
                records[place] = msgspec.structs.replace(record, peer=known)

        return answered

    def ask_inherited(self, process: HeldProcess, program: Program) -> Callable[[], set[int]]:
        """Add the calls that tell which descriptors only seem to be close-on-exec.

        fdinfo shows the flag of the file, too, if it has one: that of a terminal opened by
        TIOCGPTPEER has.
        """
        looks = [
            (number, program.call(SYS.FCNTL, number, fcntl.F_GETFD, 0))
            for number, file, cloexec in self._tables[process.pid]
            if cloexec and fcntl.fcntl(file.descriptor, fcntl.F_GETFL) & O_CLOEXEC
        ]
        return lambda: {number for number, flags in looks if not program[flags]}

    def close(self) -> None:
        """Close our own descriptors."""
        for file in self.files:
            file.close()
        for fd in self._ours:
            os.close(fd)


def _refuse_connection(record: FileRecord, within: Membership) -> None:
    """Refuse a TCP connection to outside from a network that ends with the container."""
    if tag_of(record) != "tcp-socket":
        return
    from woodfrog.resources.files.tcp_socket import TcpSocket

    connection = record.connection if isinstance(record, TcpSocket) else None
    if connection is not None and connection.outside and "net" in within:
        raise UnsupportedResource(
            "is a TCP connection to outside in a network namespace that a program made, which"
            " cannot be saved yet"
        )


def _refuse_in_flight(kind: type[FileRecord], file: OpenFile) -> None:
    """Refuse what can be opened only when processes stand, or what only these have."""
    if kind.late or any(line.startswith("lock:") for line in file.lines):
        raise UnsupportedResource(
            f"{os.fsdecode(file.target)} can be saved only while a process has it"
        )
