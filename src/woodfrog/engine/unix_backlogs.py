"""Unix clients that nobody has accepted yet, in a held container: what they have sent.

To read that, they are accepted, and made anew at once: each by a socket that connects once more,
sends the same, and takes the client's place wherever processes have it.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

from msgspec.structs import replace

from woodfrog.engine.collected import scratch_in
from woodfrog.engine.reconnecting import Reconnecting, in_container
from woodfrog.errors import UnsupportedResource, while_
from woodfrog.kernel import namespaces, syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.remote import descriptors
from woodfrog.remote.program import Program
from woodfrog.remote.scratch import SCRATCH_BYTES, Scratch
from woodfrog.remote.tracee import Tracee
from woodfrog.resources import file_signals, limits
from woodfrog.resources.files import (
    socket_filter,
    socket_options,
    unix_names,
    unix_queue,
)
from woodfrog.resources.files.base import FileRecord, set_flags
from woodfrog.resources.files.epoll import EPOLL_CTL_ADD, EVENT, Epoll, Watch
from woodfrog.resources.files.open_file import BY_PATH, IO_URING, OpenFile
from woodfrog.resources.files.unix_backlog import Arrived, Taken
from woodfrog.resources.files.unix_queue import Rights
from woodfrog.resources.files.unix_socket import UnixSocketFile

if TYPE_CHECKING:
    from woodfrog.engine.collecting_files import Files
    from woodfrog.engine.looking import Looked
    from woodfrog.engine.world import World
    from woodfrog.kernel.netlink.sock_diag import UnixSocket

PAGE = 4096
_TRIES, _A_MOMENT_S = 20, 0.001
# So many descriptors are needed beside those of clients; and in a task, to be given one.
_OTHERS, _FOR_ONE = 32, 3


def look(world: World, files: Files) -> None:
    """Note at which listeners clients wait whose data can be read. Nothing is touched."""
    for listener in world.sockets.unix_waited_at():
        reason = _reason_against(world, files, listener)
        if reason:
            world.sockets.unix_unreadable[listener.inode] = reason
        else:
            world.sockets.unix_unread.add(listener.inode)


def _reason_against(world: World, files: Files, listener: UnixSocket) -> str:
    """Say why the clients of a listener can't be made anew; empty if they can."""
    opened = world.open_socket(listener.inode)
    clients = [world.open_socket(inode) for inode in listener.pending if inode]
    found = [one for one in clients if one is not None]
    if opened is None or len(found) < len(clients):
        return "come from outside"
    if any(one.target == BY_PATH + other.target for one in files.files for other in found):
        return "have sent data or are closed, of which one is also open by O_PATH"
    if any(one.target == IO_URING for one in files.files):
        return "have sent data or are closed, while there are io_urings"
    try:
        if any(world.within(one) for one in (opened, *found)):
            return "have sent data or are closed, in a namespace that a program made"
    except UnsupportedResource as error:
        return f"have sent data or are closed, of which one {error}"
    if not all(map(_has_room, {task for one in found for task, _ in one.holders})):
        return "have sent data or are closed, while one's process may open no more files"
    in_flight = {
        id(one) for file in files.files for some in file.in_flight.values() for one in some
    }
    for one in found:
        client = world.sockets.unix(one.stat.st_ino)
        if client and client.name and client.name[:1] != b"\0":
            return "have sent data or are closed, of which one is bound to a path"
        if id(one) in in_flight:
            return "have sent data or are closed, of which one is in flight itself (SCM_RIGHTS)"
        with socket.socket(fileno=os.dup(one.descriptor)) as ours:
            if socket_filter.collect(ours):
                return "have sent data or are closed, of which one has a filter"
        owner = file_signals.collect(0, one.descriptor, one.flags, lambda _: 1, lambda _: 1)
        if owner is not None or any(line.startswith("lock:") for line in one.lines):
            return "have sent data or are closed, of which one is locked or sends signals"
    return ""


def _has_room(task: int) -> bool:
    """Tell whether a task may have as many more descriptors as it takes to give it one."""
    most, _ = limits.in_force(task)[limits.NAMES.index("RLIMIT_NOFILE")]
    numbers = [int(name) for name in os.listdir(f"/proc/{task}/fd")]
    return sum(number < most for number in numbers) + _FOR_ONE <= most


