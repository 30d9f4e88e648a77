"""Files of an image that are gone, or in a state that can't be set back: they are made anew.

A passing process of ours, which is in the container's namespaces and has the rights of a restore,
makes them as a restore does, and the processes that had them get them at the same descriptors.
"""

import os
import signal
import socket
import struct
from collections.abc import Sequence
from contextlib import ExitStack

from woodfrog.engine import connections, outsiders, root_stub
from woodfrog.engine.admission import Bounds
from woodfrog.engine.looking import Looked
from woodfrog.engine.making_files import Making
from woodfrog.engine.making_namespaces import MadeNamespaces
from woodfrog.engine.plan import Plan
from woodfrog.engine.standing import Match, Standing
from woodfrog.errors import while_
from woodfrog.image.record import tag_of
from woodfrog.kernel import ptrace, syscalls
from woodfrog.kernel.procfs.maps import read_maps
from woodfrog.kernel.ptrace import Event
from woodfrog.remote import descriptors
from woodfrog.remote.address import free_range
from woodfrog.remote.stub import Stub
from woodfrog.remote.vdso import Vdso
from woodfrog.resources import credentials, namespaces
from woodfrog.resources.descriptor import Descriptor
from woodfrog.resources.files.base import DescriptorTable

_RIGHTS_AT_ONCE = 200
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
        self._init, self._plan, self._match, self._looked = init, plan, match, looked
        self._bounds = bounds
        self._undo = undo
        self.missing: list[str] = []
        used = {one.namespace_pid for one in looked.tree.tasks()}
        used |= {one.namespace_pid for one in looked.tree.zombies}
        used |= {thread.tid for one in plan.processes for thread in one.threads}
        self._spare = max(used) + 1
        with while_("bringing a process into the container that makes files"):
            self._stub = self._bring_in(vdso)
            self._making = self._begin()
        self._silence: connections.Silence | None = None

    def _bring_in(self, vdso: Vdso) -> Stub:
        pid = outsiders.clone_inside(self._init, self._spare)
        self._passing = [pid]
        self._undo.callback(self.end)
        place = free_range([(m[0], m[1]) for m in read_maps(pid)], root_stub.STUB_BYTES + 4096)
        nothing = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        try:
            stub, _ = root_stub.make(
                pid,
                place.start,
                root_stub.STUB_BYTES,
                vdso,
                high=self._plan.room_for_descriptors(1 << 20).start,
                pages=nothing,
                time_offsets=None,
            )
        finally:
            os.close(nothing)
        self._undo.callback(stub.close)
        return stub

    def _begin(self) -> Making:
        _, most = root_stub.raise_descriptor_limit(self._stub.pid)
        return Making(
            self._stub,
            self._plan.room_for_descriptors(most),
            capabilities=self._bounds.bounding,
            permitted=credentials.permitted_set(self._stub.pid),
            tcp_close=self._bounds.tcp_close,
            undo=self._undo,
            new_network="network" in self._bounds.new_namespaces,
            namespaces=MadeNamespaces(self._stub, _no_mounts, {}, self._undo),
            may_force_buffers=namespaces.is_ours(self._init, "user"),
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
        for file, record in zip(looked.files.files, looked.file_records, strict=True):
            if record.id in kept:
                continue
            connection = getattr(record, "connection", None)
            if tag_of(record) == "tcp-socket" and connection is not None and not connection.outside:
                with socket.socket(fileno=os.dup(file.descriptor)) as one:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
            file.close()

    def make(self, stubs: Sequence[tuple[Standing, Stub]]) -> None:
        """Make the files, and give each process its own. What they replace is closed by now."""
        records = [*self._match.remade.values()]
        connected = [
            one
            for one in self._plan.files_of("tcp-socket")
            if one.id in self._match.remade and one.connection and not one.connection.outside
        ]
        new_network = "network" in self._bounds.new_namespaces
        self._silence = connections.Silence(self._init, connected, {}, new_network=new_network)
        self._undo.enter_context(self._silence)
        self._making.make_files(records, (), {})
        self.missing += self._making.missing
        ours: dict[int, int] = {}
        for standing, stub in stubs:
            wanted = standing.lacking_descriptors(self._match)
            for one in wanted:
                if one.file not in ours:
                    ours[one.file] = self._fetch(one.file, stubs)
            with while_(f"giving files to {standing.held.name}"):
                _give(stub, [(ours[one.file], one) for one in wanted])
        for standing, stub in stubs:
            self._connect(standing, stub)

    def _fetch(self, file: int, stubs: Sequence[tuple[Standing, Stub]]) -> int:
        """Return a descriptor of ours of a file that was made, or that somebody still has."""
        if file in self._making.files:
            fd = descriptors.fetch(self._stub.pid, self._making.files[file])
        else:
            fd = next(
                descriptors.fetch(stub.pid, one.number)
                for standing, stub in stubs
                for one in standing.then.descriptors
                if one.file == file and one not in standing.lacking_descriptors(self._match)
            )
        self._undo.callback(os.close, fd)
        return fd

    def _connect(self, standing: Standing, stub: Stub) -> None:
        """Tie files that were made to those that they point at."""
        slots = standing.then.descriptors
        table = DescriptorTable(
            {one.number: one.file for one in slots}, frozenset(s.number for s in slots if s.cloexec)
        )
        program = stub.program()
        for number, file in table.files.items():
            record = self._match.remade.get(file)
            if record and record.ties() and file not in self._match.watched:
                self._match.watched.add(file)
                record.connect(program, number, table)
        with while_(f"connecting the files of {standing.held.name}"):
            stub.run(program)

    def complete(self) -> None:
        """Do what must come last of all."""
        if self._silence is not None:
            self._silence.end()
        self._making.complete()

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
    """Give a process descriptors of ours, under its own numbers."""
    for first in range(0, len(wanted), _RIGHTS_AT_ONCE):
        some = wanted[first : first + _RIGHTS_AT_ONCE]
        taken = {slot.number for _, slot in wanted}
        program = stub.program()
        got = descriptors.give(stub, [ours for ours, _ in some])
        # First out of the way: they came where there was room.
        high = [syscalls.duplicate_above(program, one, max(taken) + 1) for one in got]
        for one in got:
            syscalls.close(program, one)
        for fd, (_, slot) in zip(high, some, strict=True):
            syscalls.duplicate_to(program, fd, slot.number, cloexec=slot.cloexec)
            syscalls.close(program, fd)
        stub.run(program)


def _no_mounts(*how: object) -> None:
    raise AssertionError("a rollback makes no mounts")
