"""Set held processes back to what an image has of them: they are kept, not made again."""

import os
import struct
import time
from collections.abc import Iterable
from contextlib import ExitStack, nullcontext
from functools import partial

import msgspec

from woodfrog.engine import memory_room, reset_room, root_stub
from woodfrog.engine.differing import Pairs
from woodfrog.engine.looking import Looked
from woodfrog.engine.memory_room import Room
from woodfrog.engine.resetting_memory import MemoryReset
from woodfrog.engine.standing import IpcObject, Match, Standing
from woodfrog.errors import while_
from woodfrog.image.record import tag_of
from woodfrog.kernel import ptrace, syscalls
from woodfrog.kernel.abi.x86_64 import PAGE, SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.pagemap import Ranges
from woodfrog.kernel.procfs.maps import read_maps
from woodfrog.kernel.procfs.status import read_stat, read_status
from woodfrog.kernel.ptrace import NO_CALL, Event
from woodfrog.remote import cut_calls, stub
from woodfrog.remote.address import free_range
from woodfrog.remote.held import HeldTask
from woodfrog.remote.program import LOOP
from woodfrog.remote.scratch import SCRATCH_BYTES, Scratch
from woodfrog.remote.socket_waits import SocketWait
from woodfrog.remote.stub import Stub, StubError
from woodfrog.remote.vdso import Vdso
from woodfrog.resources import namespaces, page_sets, process, signals, threads, timers
from woodfrog.resources.files.epoll import Epoll
from woodfrog.resources.posix_queues import PosixQueue
from woodfrog.resources.signals import SIGTRAP
from woodfrog.resources.sysv_ipc import MessageQueue, Semaphores
from woodfrog.resources.threads import Thread
from woodfrog.resources.timers import IntervalTimer, PosixTimer

_SYSCALL = b"\x0f\x05"
_ALL_SIGNALS = ((1 << 64) - 1).to_bytes(8, "little")
_FD_CLOEXEC, _F_SETFD = 1, 2
_PATIENCE_S = 10.0
_STACK = struct.Struct("<QixxxxQ")
_SS_DISABLE = 2
_IPC_RMID = 0