def read(looked: Looked) -> None:
    """Read what waits, and put it into the records."""
    world, records = looked.world, looked.file_records
    places = {record.id: at for at, record in enumerate(records)}
    reason = ""
    for inode in sorted(world.sockets.unix_unread):
        opened = world.open_socket(inode)
        assert opened is not None
        listener = records[places[opened.number]]
        assert isinstance(listener, UnixSocketFile)
        clients = [world.open_socket(client) for client in listener.pending]
        before = [records[places[one.number]] if one else None for one in clients]
        with while_(f"reading what waits at the unix socket {os.fsdecode(listener.name)}"):
            backlog = _Backlog(looked, opened, listener)
            now, arrived = backlog.made_anew(clients, before)
        reason = reason or backlog.reason
        records[places[opened.number]] = replace(listener, pending=now, arrived=arrived)
        for record, new in zip(before, now, strict=True):
            if record is not None:
                records[places[record.id]] = replace(record, inode=new)
    if reason:
        raise UnsupportedResource(
            "a client that waits to be accepted at a unix socket has sent a file (SCM_RIGHTS) that"
            f" cannot be saved: {reason}"
        )


class _Backlog:
    """What waits at one listener."""

    def __init__(self, looked: Looked, opened: OpenFile, listener: UnixSocketFile) -> None:
        self._looked = looked
        self._world = looked.world
        self._opened = opened
        self._listener = listener
        # Why something that has been sent can't be saved.
        self.reason = ""

    def made_anew(
        self, clients: list[OpenFile | None], records: list[FileRecord | None]
    ) -> tuple[list[int], list[Arrived]]:
        """Accept all clients, and have them connect again; returns their inodes, and what came."""
        self._find_room(len(clients))
        reconnecting = Reconnecting(self._looked, self._opened, self._listener)
        numbers, arrived = [], []
        with ExitStack() as undo:
            one = undo.enter_context(socket.socket(fileno=os.dup(self._opened.descriptor)))
            taken = []
            for _ in clients:
                if not socket_options.ready_for(one.fileno(), 1):
                    raise UnsupportedResource(
                        "somebody else has accepted what waited there", hint="try again"
                    )
                taken.append(Taken(one.accept()[0]))
                undo.callback(taken[-1].close)
            seen = self._authors_seen(taken)
            for found, client, record in zip(taken, clients, records, strict=True):
                assert record is None or isinstance(record, UnixSocketFile)
                rights = self._rights(found, client)
                made = undo.enter_context(reconnecting.connected(found.author))
                at_end = any(right.at_end for right in rights)
                is_full = record is not None and not record.takes_more
                found.send_again(made, is_full=is_full, at_end=at_end)
                if client is None or record is None:
                    _name(made, found.name)
                else:
                    _furnish(made, record, client.stat)
                    self._put_in_place(made, client)
                    _name(made, record.name)
                numbers.append(0 if client is None else os.fstat(made.fileno()).st_ino)
                arrived.append(
                    found.arrived(self._world, rights, next(seen), is_closed=client is None)
                )
        self._check(numbers)
        return numbers, arrived

    def _find_room(self, clients: int) -> None:
        """See whether we may have as many descriptors: who is accepted would be lost without.

        Files that clients have sent are there up to three times, in us and in a child of ours.
        """
        sent = int(self._opened.fdinfo.get("scm_fds", "0"))
        with ExitStack() as undo:
            for _ in range(2 * clients + 3 * sent + _OTHERS):
                undo.callback(os.close, os.dup(self._opened.descriptor))

    def _check(self, numbers: list[int]) -> None:
        self._world.sockets.forget_unix()
        found = self._world.sockets.unix(self._listener.inode)
        if found is None or list(found.pending) != numbers:
            raise UnsupportedResource(
                "others connected while the container was looked at", hint="try again"
            )

    def _authors_seen(self, taken: list[Taken]) -> Iterator[list[int]]:
        """Return who those of the container see behind each connection."""

        def ask() -> list[int]:
            asked = [one.authors_seen() for one in taken]
            return [number for one in asked for number in (len(one), *one)]

        numbers = iter(in_container(self._world.init, ask))
        for count in numbers:
            yield list(itertools.islice(numbers, count))

    def _rights(self, taken: Taken, client: OpenFile | None) -> list[Rights]:
        found = []
        pieces = [message.data for message in taken.messages]
        at_end = None
        for number, message in enumerate(taken.messages):
            if not message.descriptors:
                continue
            if at_end is None:
                at_end = (
                    client is not None
                    and taken.one.type == socket.SOCK_STREAM
                    and not unix_queue.are_whole(pieces, client.descriptor)
                )
            numbers = [self._number(fd) for fd in message.descriptors]
            found.append(Rights(message=number, files=numbers, at_end=at_end))
        return found

    def _number(self, descriptor: int) -> int:
        """Return the id of a file that has been sent; 0, and a note, if it can't be saved."""
        files = self._looked.files
        known = files.find(descriptor)
        if known is None:
            try:
                record = files.add(descriptor, self._world)
            except UnsupportedResource as error:
                self.reason = str(error)
                return 0
            self._looked.file_records.append(record)
            return record.id
        if known.is_late:
            self.reason = f"{os.fsdecode(known.target)} can be saved only while a process has it"
        return known.number

    def _put_in_place(self, made: socket.socket, client: OpenFile) -> None:
        """Give a client's descriptors, in all tables, and its epolls the new socket."""
        tasks = {task.pid: task for task in self._looked.tree.tasks()}
        files = {file.number: file for file in self._looked.files.files}
        watches = [
            (files[record.id], watch)
            for record in self._looked.file_records
            if isinstance(record, Epoll)
            for watch in record.watches
            if watch.file == client.number
        ]
        _watch(made.fileno(), [(epoll.descriptor, watch) for epoll, watch in watches])
        for pid, number in client.holders:
            task = tasks[pid]
            cloexec = OpenFile(pid, number, client.target).cloexec
            with scratch_in(task.process, self._looked.vdso) as scratch:

                def call(
                    number: int,
                    *arguments: int,
                    scratch: Scratch = scratch,
                    tracee: Tracee = task.tracee,
                ) -> int:
                    # Behind the page that carries the message.
                    program = Program(scratch.data + PAGE, SCRATCH_BYTES - PAGE)
                    result = program.call(number, *arguments)
                    scratch.run(program, tracee)
                    return program[result]

                memory = task.process.memory
                (fd,) = descriptors.send(pid, memory, scratch.data, call, [made.fileno()])
                program = scratch.program()
                syscalls.duplicate_to(program, fd, number, cloexec=cloexec)
                syscalls.close(program, fd)
                scratch.run(program, task.tracee)
        self._world.renew_socket(client, made.fileno())


