"""BODY and CONNECT: what each process is made of, and how it is tied to others."""

import fcntl
import os
import struct
import termios
from collections.abc import Callable, Collection, Mapping, Sequence

from woodfrog.engine import inheriting, reading_pages, root_stub
from woodfrog.engine.admission import Plan
from woodfrog.engine.inheriting import Inherited
from woodfrog.engine.making_files import Making
from woodfrog.engine.making_namespaces import MadeNamespaces
from woodfrog.engine.template import Staged
from woodfrog.errors import while_
from woodfrog.kernel import ptrace, syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.process import PR_SET_NAME
from woodfrog.kernel.procfs.id_maps import IdMaps
from woodfrog.kernel.ptrace import Event
from woodfrog.remote.program import Program
from woodfrog.remote.side_by_side import SideBySide
from woodfrog.remote.stub import OPTIONS, Stub, await_birth
from woodfrog.resources import (
    aio,
    credentials,
    descriptor,
    file_signals,
    login,
    memory_fields,
    memory_making,
    memory_modes,
    placed_mappings,
    process,
    seccomp_filters,
    signals,
    sysv_memory,
    threads,
    timers,
)
from woodfrog.resources.memory import PageRange
from woodfrog.resources.other_vdso import OtherVdso
from woodfrog.resources.process import Lock, Process
from woodfrog.resources.sysv_memory import Segment

# CLONE_VM | FS | FILES | SIGHAND | THREAD | SYSVSEM
_THREAD = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000 | 0x40000
_F_OFD_SETLK = 37


