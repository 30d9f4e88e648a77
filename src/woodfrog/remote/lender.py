"""Programs that threads of one held process run side by side, and come back from."""

import os
import struct
import time

from woodfrog.kernel import ptrace
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.ptrace import NO_CALL, Event, Registers, Status
from woodfrog.remote.program import LOOP, RECORD_BYTES, STORE, Program, packed
from woodfrog.remote.registers import for_our_code
from woodfrog.remote.tracee import EndedError, RanOnError, Tracee

CODE_BYTES = 4096
_PARTS = 8
_PART_OF_CODE = CODE_BYTES // _PARTS
# One loop for each part; behind it is room for a way back.
CODE = LOOP.ljust(_PART_OF_CODE, b"\0") * _PARTS
# In front of a program: where the loop tells that it has ended, the thread's flags, and how long a
# thread that has ended its program sleeps, if others run theirs.
_TOLD = struct.Struct("<QQqq")
_WORD = struct.Struct("<Q")
_FLAGS_AT, _SLEEP_AT = 8, 16
_SLEEP_NS = 200_000_000
_TOLD_BYTES = 64
_YIELDS = 100


def way_in(page: int, rip: int) -> int:
    """Return where the way back is for a task that is at `rip` in a page of code of ours."""
    return page + (rip - page) // _PART_OF_CODE * _PART_OF_CODE + len(LOOP)


def has_told(registers: Registers, memory: int) -> bool:
    """Tell whether a task that is in the loop, with these registers, has ended its program."""
    return os.pread(memory, 1, registers.r14) == b"\1"