class ProcessReset:
    """One process on its way back."""

    def __init__(self, one: Standing, pairs: Pairs, unwritten: Ranges | None, vdso: Vdso) -> None:
        self.one = one
        self._vdso = vdso
        with while_(f"comparing the memory of {one.held.name}"):
            self.memory = MemoryReset(one, pairs, unwritten)
        self._stub: Stub | None = None
        self._room = Room(one.held, vdso)
        self._lent = (0, 0)

    @property
    def stub(self) -> Stub:
        """Return the process as one that runs programs to a breakpoint: it dies with us."""
        assert self._stub is not None
        return self._stub

    def lend(self, lending: ExitStack) -> None:
        """Have the process lend memory, where nothing is now, nor was then, until that unwinds.

        What it lends already stays, if it may.

        And have room for all that it is to have again. Raises UnsupportedResource if it can't.
        """
        one, then = self.one, self.one.then.memory
        used = [(mapping.start, mapping.end) for mapping in then.mappings]
        scratch = one.held.scratch
        if scratch and (
            page_sets.common(used, [scratch.range])
            or then.lock_future
            or one.now.space.fields["lock_future"]
            or not memory_room.is_unlimited(one.held)
        ):
            # It is in the way, or counts where there may be no room for it then.
            one.held.give_scratch_back()
            scratch = None
        found = read_maps(one.held.pid)
        vdso = next(mapping[0] for mapping in found if mapping[7] == b"[vdso]")
        self._instruction = vdso + self._vdso.syscall
        # What it lends is counted as what is yet to come, whether or not it is there.
        start, end = scratch.range if scratch else (0, 0)
        mapped = [mapping for mapping in found if not start <= mapping[0] < end]
        reset_room.make(lending.enter_context(self._room), one, self.memory, mapped)
        if scratch:
            scratch.renew()
        else:
            used += ((mapping[0], mapping[1]) for mapping in found)
            at = free_range(used, SCRATCH_BYTES + PAGE).start
            tracee, memory = one.held.leader.tracee, one.held.memory
            scratch = Scratch(tracee, memory, vdso, self._vdso, SCRATCH_BYTES, at=at)
            lending.enter_context(scratch)
        self._lent = scratch.range

    def hold_for_good(self) -> None:
        """Have the tasks die with us, and no signal act on them; they give back what they lend."""
        self.one.held.forget_scratch()
        for task in self.one.held.tasks:
            ptrace.set_options(task.pid, task.options | ptrace.O_EXITKILL)
            ptrace.set_signal_mask(task.pid, stub.MASK)
            # Nobody may be on an alternate stack that is to be changed. A stub keeps what it has
            # when it first runs.
            registers = ptrace.registers(task.pid)
            registers.rsp = 0
            ptrace.set_registers(task.pid, registers)
        self._stub = Stub(self.one.held.pid, self._lent[0], SCRATCH_BYTES)

    def end_threads(self) -> None:
        """End the threads that the image doesn't have."""
        for task in self.one.extra_tasks:
            registers = ptrace.registers(task.pid)
            registers.rip = self.stub.base + LOOP.index(_SYSCALL)
            registers.rax, registers.rdi, registers.orig_rax = SYS.EXIT, 0, NO_CALL
            ptrace.set_registers(task.pid, registers)
            ptrace.resume(task.pid)
            _await_end([task])
            self.one.held.tasks.remove(task)

    def reap(self, pid: int) -> None:
        """Wait for a child that has ended, by its id in the container."""
        program = self.stub.program()
        program.may_fail(program.call(SYS.WAIT4, pid, 0, ptrace.WALL | os.WNOHANG, 0))
        self.stub.run(program)

    def close_extras(self, match: Match) -> None:
        """Close what it has opened since, and what is in the place of other files."""
        with while_(f"closing files of {self.one.held.name}"):
            numbers = self.one.extra_descriptors(match)
            for first in range(0, len(numbers), _CALLS_AT_ONCE):
                program = self.stub.program()
                for number in numbers[first : first + _CALLS_AT_ONCE]:
                    program.may_fail(program.call(SYS.CLOSE, number))
                self.stub.run(program)

    def arrange(self) -> None:
        """Give back what it has mapped since, and go back to its directory."""
        one = self.one
        with while_(f"setting back the mappings of {one.held.name}"):
            program = self.stub.program()
            flags = {d.number: d.cloexec for d in one.now.fields["descriptors"]}
            for descriptor in one.then.descriptors:
                if flags.get(descriptor.number, descriptor.cloexec) != descriptor.cloexec:
                    flag = _FD_CLOEXEC if descriptor.cloexec else 0
                    program.call(SYS.FCNTL, descriptor.number, _F_SETFD, flag)
            then, now = one.then, one.now.fields
            if not then.shares.directory and (then.directory, then.umask) != (
                now["directory"],
                now["umask"],
            ):
                moved = msgspec.structs.replace(then, root=b"/", root_deleted=0)
                if not then.directory_deleted:
                    process.restore_directories(program, moved, _nothing)
            self.stub.run(program)
            self.memory.arrange(self.stub)

    def finish(self, match: Match) -> None:
        """Set everything back that isn't memory, and last the registers."""
        one = self.one
        with while_(f"setting back {one.held.name}"):
            self.memory.finish(self.stub)
            if one.then.memory.finishes_calls:
                cut_calls.put(one.held.memory, one.held.vdso[1])
            self._reset_timers()
            queues = one.queued_then
            with root_stub.raised_signal_limit(self.stub) if queues else nullcontext():
                self._reset_signals()
                for thread, task in one.tasks:
                    self._reset_thread(thread, task)
            self._watch_again(match)
            self._arm(one.then.interval_timers, timers.by_other_clocks(one.then.posix_timers))
            self._reset_trap()
            self._room.put_back(partial(self.stub.call_at, self._instruction))
            start, end = self._lent
            self.stub.call_at(self._instruction, SYS.MUNMAP, start, end - start)
            self.stub.close()
            for thread, task in one.tasks:
                _settle(task)
                threads.set_state(task.pid, thread, threads.state_bytes(task.pid))
                task.tracee.registers = threads.unpacked_registers(thread)

    def let_live(self) -> None:
        """Let the tasks go their own way when they are let go, whatever becomes of us."""
        for thread, task in self.one.tasks:
            task.tracee.go_back()
            ptrace.set_signal_mask(task.pid, thread.mask)
        for thread, task in self.one.tasks:
            wait = thread.socket_wait
            pid = self.one.held.pid
            task.socket_wait = (
                SocketWait(pid, task.pid, wait.call, wait.descriptor, wait.left_us)
                if wait
                else None
            )
            ptrace.set_options(task.pid, task.options)

    def _reset_trap(self) -> None:
        """Give the breakpoint's signal its own action, when no program ends by it any more."""
        action = next((one for one in self.one.then.actions if one.signal == SIGTRAP), None)
        place = self.stub.base + PAGE
        os.pwrite(self.stub.memory, signals.packed(action), place)
        self.stub.call_at(self._instruction, SYS.RT_SIGACTION, SIGTRAP, place, 0, 8)

    def _reset_timers(self) -> None:
        program = self.stub.program()
        for which in range(3):
            program.call(SYS.SETITIMER, which, bytes(32), 0)
        self.stub.run(program)
        known = {timer.timer for timer in self.one.then.posix_timers}
        now: list[PosixTimer] = self.one.now.fields["posix_timers"]
        for first in range(0, len(now), _CALLS_AT_ONCE):
            program = self.stub.program()
            for timer in now[first : first + _CALLS_AT_ONCE]:
                if timer.timer in known:
                    program.call(SYS.TIMER_SETTIME, timer.timer, 0, bytes(32), 0)
                else:
                    program.call(SYS.TIMER_DELETE, timer.timer)
            self.stub.run(program)

    def _arm(self, intervals: list[IntervalTimer], posix_timers: list[PosixTimer]) -> None:
        for first in range(0, len(posix_timers) or 1, _CALLS_AT_ONCE):
            program = self.stub.program()
            timers.arm(program, intervals, posix_timers[first : first + _CALLS_AT_ONCE])
            self.stub.run(program)
            intervals = []

    def _reset_signals(self) -> None:
        """Take all signals that wait, and queue those that waited; set all actions."""
        one = self.one
        for _, task in one.tasks:
            shown = read_status(f"/proc/{task.pid}")
            waiting = signals.collect_pending(task.pid, shared=False, shown=shown["SigPnd"])
            waiting += signals.collect_pending(task.pid, shared=True, shown=shown["ShdPnd"])
            for first in range(0, len(waiting), _CALLS_AT_ONCE):
                program = self.stub.program()
                for _ in waiting[first : first + _CALLS_AT_ONCE]:
                    taken = program.call(SYS.RT_SIGTIMEDWAIT, _ALL_SIGNALS, 0, bytes(16), 8)
                    program.may_fail(taken)
                self.stub.task(task.pid).run(program)
        program = self.stub.program()
        if not one.then.shares.actions:
            signals.restore_actions(program, one.then.actions, skip=SIGTRAP)
        self.stub.run(program)
        queue = timers.without_rung(one.then.pending, one.then.interval_timers, [])
        for first in range(0, len(queue), _CALLS_AT_ONCE):
            program = self.stub.program()
            some = queue[first : first + _CALLS_AT_ONCE]
            signals.restore_pending(program, one.then.pid, None, some)
            self.stub.run(program)

    def _reset_thread(self, thread: Thread, task: HeldTask) -> None:
        program = self.stub.program()
        flags = _STACK.unpack(thread.alternate_stack)[1]
        if flags & _SS_DISABLE:
            syscalls.sigaltstack(program, _STACK.pack(0, _SS_DISABLE, 0), None)
        if not thread.robust_list.head:
            program.call(SYS.SET_ROBUST_LIST, 0, 24)
        threads.restore(program, msgspec.structs.replace(thread, directory=b""))
        threads.restore_pdeath_signal(program, thread)
        signals.restore_pending(program, self.one.then.pid, thread.tid, thread.pending)
        self.stub.task(task.pid).run(program)

    def _watch_again(self, match: Match) -> None:
        """Have epolls of this process watch what they watched."""
        done = set()
        program = self.stub.program()
        files = {d.file: d.number for d in self.one.then.descriptors}
        for then, now in match.files:
            if not (isinstance(then, Epoll) and isinstance(now, Epoll)):
                continue
            if then.id in files and then.id not in match.watched:
                done.add(then.id)
                then.watch_again(program, files[then.id], now, match.file_now)
        match.watched |= done
        self.stub.run(program)


