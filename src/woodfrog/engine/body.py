"""BODY and CONNECT: what each process is made of, and how it is tied to others."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from woodfrog.engine import inheriting, reading_pages
from woodfrog.engine.inheriting import Inherited
from woodfrog.engine.making_files import Making
from woodfrog.engine.making_namespaces import MadeNamespaces
from woodfrog.engine.plan import Plan
from woodfrog.errors import while_
from woodfrog.kernel import ptrace, syscalls
from woodfrog.kernel.process import PR_SET_NAME
from woodfrog.kernel.procfs.maps import find_vdso
from woodfrog.remote.program import Program
from woodfrog.remote.side_by_side import SideBySide
from woodfrog.remote.stub import OPTIONS, Stub, await_birth
from woodfrog.resources import (
    aio,
    credentials,
    memory_fields,
    memory_making,
    memory_modes,
    placed_mappings,
    process,
    seccomp_filters,
    signals,
    threads,
    timers,
)
from woodfrog.resources.memory import PageRange, Source
from woodfrog.resources.process import Process

if TYPE_CHECKING:
    from woodfrog.engine.alike import Alike
    from woodfrog.engine.template import Staged
    from woodfrog.resources.other_vdso import OtherVdso
    from woodfrog.resources.sysv_memory import Segment

# CLONE_VM | FS | FILES | SIGHAND | THREAD | SYSVSEM
THREAD = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000 | 0x40000


class Body:
    """A process on its way from a stub to itself. `tasks[0]`, the stub, is its first thread.

    `profile` is the new container's own seccomp filter; `other_vdso` that of the image's kernel, if
    it isn't this one's. `pages` are those that it gets before it runs; `inherited` is what its stub
    has of them in place, `staged` what it is to move there. With `alike`, others are made of this
    record, too.
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
        clocks_go_on: bool,
        alike: Alike | None = None,
    ) -> None:
        self._waits_for_others = waits_for_others
        self._namespaces = namespaces
        self._profile = profile
        self._other_vdso = other_vdso
        self._vdso_text = b""
        # With what its stub was born with, this is what its memory lacks.
        self._rest = inheriting.reconcile(inherited, record.memory, pages)
        self._staged = staged
        self._alike = alike
        self._ready = {one.start: (one.at, one.ready) for one in staged}
        self.record = record
        self.posix_timers = record.posix_timers
        if not clocks_go_on:
            self.posix_timers = timers.by_other_clocks(record.posix_timers)
        self.stub = stub
        self.tasks: list[Stub] = [stub]
        self.has_program = False  # it has executed what it is to run
        self._running: Program | None = None
        # That of its address space, which it gets last, if it differs.
        self.space_limit: tuple[int, int] | None = None

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
        staged = [(one.at, one.at + one.ready) for one in self._staged]
        there = [keep, *rest.kept, *staged]
        memory_making.unmap_all(program, there)
        placed_mappings.restore(program, space, making.files, there)
        if self._other_vdso is None:
            memory_fields.map_vdso(program, space)
        elif space.vdso_text:
            self._vdso_text = self._other_vdso.map(program, space, keep)
        if segments:
            from woodfrog.resources import sysv_memory

            sysv_memory.attach(program, space, segments, keep)
        memory_making.map_opened(program, space.mappings, making.files)
        self._limit_rights(program, making)
        shared = (one for one in rest.mappings if one.source is Source.SHARED)
        objects = tuple(making.mapped(one.object, one.writable) for one in shared)
        self._add(program, "mappings", lambda part: self._add_mappings(part, making), objects)
        self._regain_rights(program, making)

    def _add_mappings(self, program: Program, making: Making) -> None:
        space, rest = self.record.memory, self._rest
        memory_making.restore_mappings(
            program, rest.mappings, space.pages, making.mapped, self._ready
        )
        memory_making.advise(program, space.mappings)
        memory_making.drop(program, rest.dropped)
        for one in self._staged:
            memory_making.drop(program, one.dropped)

    def _add(
        self,
        program: Program,
        what: str,
        compile: Callable[[Program], None],
        made_of: object = (),
    ) -> None:
        """Add calls that are the same for all that are made of this record, and of `made_of`."""
        if self._alike:
            self._alike.add(program, self.record.pid, what, compile, made_of)
        else:
            compile(program)

    def _limit_rights(self, program: Program, making: Making) -> None:
        """Have calls made with what the new container may have.

        Who was born in a nested user namespace has no more, and keeps what it has there.
        """
        if self._namespaces.users.born_ids(self.record.pid) is None:
            credentials.set_effective(program, making.capabilities, making.permitted)

    def _regain_rights(self, program: Program, making: Making) -> None:
        if self._namespaces.users.born_ids(self.record.pid) is None:
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
        self._add(program, "protections", self._add_protections)
        memory_modes.restore(program, self.record.modes)
        self._regain_rights(program, making)
        executable = space.executable_object
        memory_fields.restore_fields(
            program, space, making.objects.get(executable), by_program=not self.has_program
        )

    def _add_protections(self, program: Program) -> None:
        space = self.record.memory
        memory_making.install_guards(program, space)
        writable = self._rest.starts | self._ready.keys()
        memory_making.protect(program, space.mappings, space.pages, writable)

    def _run(self, program: Program) -> None:
        with while_(f"making the memory of {self.name}"):
            self.stub.start(program)
        self._running = program

    def _leave_stub_behind(self, program: Program, making: Making) -> None:
        """Go to the working directory, and close what only stubs need."""
        if not self.record.shares.directory:
            process.restore_directories(program, self.record, making.memory_object)
        if not self.record.shares.descriptors and len(self.record.tables) == 1:
            making.leave_room(program, (one.number for one in self.record.descriptors))

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
        if space.finishes_calls:
            from woodfrog.remote import cut_calls

            end = space.vdso_text + len(self._vdso_text)
            if not self._vdso_text:
                _, end = find_vdso(self.stub.pid)
            cut_calls.put(self.stub.memory, end)
        memory_fields.write_core_dump_filter(self.stub.pid, space.core_dump_filter)

    def remove_segments(self, segments: Mapping[int, Segment]) -> None:
        """Remove the System V shared memory that had been, now that it is attached."""
        if not segments:
            return
        from woodfrog.resources import sysv_memory

        program = self.stub.program()
        sysv_memory.remove(program, segments.values())
        self.stub.run(program)

    def make_threads(self) -> None:
        """Make all threads; filters that all of them share are installed first, and inherited."""
        if self.record.ended_thread:
            self._replace_first_thread(self.record.ended_thread)
        options = OPTIONS
        if any(thread.seccomp or self.filters(thread) for thread in self.record.threads):
            options |= ptrace.O_SUSPEND_SECCOMP
            ptrace.set_options(self.stub.pid, options)
        program = self.stub.program()
        seccomp_filters.restore(program, seccomp_filters.FILTER, self.common_filters, inherited=0)
        with while_(f"making the threads of {self.name}"):
            self.stub.run(program)
            self.tasks += self._namespaces.users.make_threads(
                self.stub, self.record, THREAD, options
            )
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
        syscalls.clone3(program, THREAD, 0, self.record.threads[0].ids)
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
        self._namespaces.users.enter(self.stub, self.record, permitted)

    def ids_to_take(self, thread: threads.Thread) -> credentials.Credentials | None:
        """Return what has the ids that a thread takes now; None: it has them already."""
        return self._namespaces.users.ids_to_take(self.record, thread)

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
                intervals = record.interval_timers
                queue = timers.without_rung(record.pending, intervals, self.posix_timers)
                signals.restore_pending(program, thread.ids[-1], None, queue)
            queue = timers.without_rung(thread.pending, [], self.posix_timers)
            signals.restore_pending(program, record.ids[-1], thread.ids[-1], queue)
            side.run(task, program, f"restoring the signals of thread {thread.tid} of {self.name}")

    def make_timers(self) -> None:
        """Make POSIX timers."""
        for maker, first, some in timers.by_maker(self.posix_timers):
            task = self.tasks[maker - 1 if maker else 0]
            program = task.program()
            timers.create_posix_timers(program, some, first)
            with while_(f"making the timers of {self.name}"):
                task.run(program)


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
