"""Processes of an image that have ended since: they are born again among those that still stand.

Whose parent stands is born of it, and has no rights but those that it gives: it executes the
program that it was, so that /proc/PID/exe is right, and is then made like a process that is
restored. Which id it gets is said by the passing process that makes files. One that `exec` had
brought in comes from outside again, with its children.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from woodfrog.engine import (
    belongings,
    finishing,
    outsiders,
    passing,
    reading_pages,
    root_stub,
    terminals,
)
from woodfrog.engine import body as body_module
from woodfrog.engine.birth_room import limits_at_birth, refuse_narrow
from woodfrog.engine.body import THREAD, Body
from woodfrog.engine.finishing import Release
from woodfrog.engine.inheriting import Inherited
from woodfrog.errors import UnsupportedResource, WoodfrogError, while_
from woodfrog.kernel import ptrace, syscalls
from woodfrog.kernel.abi.x86_64 import PAGE, SYS
from woodfrog.kernel.process import PR_SET_NAME
from woodfrog.kernel.procfs.maps import read_maps
from woodfrog.kernel.procfs.status import read_status
from woodfrog.kernel.ptrace import Event
from woodfrog.remote import stub as stubs_module
from woodfrog.remote.address import free_range
from woodfrog.remote.program import LOOP
from woodfrog.remote.side_by_side import SideBySide
from woodfrog.remote.socket_waits import Shortened
from woodfrog.remote.stub import Stub, StubError, await_birth
from woodfrog.remote.vdso import Vdso, vdso_of
from woodfrog.resources import (
    credentials,
    ids,
    keyrings,
    limits,
    memory_fields,
    scheduling,
    signals,
    threads,
)
from woodfrog.resources import process as process_module
from woodfrog.resources.limits import Limit

if TYPE_CHECKING:
    from woodfrog.engine.admission import Bounds
    from woodfrog.engine.pids import Member
    from woodfrog.engine.plan import Plan
    from woodfrog.engine.remaking import Remaking
    from woodfrog.engine.standing import Match
    from woodfrog.image.chain import Chain
    from woodfrog.resources.process import Process

_PATIENCE_S = 10.0
_READ_WRITE, _READ_EXECUTE = 3, 5
_PRIVATE_ANONYMOUS_FIXED = 0x32
_AT_FDCWD = -100


class Rebirth:
    """Makes the processes that a match lacks. What it has made by then, `end` ends."""

    def __init__(
        self,
        plan: Plan,
        match: Match,
        image: Chain,
        bounds: Bounds,
        vdso: Vdso,
        remaking: Remaking,
    ) -> None:
        self._plan, self._match, self._image = plan, match, image
        self._bounds, self._vdso, self._remaking = bounds, vdso, remaking
        self._bodies: dict[int, Body] = {}
        self._releases: list[Release] = []
        # Those with the rights of a restore, and no others.
        self._from_outside: set[int] = set()
        # The limits of the others, before they are given room to be made.
        self._limits = limits_at_birth(match.lost, match.processes)
        self._born: list[int] = []
        self._refuse_over_limit()
        refuse_narrow(match.lost, self._limits)

    def _refuse_over_limit(self) -> None:
        """Refuse what would be too many tasks: the last ones couldn't be made."""
        tasks = sum(len(one.threads) + bool(one.ended_thread) for one in self._plan.processes)
        tasks += len(self._plan.zombies)
        # One is made by a helper, which is there as well.
        tasks += any(not one.parent for one in self._match.lost)
        most = outsiders.most_tasks(self._remaking.init)
        if most is not None and tasks > most:
            raise UnsupportedResource(
                f"making its processes again needs room for {tasks} tasks, and the container may"
                f" have {most}",
                hint="`woodfrog update --pids-limit` changes that",
            )

    def make(self, standing: Mapping[int, Stub]) -> None:
        """Make them, up to what only the last moment can do; `standing` are those of the rest."""
        self._await_free_ids()
        stubs = dict(standing)
        for record in self._match.lost:
            with while_(f"making process {record.pid} again"):
                stub = self._bear(record, stubs)
                stubs[record.pid] = stub
                self._bodies[record.pid] = self._body(record, stub)
        for zombie in self._match.lost_zombies:
            with while_(f"making process {zombie.pid} again, which had ended"):
                stubs[zombie.pid] = self._clone(zombie, stubs[zombie.parent])
        members: list[Member] = [*self._match.lost, *self._match.lost_zombies]
        for one in members:
            if one.group != one.pid:
                program = stubs[one.pid].program()
                program.call(SYS.SETPGID, 0, one.group)
                with while_(f"setting the process group of process {one.pid}"):
                    stubs[one.pid].run(program)
        self._bury(stubs)
        self._make_bodies()
        self._limit()

    def _await_free_ids(self) -> None:
        """Wait until others have taken note of the end of those who had the ids since."""
        wanted = {thread.tid for record in self._match.lost for thread in record.threads}
        deadline = time.monotonic() + _PATIENCE_S
        for one in self._match.extra_processes:
            while one.namespace_pid in wanted and os.path.exists(f"/proc/{one.group}"):
                if time.monotonic() > deadline:
                    raise WoodfrogError(
                        f"process {one.namespace_pid} has ended, and its parent, outside the"
                        " container, doesn't take note of it"
                    )
                time.sleep(0.001)

    def _bear(self, record: Process, stubs: Mapping[int, Stub]) -> Stub:
        if not record.parent:
            return self._bring_in(record, stubs[1])
        stub = self._clone(record, stubs[record.parent])
        if record.parent in self._from_outside:
            self._from_outside.add(record.pid)
        else:
            root_stub.raise_own_memory_limits(stub)
            stub = self._executed(record, stub)
            root_stub.raise_own_descriptor_limit(stub)
            self._remaking.hand_files(stub)
            # It has no rights to give up, nor to take.
            self._remaking.users.note_birth(record, 0, record.threads[0].credentials)
        program = stub.program()
        process_module.restore_attributes(program, record)
        if record.session == record.pid:
            terminals.take(program, self._plan, record)
        stub.run(program)
        return stub

    def _clone(self, record: Member, parent: Stub) -> Stub:
        """Have a parent make a child of this id, in a session or group of its own if it had that.

        It has its parent's memory.
        """
        options = stubs_module.OPTIONS
        if read_status(f"/proc/{parent.pid}")["Seccomp"] != "0":
            options |= ptrace.O_SUSPEND_SECCOMP
        ptrace.set_options(parent.pid, options)
        self._remaking.users.bear(parent, 0, record.exit_signal, [record.pid])
        born = parent.born[-1]
        self._born.append(born)
        await_birth(born)
        stub = Stub(born, parent.base, parent.size)
        program = stub.program()
        if record.session == record.pid:
            program.call(SYS.SETSID)
        elif record.group == record.pid:
            program.call(SYS.SETPGID, 0, 0)
        stub.run(program)
        return stub

    def _bury(self, stubs: dict[int, Stub]) -> None:
        """Have those end again that had ended; nobody hears of it more than they had heard."""
        for zombie in self._match.lost_zombies:
            stub = stubs.pop(zombie.pid)
            program = stub.program()
            syscalls.prctl(program, PR_SET_NAME, zombie.name)
            stub.run(program)
            passing.end_by(stub, zombie.status)
            stub.close()
            self._born.remove(stub.pid)
            program = stubs[zombie.parent].program()
            signals.forget_children(program, {zombie.exit_signal})
            stubs[zombie.parent].run(program)

    def _bring_in(self, record: Process, first: Stub) -> Stub:
        """Make a process that `exec` had brought in."""
        stub = self._remaking.bring_in(record.pid)
        self._born.append(stub.pid)
        self._from_outside.add(record.pid)
        program = first.program()
        ask = keyrings.ask_own_name(program)
        first.run(program)
        program = stub.program()
        if name := ask():
            keyrings.join_by_name(program, name)
        process_module.restore_attributes(program, record)
        program.call(SYS.SETSID)
        stub.run(program)
        return stub

    def _executed(self, record: Process, newborn: Stub) -> Stub:
        """Have a newborn process execute its program, and be a stub before its first instruction.

        The program itself is never run: all that it has mapped goes.
        """
        newborn.close()
        pid = newborn.pid
        injection = root_stub.Injection(pid, self._vdso)
        path = injection.put(record.memory.executable + b"\0", PAGE)
        # Nobody waits for the other end of a FIFO that has taken its place.
        flags = os.O_PATH | os.O_CLOEXEC
        program = injection.call(SYS.OPENAT, _AT_FDCWD, path, flags)
        injection.execute(program)
        ptrace.resume_to_call(pid)
        status = ptrace.wait(pid)
        if status.event is not Event.CALL:
            raise StubError(f"process {pid} did not execute its program: {status}")
        ptrace.set_signal_mask(pid, stubs_module.MASK)
        used = [(one.start, one.end) for one in record.memory.mappings]
        used += self._plan.used_memory() + [(m[0], m[1]) for m in read_maps(pid)]
        size = root_stub.STUB_BYTES
        base = free_range(used, size + PAGE).start
        stub = Stub(pid, base, size)
        instruction = vdso_of(pid) + self._vdso.syscall
        for start, length, protection in (
            (base, PAGE, _READ_EXECUTE),
            (base + PAGE, size, _READ_WRITE),
        ):
            how = (start, length, protection, _PRIVATE_ANONYMOUS_FIXED, -1, 0)
            stub.call_at(instruction, SYS.MMAP, *how)
        os.pwrite(stub.memory, LOOP, base)
        return stub

    def _body(self, record: Process, stub: Stub) -> Body:
        from_outside = record.pid in self._from_outside
        kind = Body if from_outside else _Reborn
        if not from_outside:
            # It was born with those of its parent.
            bare = [msgspec.structs.replace(one, filters=[]) for one in record.threads]
            record = msgspec.structs.replace(record, threads=bare)
        body = kind(
            record,
            stub,
            self._bounds.seccomp if from_outside else None,
            self._plan.other_vdso,
            record.memory.pages,
            Inherited(),
            (),
            self._remaking.namespaces,
            waits_for_others=False,
            clocks_go_on=True,
        )
        body.has_program = not from_outside
        return body

    def _make_bodies(self) -> None:
        making, bodies = self._remaking.making, [*self._bodies.values()]

        def fill(some: object) -> None:
            reading_pages.fill(self._image, [body.lacking for body in bodies])

        body_module.make(self._plan, bodies, making, fill)
        for body in bodies:
            if body.record.pid in self._from_outside:
                making.missing += belongings.set_login(body, self._bounds.bounding, None)
            body.make_threads()
        side = SideBySide()
        for body in bodies:
            body.restore_signals(side)
        side.finish()
        for body in bodies:
            body.make_timers()
        self._remaking.connect([(body.name, body.record.descriptors, body.stub) for body in bodies])

    def _limit(self) -> None:
        """Give them their limits and rights."""
        default = scheduling.collect(self._remaking.init)
        full = [one for pid, one in self._bodies.items() if pid in self._from_outside]
        most = self._remaking.most_descriptors
        finishing.restore_limits(full, self._bounds, default, [], descriptors=most)
        for pid, body in self._bodies.items():
            if pid not in self._from_outside:
                with while_(f"restoring the limits and credentials of {body.name}"):
                    _limit_reborn(body, default, self._limits[pid])
            finishing.restore_last(body)

    def settle(self) -> None:
        """Bring them to where they only have to be let go."""
        side = SideBySide()
        self._releases = [Release(body, self._vdso) for body in self._bodies.values()]
        for release in self._releases:
            release.arm(side)
        side.finish()
        for release in self._releases:
            release.expand_state()
            release.leave_stub()
            release.settle()

    def let_go(self) -> None:
        """Let them run."""
        waits = (wait for release in self._releases for wait in release.waits_at_sockets())
        shortened = Shortened(waits)
        finishing.let_all_go(self._releases)
        self._born.clear()
        shortened.restore()
        for release in self._releases:
            release.body.stub.close()

    def end(self) -> None:
        """End what there is of them, when all has failed."""
        for pid in self._born:
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + _PATIENCE_S
        left = {task.pid for body in self._bodies.values() for task in body.tasks} | {*self._born}
        while left and time.monotonic() < deadline:
            for pid in [*left]:
                try:
                    status = ptrace.poll(pid)
                except ChildProcessError:
                    left.remove(pid)
                    continue
                if status is not None and status.event in (Event.EXITED, Event.KILLED):
                    left.remove(pid)