class Lender:
    """A held thread that runs programs in scratch memory of its process.

    Several do at once (SideBySide), each in a part of the memory: a page of code has room for
    _PARTS loops, each with the way back of one thread.
    """

    def __init__(
        self, tracee: Tracee, memory: int, scratch: int, size: int, running: "list[Lender]"
    ) -> None:
        """`running` lists those of the same memory that were started and haven't come back."""
        self._tracee = tracee
        self._memory = memory
        self._data = scratch + CODE_BYTES
        self._size = size - CODE_BYTES
        self._running = running
        self._code = scratch
        self._told = self._data
        self._end = 0
        self._is_interrupted = False

    def part(self, number: int = 0, of: int = 1) -> tuple[int, int]:
        """Return where a program may stand, and how long: in all data, or one of _PARTS parts."""
        size = self._size // of
        return self._data + number * size + _TOLD_BYTES, size - _TOLD_BYTES

    def program(self) -> Program:
        """Return an empty program that fits the data."""
        return Program(*self.part())

    def start(self, program: Program) -> None:
        """Set a program going; `finish` waits for its end.

        It sleeps at its end, so that whoever waits for that has the CPU: in a small machine the
        kernel often wakes it on ours, though another one is idle, and if it spun there, we would
        get on after milliseconds. Where a filter forbids that, it spins, or beside others runs call
        by call.
        """
        self._told = program.base - _TOLD_BYTES
        part = (self._told - self._data) * _PARTS // self._size
        self._code = self._data - CODE_BYTES + part * _PART_OF_CODE
        # A call that, interrupted, is made again as itself, should we die: the way by
        # restart_syscall(2) a filter may forbid.
        sleep = SYS.PPOLL, (0, 0, self._told + _SLEEP_AT, 0, 0)
        ending = packed(STORE, self._told, 1) + packed(sleep[0], *sleep[1])
        may_sleep = program.room >= len(ending) and self._tracee.may_call(*sleep)
        if not may_sleep:
            ending = b""
        os.pwrite(self._memory, self._nothing_told() + program.assemble(ending), self._told)
        self._end = program.entry + RECORD_BYTES * len(program)
        is_alone = program.size == self._size - _TOLD_BYTES
        if (may_sleep or is_alone) and self._tracee.may_run(program):
            self._go(program.entry)

    def finish(self, program: Program) -> None:
        """Wait for the program's end and take its results; raises ProgramError."""
        is_going = self in self._running
        ended_at = self.come_back() if is_going else self._step_through(program)
        program.finish(self._memory, min(ended_at, self._end))

    def _step_through(self, program: Program) -> int:
        """Run a program call by call, as filters want it; returns the record that it ended at."""
        ended_at = program.entry
        for record in range(program.entry, self._end, RECORD_BYTES):
            after = program.end_after(record, self._memory)
            os.pwrite(self._memory, self._nothing_told(), self._told)
            self._go(record)
            ended_at = self.come_back()
            os.pwrite(self._memory, after, record + RECORD_BYTES)
            if ended_at == record:
                break
        return ended_at

    def _nothing_told(self) -> bytes:
        """Return what stands in front of a program that has yet to run."""
        told = _TOLD.pack(0, self._tracee.registers.eflags, 0, _SLEEP_NS)
        return told.ljust(_TOLD_BYTES, b"\0")

    def _go(self, record: int) -> None:
        """Set the loop going at a record."""
        start = for_our_code(self._tracee.registers, self._code)
        start.r15, start.r14 = record, self._told
        self._running.append(self)
        self._resume(start)

    def _resume(self, registers: Registers) -> None:
        """Put the way back behind the loop, and run on."""
        code = self._tracee.way_back(self._told + _FLAGS_AT)
        os.pwrite(self._memory, code, self._code + len(LOOP))
        self._is_interrupted = False
        self._tracee.enter(registers)
        ptrace.resume(self._tracee.pid)

    def come_back(self) -> int:
        """Wait until the loop has ended, and have the thread stand where it was.

        Returns the record that the loop ended at.
        """
        try:
            while True:
                try:
                    stopped = self._await_end()
                    break
                except InterruptedError as interruption:
                    flags = _WORD.pack(self._tracee.registers.eflags)
                    os.pwrite(self._memory, flags, self._told + _FLAGS_AT)
                    self._resume(interruption.args[0])
            self._tracee.go_back()
        finally:
            self._running.remove(self)
        return stopped.r15

    def _await_end(self) -> Registers:
        """Wait until the loop has ended, stop the thread in it, and return its registers.

        Raises InterruptedError, holding the registers to go on with, after a signal came in.
        """
        pid = self._tracee.pid
        tries = 0
        while not self._has_ended():
            status = ptrace.poll(pid)
            if status is not None:
                self._interrupted(status)
            tries += 1
            if tries < _YIELDS:
                os.sched_yield()
            else:
                time.sleep(0.0001)
        for lender in self._running:
            if not lender._is_interrupted and lender._has_ended():
                ptrace.interrupt(lender._tracee.pid)
                lender._is_interrupted = True
        status = ptrace.wait(pid)
        if status.event is not Event.STOPPED:
            self._interrupted(status)
        found = ptrace.registers(pid)
        if not self._is_in_loop(found):
            self._go_on_from(found)
            raise RanOnError(f"task {pid} ran on")
        return found

    def _go_on_from(self, registers: Registers) -> None:
        """Note where a task is that didn't wait for us, unless it is still on its way back."""
        if not self._code <= registers.rip < self._code + _PART_OF_CODE:
            self._tracee.registers = registers

    def _has_ended(self) -> bool:
        return os.pread(self._memory, 1, self._told) == b"\1"

    def _is_in_loop(self, registers: Registers) -> bool:
        return self._code <= registers.rip <= self._code + len(LOOP)

    def _interrupted(self, status: Status) -> None:
        tracee = self._tracee
        if status.event in (Event.EXITED, Event.KILLED):
            raise EndedError(f"task {tracee.pid} ended while it was held")
        ours = ptrace.registers(tracee.pid)
        ran_on = not self._is_in_loop(ours)
        if ran_on:
            self._go_on_from(ours)
        if status.event is Event.EVENT:
            tracee.born.append(ptrace.event_message(tracee.pid))
        elif status.event is Event.SIGNAL:
            tracee.take_signal(status, interrupted=self._is_interrupted)
        if ran_on:
            raise RanOnError(f"task {tracee.pid} ran on")
        # Otherwise a group stop: the thread stays where it is, and runs our loop on.
        ours.orig_rax = NO_CALL
        raise InterruptedError(ours)