_CALLS_AT_ONCE = 100


def _settle(task: HeldTask) -> None:
    """Bring a task to a stop from which it goes on with the registers that it is given."""
    ptrace.interrupt(task.pid)
    ptrace.resume(task.pid)
    while (status := ptrace.wait(task.pid)).event is not Event.STOPPED:
        if status.event in (Event.EXITED, Event.KILLED):
            raise StubError(f"task {task.pid} ended before it was let go: {status}")
        ptrace.resume(task.pid)


def _nothing(number: int) -> int:
    raise AssertionError(f"directory {number} was not looked for")


def end_extras(looked: Looked, match: Match, resets: Iterable[ProcessReset]) -> None:
    """End the processes and threads that the image doesn't have, and forget that they were."""
    for one in match.extra_processes:
        for task in one.tasks:
            ptrace.set_options(task.pid, task.options | ptrace.O_EXITKILL)
    for one in match.extra_processes:
        os.kill(one.group, 9)
    for one in match.extra_processes:
        _await_end(one.tasks)
        one.forget_memory()
    by_pid = {task.pid: reset for reset in resets for task in reset.one.held.tasks}
    by_pid |= {reset.one.held.group: reset for reset in by_pid.values()}
    for reset in {id(one): one for one in by_pid.values()}.values():
        reset.end_threads()
    ended: list[tuple[int, int]] = [(z.pid, z.namespace_pid) for z in match.extra_zombies]
    ended += ((one.group, one.namespace_pid) for one in match.extra_processes)
    for pid, number in ended:
        try:
            parent = by_pid.get(read_stat(f"/proc/{pid}").parent)
        except OSError:
            continue  # nobody wanted to know
        if parent:
            parent.reap(number)
    looked.tree.processes = [
        one for one in looked.tree.processes if one.group not in {pid for pid, _ in ended}
    ]