class _Reborn(Body):
    """A process with no more rights than its parent."""

    def make_threads(self) -> None:
        """Make all threads; their filters they have from the process's parent."""
        users = self._namespaces.users
        for thread in self.record.threads[1:]:
            with while_(f"making thread {thread.tid} of {self.name}"):
                users.bear(self.stub, THREAD, 0, thread.ids)
                born = self.stub.born[-1]
                await_birth(born)
                self.tasks.append(self.stub.task(born))


def _limit_reborn(body: Body, default: scheduling.Scheduling, born_with: list[Limit]) -> None:
    """Set what differs from what the process was born with, by its own rights.

    The limits that it was `born_with` are those before it was given room to be made.
    """
    record, pid = body.record, body.stub.pid
    if record.oom_score_adj != process_module.read_oom_score_adj(f"/proc/{pid}"):
        finishing.set_oom_score_adj(pid, record.oom_score_adj)
    present, bounds = limits.in_force(pid), limits.by_name(born_with)
    bounding, maps = credentials.bounding_set(pid), ids.maps_of(pid)
    for task, thread in zip(body.tasks, record.threads, strict=True):
        scheduling.restore(task.pid, thread.scheduling, default)
        program = task.program()
        if task is body.stub:
            memory_fields.lock_future(program, record.memory)
            finishing.restore_most_limits(program, body, present, bounds)
        asked = credentials.ask(program)
        task.run(program)
        now = ids.inside(asked(read_status(f"/proc/{task.pid}")), maps)
        program = task.program()
        if now != thread.credentials:
            credentials.restore(
                program,
                thread.credentials,
                present=bounding,
                no_new_privs=thread.credentials.no_new_privs,
                ids=thread.credentials,
            )
        threads.restore_pdeath_signal(program, thread)
        if task is not body.stub:
            threads.set_personality(program, thread)
        task.run(program)