def _furnish(made: socket.socket, record: UnixSocketFile, old: os.stat_result) -> None:
    """Make a connected socket of ours like the client's was."""
    fd = made.fileno()
    os.fchown(fd, old.st_uid, old.st_gid)
    socket_options.restore(HERE, fd, record.options, force=True)
    if record.shutdown:
        made.shutdown(record.shutdown - 1)
    set_flags(HERE, fd, record.flags)


def _name(made: socket.socket, name: bytes) -> None:
    """Bind to an abstract name, which the old socket has left."""
    if name[:1] != b"\0":
        return
    address = unix_names.address_of(name)
    for last in (False,) * _TRIES + (True,):
        try:
            HERE.call(SYS.BIND, made.fileno(), address, len(address))
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE or last:
                raise
        time.sleep(_A_MOMENT_S)


def _watch(made: int, watches: list[tuple[int, Watch]]) -> None:
    """Have epolls watch a descriptor of ours, each under the number by which it was added.

    In a thread that has a descriptor table for itself, where all numbers are free.
    """
    failures = []
    above = max([made, *(max(epoll, watch.descriptor) for epoll, watch in watches)], default=0) + 1

    def add() -> None:
        try:
            namespaces.unshare(HERE, namespaces.CLONE_FILES)
            epolls = [syscalls.duplicate_above(HERE, epoll, above) for epoll, _ in watches]
            one = syscalls.duplicate_above(HERE, made, above)
            for epoll, (_, watch) in zip(epolls, watches, strict=True):
                syscalls.duplicate_to(HERE, one, watch.descriptor, cloexec=True)
                event = EVENT.pack(watch.events & 0xFFFFFFFF, watch.data)
                HERE.call(SYS.EPOLL_CTL, epoll, EPOLL_CTL_ADD, watch.descriptor, event)
        except OSError as error:
            failures.append(error)

    if watches:
        adding = threading.Thread(target=add)
        adding.start()
        adding.join()
    if failures:
        raise failures[0]