def _await_end(tasks: Iterable[HeldTask]) -> None:
    left = {task.pid for task in tasks}
    deadline = time.monotonic() + _PATIENCE_S
    while left:
        for pid in list(left):
            try:
                status = ptrace.poll(pid)
            except ChildProcessError:
                left.remove(pid)
                continue
            if status is None:
                continue
            if status.event in (Event.EXITED, Event.KILLED):
                left.remove(pid)
            else:
                ptrace.resume(pid)
        if left and time.monotonic() > deadline:
            raise TimeoutError(f"task {min(left)} does not end")
        time.sleep(50e-6)


def remove_ipc(init: int, objects: Iterable[IpcObject]) -> None:
    """Remove System V IPC and message queues that the image doesn't have."""
    for one in objects:
        with while_(f"removing a {tag_of(one)}"), namespaces.inside(init, "ipc"):
            match one:
                case PosixQueue():
                    HERE.call(SYS.MQ_UNLINK, one.name + b"\0")
                case MessageQueue():
                    HERE.call(SYS.MSGCTL, one.id, _IPC_RMID, 0)
                case Semaphores():
                    HERE.call(SYS.SEMCTL, one.id, 0, _IPC_RMID, 0)
                case _:
                    HERE.call(SYS.SHMCTL, one.id, _IPC_RMID, 0)


def reset_files(looked: Looked, match: Match) -> None:
    """Give open files the positions and counts that they had."""
    files = {file.number: file for file in looked.files.files}
    for then, now in match.files:
        if then.may_be_set_back and then != msgspec.structs.replace(now, id=then.id):
            with while_(f"setting back the {type(then).__name__} {now.id}"):
                then.set_back(files[now.id].descriptor)