class Body:
    """A process on its way from a stub to itself. `tasks[0]`, the stub, is its first thread.

    `profile` is the new container's own seccomp filter; `other_vdso` that of the image's kernel, if
    it isn't this one's. `pages` are those that it gets before it runs; `inherited` is what its stub
    has of them in place, `staged` what it is to move there.
    """

    def __init__(
        self,
        record: Process,
        stub: Stub,
        profile: bytes | None,
        other_vdso: OtherVdso | None,
        pages: Sequence[PageRange],
        inherited: Inherited,
        staged: Sequence[Staged],
        namespaces: MadeNamespaces,
        *,
        waits_for_others: bool,
    ) -> None:
        self._waits_for_others = waits_for_others
        self._namespaces = namespaces
        self._profile = profile
        self._other_vdso = other_vdso
        self._vdso_text = b""
        # With what its stub was born with, this is what its memory lacks.
        self._rest = inheriting.reconcile(inherited, record.memory, pages)
        self._staged = staged
        self._ready = {one.start: one.at for one in staged}
        self.record = record
        self.stub = stub
        self.tasks: list[Stub] = [stub]
        self._running: Program | None = None

    @property
    def name(self) -> str:
        return f"process {self.record.pid}"

    @property
    def lacking(self) -> reading_pages.Space:
        """Return the pages that are to be filled in."""
        return reading_pages.Space(self.stub, self.record.memory.mappings, self._rest.pages)

    @property
    def shares_much(self) -> bool:
        """Whether it must not be made beside others: it has another's memory or descriptors."""
        return bool(self.record.shares.memory or self.record.shares.descriptors)

    @property
    def highest_descriptor(self) -> int:
        return max((slot.number for slot in self.record.descriptors), default=2)

    def start(self, making: Making, segments: Mapping[int, Segment]) -> None:
        """Set the making of descriptors and mappings going."""
        record, program = self.record, self.stub.program()
        high = making.high
        if not record.shares.descriptors:
            syscalls.close_range(program, 0, high - 1)
        for slot in record.descriptors:
            made = making.files.get(slot.file)
            if made is not None:  # else it comes later
                syscalls.duplicate_to(program, made, slot.number, cloexec=slot.cloexec)
        if not record.shares.memory:
            self._map(program, making, segments)
        self._run(program)

    def _map(self, program: Program, making: Making, segments: Mapping[int, Segment]) -> None:
        space, rest, keep = self.record.memory, self._rest, self.stub.area
        staged = [(one.at, one.at + one.length) for one in self._staged]
        there = [keep, *rest.kept, *staged]
        memory_making.unmap_all(program, there)
        placed_mappings.restore(program, space, making.files, there)
        if self._other_vdso is None:
            memory_fields.map_vdso(program, space)
        elif space.vdso_text:
            self._vdso_text = self._other_vdso.map(program, space, keep)
        sysv_memory.attach(program, space, segments, keep)
        memory_making.map_opened(program, space.mappings, making.files)
        self._limit_rights(program, making)
        memory_making.restore_mappings(
            program, rest.mappings, space.pages, making.mapped, self._ready
        )
        memory_making.advise(program, space.mappings)
        memory_making.drop(program, rest.dropped)
        self._regain_rights(program, making)

    def _limit_rights(self, program: Program, making: Making) -> None:
        """Have calls made with what the new container may have.

        Who was born in a nested user namespace has no more, and keeps what it has there.
        """
        if self._namespaces.born_ids(self.record.pid) is None:
            credentials.set_effective(program, making.capabilities, making.permitted)

    def _regain_rights(self, program: Program, making: Making) -> None:
        if self._namespaces.born_ids(self.record.pid) is None:
            credentials.set_effective(program, making.permitted, making.permitted)

    def complete(self, making: Making) -> None:
        """Set going what is done to memory that has its pages."""
        program = self.stub.program()
        if not self.record.shares.memory:
            self._protect(program, making)
        if not self._waits_for_others:
            self._leave_stub_behind(program, making)
        self._run(program)

    def _protect(self, program: Program, making: Making) -> None:
        space = self.record.memory
        self._limit_rights(program, making)
        memory_making.install_guards(program, space)
        writable = self._rest.starts | self._ready.keys()
        memory_making.protect(program, space.mappings, space.pages, writable)
        memory_modes.restore(program, self.record.modes)
        self._regain_rights(program, making)
        executable = space.executable_object
        memory_fields.restore_fields(program, space, making.objects.get(executable))

    def _run(self, program: Program) -> None:
        with while_(f"making the memory of {self.name}"):
            self.stub.start(program)
        self._running = program

    def _leave_stub_behind(self, program: Program, making: Making) -> None:
        """Go to the working directory, and close what only stubs need."""
        if not self.record.shares.directory:
            process.restore_directories(program, self.record, making.memory_object)
        if not self.record.shares.descriptors and len(self.record.tables) == 1:
            syscalls.close_range(program, making.high, 0xFFFFFFFF)

    def separate_tables(self, making: Making) -> None:
        """Give threads that have a table of descriptors of their own what was in it."""
        if len(self.record.tables) == 1:
            return
        at = making.files | {one.file: one.number for one in self.record.descriptors}
        above = max(at.values()) + 1
        with while_(f"making the descriptors of threads of {self.name}"):
            for task, thread in zip(self.tasks, self.record.threads, strict=True):
                if thread.descriptors is not None:
                    program = task.program()
                    descriptor.separate(program, thread.descriptors, at, above)
                    task.run(program)
            if not self.record.shares.descriptors:
                program = self.stub.program()
                syscalls.close_range(program, making.high, 0xFFFFFFFF)
                self.stub.run(program)

    def leave_stub_behind(self, making: Making) -> None:
        """Do that when all have what they need, if some share their descriptors or directory."""
        if self._waits_for_others:
            program = self.stub.program()
            self._leave_stub_behind(program, making)
            with while_(f"restoring the directories of {self.name}"):
                self.stub.run(program)

    def finish(self) -> None:
        """Wait until what was set going is done."""
        assert self._running is not None
        with while_(f"making the memory of {self.name}"):
            self.stub.finish(self._running)
        self._running = None

    def write_memory_fields(self) -> None:
        """Write what is written from outside."""
        space = self.record.memory
        if self.record.shares.memory:
            return
        aio.fill(self.stub.memory, space.contexts)
        if self._vdso_text:
            os.pwrite(self.stub.memory, self._vdso_text, space.vdso_text)
        memory_fields.write_core_dump_filter(self.stub.pid, space.core_dump_filter)

    def remove_segments(self, segments: Mapping[int, Segment]) -> None:
        """Remove the System V shared memory that had been, now that it is attached."""
        program = self.stub.program()
        sysv_memory.remove(program, segments.values())
        self.stub.run(program)

    def set_login(self, bounding: int, maps: IdMaps | None) -> list[str]:
        """Belong to the login that it belonged to; returns what is missing otherwise."""
        user = self.record.login.uid if self.record.login else None
        if user is not None and maps:
            user = maps.users.outside(user)
        if user is None:
            return []
        if not login.may_be_set(self.stub.pid, bounding):
            return [f"{self.name} belongs to the login of whoever restores it (loginuid)"]
        file = os.open(f"/proc/{self.stub.pid}/loginuid", os.O_WRONLY | os.O_CLOEXEC)
        try:
            theirs = root_stub.send(self.stub, [file])[0]
        finally:
            os.close(file)
        program = self.stub.program()
        login.restore(program, theirs, user)
        syscalls.close(program, theirs)
        with while_(f"setting the login of {self.name}"):
            self.stub.run(program)
        return []

    def make_threads(self) -> None:
        """Make all threads; filters that all of them share are installed first, and inherited."""
        if self.record.ended_thread:
            self._replace_first_thread(self.record.ended_thread)
        if any(thread.seccomp or self.filters(thread) for thread in self.record.threads):
            ptrace.set_options(self.stub.pid, OPTIONS | ptrace.O_SUSPEND_SECCOMP)
        program = self.stub.program()
        seccomp_filters.restore(program, seccomp_filters.FILTER, self.common_filters, inherited=0)
        with while_(f"making the threads of {self.name}"):
            self.stub.run(program)
            self.tasks += self._namespaces.make_threads(self.stub, self.record, _THREAD)
            for task, thread in zip(self.tasks, self.record.threads, strict=True):
                self._namespaces.join_by_thread(
                    self.stub, task, thread.namespaces, self.record.namespaces
                )

    def _born_of(self, program: Program) -> list[Stub]:
        """Run a program that makes threads, and return those."""
        self.stub.born.clear()
        self.stub.run(program)
        for born in self.stub.born:
            await_birth(born)
        return [self.stub.task(born) for born in self.stub.born]

    def _replace_first_thread(self, ended: threads.EndedThread) -> None:
        """Have the first thread end, once it has made the second one, which stands for it now.

        It must not be held when it ends: only then its parent can wait for the process. Filters are
        installed later, so that they don't forbid its end.
        """
        first = self.stub
        program = first.program()
        syscalls.clone3(program, _THREAD, 0, self.record.threads[0].ids)
        with while_(f"making the end of the first thread of {self.name}"):
            self.tasks = self._born_of(program)
            self.stub = self.tasks[0]
            program = first.program()
            syscalls.prctl(program, PR_SET_NAME, ended.name)
            bounding = credentials.bounding_set(first.pid)
            credentials.restore(
                program,
                ended.credentials,
                present=bounding,
                no_new_privs=ended.credentials.no_new_privs,
                ids=ended.credentials,
            )
            first.run(program)
            first.exit(ended.status >> 8)

    def enter_user_namespace(self, permitted: int) -> None:
        """Go to the process's user namespace, if it is a nested one, before it has threads."""
        self._namespaces.enter_user_namespace(self.stub, self.record, permitted)

    def ids_to_take(self, thread: threads.Thread) -> credentials.Credentials | None:
        """Return what has the ids that a thread takes now; None: it has them already."""
        return self._namespaces.ids_to_take(self.record, thread)

    def leave_future(self) -> None:
        """Have threads set in which pid namespace their children will be, but no further thread."""
        for task, thread in zip(self.tasks, self.record.threads, strict=True):
            self._namespaces.set_future(self.stub, task, thread.namespaces)

    def filters(self, thread: threads.Thread) -> list[seccomp_filters.Filter]:
        """Return a thread's filters, oldest first, below the new container's own if it lacks that.

        Strict mode allows less than any profile, and takes no filter.
        """
        profile = self._profile
        if profile is None or thread.seccomp == seccomp_filters.STRICT:
            return thread.filters
        if thread.filters and thread.filters[0].instructions == profile:
            return thread.filters
        return [seccomp_filters.Filter(instructions=profile, log=False), *thread.filters]

    @property
    def common_filters(self) -> list[seccomp_filters.Filter]:
        """Return the filters that all threads have, oldest first."""
        chains = [self.filters(thread) for thread in self.record.threads]
        common = []
        for filters in zip(*chains, strict=False):
            if any(one != filters[0] for one in filters):
                break
            common.append(filters[0])
        return common

    def stop_again(self) -> None:
        """Stop the process by the signal that had stopped it, before its parent listens."""
        signal = self.record.stopped_by or (signals.SIGSTOP if self.record.continued else 0)
        if not signal:
            return
        pid = self.stub.pid
        mask = ptrace.signal_mask(pid)
        ptrace.set_signal_mask(pid, 0)
        os.kill(pid, signal)
        # The process has stopped, and its parent hears of it, when all its threads have.
        for task in self.tasks:
            ptrace.resume(task.pid)
            while True:
                status = ptrace.wait(task.pid)
                if status.event is Event.SIGNAL:
                    ptrace.resume(task.pid, status.signal)
                elif status.event is Event.STOPPED and status.signal == signal:
                    break
                else:
                    ptrace.resume(task.pid)
        if self.record.continued:
            # Taken by the kernel as it is sent; the threads run their next program from where they
            # are.
            os.kill(pid, signals.SIGCONT)
        ptrace.set_signal_mask(pid, mask)

    def forget_stops(self, bodies: Mapping[int, "Body"]) -> None:
        """Take the news that a child was stopped, as the parent had taken it."""
        stopped = [
            body.record.ids[len(self.record.ids) - 1]
            for body in bodies.values()
            if body.record.stop_heard and body.record.parent == self.record.pid
        ]
        if not stopped:
            return
        program = self.stub.program()
        for pid in stopped:
            wnohang, wuntraced = 1, 2
            program.may_fail(program.call(SYS.WAIT4, pid, 0, wnohang | wuntraced, 0))
        signals.forget_children(program)
        self.stub.run(program)

    def restore_signals(self, side: SideBySide) -> None:
        """Set actions and queues, and tell the kernel of each thread."""
        record = self.record
        for task, thread in zip(self.tasks, record.threads, strict=True):
            program = side.program(task)
            threads.restore(program, thread)
            if task is self.stub:
                # Any signal may be sent only by a thread to itself, be it for the whole process.
                if not record.shares.actions:
                    signals.restore_actions(program, record.actions, skip=signals.SIGTRAP)
                queue = timers.without_rung(record.pending, record.interval_timers)
                signals.restore_pending(program, thread.ids[-1], None, queue)
            signals.restore_pending(program, record.ids[-1], thread.ids[-1], thread.pending)
            side.run(task, program, f"restoring the signals of thread {thread.tid} of {self.name}")

    def make_timers(self) -> None:
        """Make POSIX timers."""
        for maker, first, some in timers.by_maker(self.record.posix_timers):
            task = self.tasks[maker - 1 if maker else 0]
            program = task.program()
            timers.create_posix_timers(program, some, first)
            with while_(f"making the timers of {self.name}"):
                task.run(program)

    def lock_files(self, locked: set[object], making: Making) -> None:
        """Take the locks that the process held."""
        files = {d.number: d.file for d in self.record.descriptors}
        program = self.stub.program()
        for lock in self.record.locks:
            if lock.how != "posix":
                key = (lock.how, files[lock.descriptor], lock.start, lock.length)
                if key in locked:
                    continue
                locked.add(key)
            if lock.how == "lease":
                self._take_lease(program, lock, making)
                continue
            if lock.how == "flock":
                how = (fcntl.LOCK_EX if lock.write else fcntl.LOCK_SH) | fcntl.LOCK_NB
                program.call(SYS.FLOCK, lock.descriptor, how)
                continue
            kind = fcntl.F_WRLCK if lock.write else fcntl.F_RDLCK
            request = struct.pack("<hhxxxxqqixxxx", kind, 0, lock.start, lock.length, 0)
            command = fcntl.F_SETLK if lock.how == "posix" else _F_OFD_SETLK
            program.call(SYS.FCNTL, lock.descriptor, command, request)
        with while_(f"taking the file locks of {self.name}"):
            self.stub.run(program)

    def _take_lease(self, program: Program, lock: Lock, making: Making) -> None:
        """Take a lease as the file's owner, or by a right that the container has itself."""
        kind = fcntl.F_WRLCK if lock.write else fcntl.F_RDLCK
        self._limit_rights(program, making)
        for user in (self.record.threads[0].credentials.uids[3], 0):
            program.call(SYS.SETFSUID, user)
            program.may_fail(program.call(SYS.FCNTL, lock.descriptor, fcntl.F_SETLEASE, kind))
        self._regain_rights(program, making)
        program.expect(program.call(SYS.FCNTL, lock.descriptor, fcntl.F_GETLEASE, 0), kind)

    def own_files(self, plan: Plan) -> None:
        """Have files send their signals to whom they sent them."""
        files = {d.number: plan.files[d.file] for d in self.record.descriptors}
        program = self.stub.program()
        for one in self.record.file_signals:
            owner = plan.pids.seen_by(self.record, one.owner) if one.owner else 0
            file_signals.restore(program, one, owner, files[one.descriptor].flags)
        with while_(f"setting who gets signals from the files of {self.name}"):
            self.stub.run(program)

    def take_terminal(self, plan: Plan) -> None:
        """Let a session have its terminal, and that its foreground group."""
        number = self.record.controlling
        path = plan.terminal(number) if number >= 0 else b""
        foreground = self.record.foreground_group
        if foreground:
            foreground = plan.pids.seen_by(self.record, foreground)
        if not path:
            self._take_foreground(foreground)
            return
        program = self.stub.program()
        terminal = syscalls.openat2(program, path, os.O_RDWR | os.O_NOCTTY)
        program.call(SYS.IOCTL, terminal, termios.TIOCSCTTY, 0)
        if foreground:
            group = struct.pack("<i", foreground)
            program.call(SYS.IOCTL, terminal, termios.TIOCSPGRP, group)
        syscalls.close(program, terminal)
        with while_(f"giving {self.name} its terminal"):
            self.stub.run(program)

    def _take_foreground(self, foreground: int) -> None:
        """Make a group, if there is one, the foreground one of the container's own terminal."""
        if not foreground:
            return
        program = self.stub.program()
        group = struct.pack("<i", foreground)
        terminal = syscalls.openat2(program, b"/dev/tty", os.O_RDWR | os.O_CLOEXEC)
        program.may_fail(terminal)
        program.may_fail(program.call(SYS.IOCTL, terminal, termios.TIOCSPGRP, group))
        program.may_fail(program.call(SYS.CLOSE, terminal))
        self.stub.run(program)


def make(
    plan: Plan,
    bodies: Collection[Body],
    making: Making,
    fill: Callable[[Collection[Body]], None],
) -> None:
    """Make descriptors, mappings and memory of all processes, side by side.

    Those that share memory or a table of descriptors come after its owner, one by one: each opens
    files. `fill` fills in the pages of memory that is mapped.
    """
    owners = [body for body in bodies if not body.shares_much]
    for body in owners:
        body.start(making, plan.segments_of(body.record))
    for body in owners:
        body.finish()
    for body in bodies:
        if body.shares_much:
            body.start(making, plan.segments_of(body.record))
            body.finish()
    fill([body for body in bodies if not body.record.shares.memory])
    for body in owners:
        body.complete(making)
    for body in owners:
        body.finish()
    for body in bodies:
        if body.shares_much:
            body.complete(making)
            body.finish()
        body.write_memory_fields()
    for body in bodies:
        body.leave_stub_behind(making)
