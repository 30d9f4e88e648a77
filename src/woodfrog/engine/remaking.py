"""Files of an image that are gone, or in a state that can't be set back: they are made anew.

A passing process of ours, which is in the container's namespaces and has the rights of a restore,
makes them as a restore does, and the processes that had them get them at the same descriptors.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec

from woodfrog.engine import connections, outsiders, root_stub
from woodfrog.engine.admission import Bounds
from woodfrog.engine.looking import Looked
from woodfrog.engine.making_in_place import (
    MakingInPlace,
    as_maker,
    kept_listeners,
    makers,
    refuse_makers,
)
from woodfrog.engine.making_namespaces import MadeNamespaces
from woodfrog.engine.making_users import Users
from woodfrog.engine.pids import Member
from woodfrog.engine.plan import Plan
from woodfrog.engine.standing import Match, Standing
from woodfrog.errors import UnsupportedResource, while_
from woodfrog.image.record import tag_of
from woodfrog.kernel import ptrace, syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.procfs.maps import read_maps
from woodfrog.kernel.ptrace import Event
from woodfrog.remote import descriptors
from woodfrog.remote.address import free_range
from woodfrog.remote.stub import Stub
from woodfrog.remote.vdso import Vdso
from woodfrog.resources import credentials, file_signals, limits, namespaces
from woodfrog.resources.descriptor import Descriptor
from woodfrog.resources.files import unix_names
from woodfrog.resources.files.base import DescriptorTable, FileRecord
from woodfrog.resources.files.open_file import O_PATH
from woodfrog.resources.files.regular import RegularFile

if TYPE_CHECKING:
    from woodfrog.resources.files.tcp_socket import TcpSocket

_RIGHTS_AT_ONCE = 200
_F_SETFD = 2
_ROOM_FOR_A_PAIR = 2
_RESET_AT_CLOSE = struct.pack("<2i", 1, 0)  # SO_LINGER: on, for no time


class Remaking:
    """Makes what a match lacks. Until `make` only the passing process is there, and `undo` ends it.

    `missing` gets what files lack now.
    """

    def __init__(
        self,
        init: int,
        plan: Plan,
        match: Match,
        looked: Looked,
        bounds: Bounds,
        vdso: Vdso,
        undo: ExitStack,
    ) -> None:
        self.init = init
        self._plan, self._match, self._looked = plan, match, looked
        self._bounds = bounds
        self._undo = undo
        self._vdso = vdso
        self.missing: list[str] = []
        used = {one.namespace_pid for one in looked.tree.tasks()}
        used |= {one.namespace_pid for one in looked.tree.zombies}
        used |= {thread.tid for one in plan.processes for thread in one.threads}
        members: list[Member] = [*plan.processes, *plan.zombies]
        for member in members:
            used |= {member.pid, member.group, member.session}
        self._spare = max(used) + 1
        with while_("bringing a process into the container that makes files"):
            self._stub = self._begin(vdso)
            self.most_descriptors, most = root_stub.raise_descriptor_limit(self._stub.pid)
            self.namespaces = MadeNamespaces(self._stub, None, {}, undo)
            self.making = self._workshop(most)
        self._silence: connections.Silence | None = None
        if most == self.most_descriptors:
            self._refuse_full_tables()
        self._refuse_sockets()
        self._refuse_unopenable()
        connections.make_room(
            init,
            self._tcp_sockets(),
            looked.world.sockets.inside,
            own_network="network" in bounds.new_namespaces,
        )

    @property
    def users(self) -> Users:
        """What has processes choose ids that they may not choose."""
        return self.namespaces.users

    def _tcp_sockets(self) -> list[TcpSocket]:
        return [one for one in self._plan.files_of("tcp-socket") if one.id in self._match.remade]

    def _refuse_full_tables(self) -> None:
        """Refuse to give descriptors where there is no room for what they come by."""
        busy = {maker.pid for _, maker in makers(self._match, self._plan)}
        for one in self._match.processes:
            _, hard = limits.in_force(one.held.pid)[root_stub.RLIMIT_NOFILE]
            is_full = len(one.then.descriptors) + _ROOM_FOR_A_PAIR > hard
            if is_full and (one.then.pid in busy or one.lacking_descriptors(self._match)):
                raise UnsupportedResource(
                    f"{one.held.name} has no room to get descriptors that it has closed: it may"
                    f" have {hard}, and has {len(one.then.descriptors)} in the image",
                    hint="run woodfrog with CAP_SYS_RESOURCE, or restore the image into a new"
                    " container instead",
                )

    def _refuse_sockets(self) -> None:
        """Refuse unix sockets that their makers can't make, or whose names others have."""
        match, plan = self._match, self._plan
        extra = {one.namespace_pid for one in match.extra_zombies}
        zombies = {one.namespace_pid for one in self._looked.tree.zombies} - extra
        refuse_makers(match, plan, zombies)
        brought = plan.brought_files
        for record in plan.files_of("unix-socket"):
            if record.id in match.remade:
                name = record.own_name
                if name.stands and not name.is_abstract and name.path not in brought:
                    self.making.refuse_displacing(name.at or name.path)

    def _refuse_unopenable(self) -> None:
        """Refuse files that are there, but may not be opened any more."""
        brought, mounts = self._plan.brought_files, self._plan.mounts
        self.making.refuse_unopenable(
            one
            for one in self._match.remade.values()
            if isinstance(one, RegularFile)
            and not one.flags & O_PATH
            and one.path not in brought
            and not (mounts and mounts.is_brought(one.path))
        )

    def _begin(self, vdso: Vdso) -> Stub:
        pid = outsiders.clone_inside(self.init, self._spare, as_our_child=True)
        self._passing = [pid]
        self._undo.callback(self.end)
        used = self._plan.used_memory() + [(m[0], m[1]) for m in read_maps(pid)]
        base = free_range(used, root_stub.STUB_BYTES + 4096).start
        nothing = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            high = self._plan.room_for_descriptors(1 << 20).start
            stub, self._nothing = root_stub.make(
                pid, base, root_stub.STUB_BYTES, vdso, high=high, pages=nothing, time_offsets=None
            )
            self._undo.callback(stub.close)
            self._take_stdio(stub, nothing)
        finally:
            os.close(nothing)
        return stub

    def _take_stdio(self, stub: Stub, nothing: int) -> None:
        """Have the passing process's first three descriptors be the container's."""
        for number in range(3):
            try:
                ours = descriptors.fetch(self.init, number)
            except OSError:
                ours = os.dup(nothing)
            (got,) = descriptors.give(stub, [ours])
            os.close(ours)
            program = stub.program()
            syscalls.duplicate_to(program, got, number, cloexec=False)
            syscalls.close(program, got)
            stub.run(program)

    def _workshop(self, most: int) -> MakingInPlace:
        return MakingInPlace(
            self._stub,
            self._plan.room_for_descriptors(most),
            capabilities=self._bounds.bounding,
            permitted=credentials.permitted_set(self._stub.pid),
            tcp_close=self._bounds.tcp_close,
            undo=self._undo,
            new_network="network" in self._bounds.new_namespaces,
            namespaces=self.namespaces,
            may_force_buffers=namespaces.is_ours(self.init, "user"),
            spare_pid=self._spare + 1,
            uncovered={},
            ghosts=None,
            detached={},
        )

    def make_way(self) -> None:
        """Have the files that are to be closed leave nothing behind that is in the way of new ones.

        Connections within the container end at once, on both sides; those to others as usual.
        """
        looked = self._looked
        looked.hush.close()
        kept = {now.id for _, now in self._match.files}
        records = {record.id: record for record in looked.file_records}
        for file in looked.files.files:
            record = records.get(file.number)
            if file.number in kept:
                continue
            connection = getattr(record, "connection", None)
            if record and tag_of(record) == "tcp-socket" and connection and not connection.outside:
                with socket.socket(fileno=os.dup(file.descriptor)) as one:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
            file.close()

    def make(self, stubs: Sequence[tuple[Standing, Stub]]) -> None:
        """Make the files, and give each process its own. What they replace is closed by now."""
        records = [*self._match.remade.values()]
        connected = [
            one for one in self._tcp_sockets() if one.connection and not one.connection.outside
        ]
        # Whether somebody else has them was asked before anything was touched.
        self._silence = connections.Silence(self.init, connected, {})
        self._undo.enter_context(self._silence)
        kept = self._kept(stubs)
        self._take_what_is_needed(records, kept)
        self.making.standing = {standing.then.pid: stub for standing, stub in stubs}
        self.making.owners = {
            descriptor.file: as_maker(standing.then)
            for standing, _ in reversed(stubs)
            for descriptor in standing.then.descriptors
        }
        self.making.make_files(records, self._plan.unheld, {})
        self.missing += self.making.missing
        ours: dict[int, int] = {}
        for standing, stub in stubs:
            wanted = standing.lacking_descriptors(self._match)
            for one in wanted:
                if one.file not in ours:
                    ours[one.file] = self._fetch(one.file, kept)
            if not wanted:
                continue
            with (
                while_(f"giving files to {standing.held.name}"),
                root_stub.raised_descriptor_limit(stub),
            ):
                _give(stub, [(ours[one.file], one) for one in wanted])
        self.connect([(s.held.name, s.then.descriptors, stub) for s, stub in stubs])
        for record in self._match.lost:
            for one in record.descriptors:
                if one.file not in self.making.files:
                    self.making.files[one.file] = self._take(self._fetch(one.file, kept))
            for number in {m.object for m in record.memory.mappings if m.object}:
                self._take_object(number)
        outsiders.take_out(self._stub.pid)

    def own_files(self, stubs: Sequence[tuple[Standing, Stub]]) -> None:
        """Have what was made send signals to whom it sent them; all processes are there."""
        for standing, stub in stubs:
            files = {one.number: one.file for one in standing.then.descriptors}
            program, flags = self._stub.program(), stub.program()
            for one in standing.then.file_signals:
                record = self._match.remade.get(files[one.descriptor])
                if record is None:
                    continue
                here = msgspec.structs.replace(one, descriptor=self.making.files[record.id])
                file_signals.restore(program, here, one.owner, 0)
                if record.flags & file_signals.O_ASYNC:
                    # The signal tells this descriptor.
                    syscalls.set_status_flags(flags, one.descriptor, record.flags)
            with while_(f"setting who gets signals from the files of {standing.held.name}"):
                self._stub.run(program)
                stub.run(flags)

    def _take_what_is_needed(
        self, records: Sequence[FileRecord], kept: Mapping[int, tuple[int, int]]
    ) -> None:
        """Have the passing process have what stays, if others are made through it, or carry it."""
        making = self.making
        for bond, listener in kept_listeners(self._match, self._plan).items():
            del bond
            fd = self._take(self._fetch(listener.id, kept))
            making.share(unix_names.listener(making, listener.type, listener.own_name), fd)
        needed = {one for record in records for one in record.carries()}
        unheld = self._plan.unheld
        needed |= {one for record in records if record.id in unheld for one in record.ties()}
        for number in needed:
            if number not in self._match.remade:
                making.files[number] = self._take(self._fetch(number, kept))

    def _take(self, ours: int) -> int:
        """Have the passing process keep a descriptor of ours, where those are that it made."""
        (got,) = descriptors.give(self._stub, [ours])
        program = self._stub.program()
        high = syscalls.duplicate_above(program, got, self.making.high)
        syscalls.close(program, got)
        self._stub.run(program)
        return program[high]

    def _take_object(self, number: int) -> None:
        """Have it have shared memory, or a deleted file, that others still have."""
        now = self._match.pairs.now("object", number)
        one = next(o for o in self._looked.world.links.objects.values() if o.number == now)
        wanted = {os.O_RDONLY, os.O_RDWR if number in self._plan.written_by_mapping else 0}
        for flags in wanted:
            ours = os.open(f"/proc/self/fd/{one.fd}", flags | os.O_CLOEXEC)
            try:
                self.making.take_object(number, self._take(ours), for_writing=flags == os.O_RDWR)
            finally:
                os.close(ours)

    def hand_files(self, stub: Stub) -> None:
        """Give a process what there is, under the same numbers."""
        outsiders.hand_over(self._stub, stub, self.making.descriptors)

    def bring_in(self, pid: int) -> Stub:
        """Make a process from outside, which has all that."""
        files, bounds = self.making.descriptors, self._bounds.rlimits
        return outsiders.make(self.init, pid, self._stub, self._vdso, files, self._nothing, bounds)

    def _kept(self, stubs: Sequence[tuple[Standing, Stub]]) -> dict[int, tuple[int, int]]:
        """Return where each file is that somebody still has: a process, and its descriptor."""
        kept: dict[int, tuple[int, int]] = {}
        for standing, stub in stubs:
            lacking = {one.number for one in standing.lacking_descriptors(self._match)}
            for one in standing.then.descriptors:
                if one.number not in lacking:
                    kept.setdefault(one.file, (stub.pid, one.number))
        return kept

    def _fetch(self, file: int, kept: Mapping[int, tuple[int, int]]) -> int:
        """Return a descriptor of ours of a file that was made, or stays, if only in flight."""
        made = self.making.files.get(file)
        if made is not None:
            fd = descriptors.fetch(self._stub.pid, made)
        elif file in kept:
            fd = descriptors.fetch(*kept[file])
        else:
            now = self._match.pairs.now("file", file)
            fd = os.dup(next(o for o in self._looked.files.files if o.number == now).descriptor)
        self._undo.callback(os.close, fd)
        return fd

    def connect(self, processes: Iterable[tuple[str, Sequence[Descriptor], Stub]]) -> None:
        """Tie files that were made to those that they point at, in processes that have both."""
        for name, slots, stub in processes:
            table = DescriptorTable(
                {one.number: one.file for one in slots},
                frozenset(one.number for one in slots if one.cloexec),
            )
            program = stub.program()
            for number, file in table.files.items():
                record = self._match.remade.get(file)
                if record and record.ties() and file not in self._match.watched:
                    self._match.watched.add(file)
                    record.connect(program, number, table)
            with while_(f"connecting the files of {name}"):
                stub.run(program)

    def complete(self) -> None:
        """Do what must come last of all."""
        if self._silence is not None:
            self._silence.end()
        self.making.complete()

    def end(self) -> None:
        """End the passing process, which nobody inside knows of."""
        while self._passing:
            pid = self._passing.pop()
            try:
                os.kill(pid, signal.SIGKILL)
                while ptrace.wait(pid).event not in (Event.EXITED, Event.KILLED):
                    pass
            except (ProcessLookupError, ChildProcessError):
                pass


def _give(stub: Stub, wanted: Sequence[tuple[int, Descriptor]]) -> None:
    """Give a process descriptors of ours, under its own numbers, which are free."""
    wanted = sorted(wanted, key=lambda one: one[1].number)
    for first in range(0, len(wanted), _RIGHTS_AT_ONCE):
        some = wanted[first : first + _RIGHTS_AT_ONCE]
        program = stub.program()
        got = descriptors.give(stub, [ours for ours, _ in some])
        # They came where there was room, in this order, too. So none takes the place of another if
        # the last one goes up first, and then the first one down. Behind all there may be no room.
        moves = [(fd, slot) for fd, (_, slot) in zip(got, some, strict=True)]
        upwards = [(fd, slot) for fd, slot in moves if fd < slot.number]
        others = [(fd, slot) for fd, slot in moves if fd >= slot.number]
        for fd, slot in (*reversed(upwards), *others):
            if fd != slot.number:
                syscalls.duplicate_to(program, fd, slot.number, cloexec=slot.cloexec)
                syscalls.close(program, fd)
            elif not slot.cloexec:
                program.call(SYS.FCNTL, fd, _F_SETFD, 0)
        stub.run(program)
