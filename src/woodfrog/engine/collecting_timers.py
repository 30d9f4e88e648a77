"""POSIX timers of a held process, and how often those have rung whose signal is queued.

The kernel counts that when the signal is taken, and then sets the timer going again. So a signal
that no thread takes by itself is taken and put back, with the count, by one program, which runs to
its end should we be killed. Then the timer is set to when it had rung first: it rings at once, and
its signal is that of before.
"""

import re
import struct
from collections.abc import Mapping
from typing import NamedTuple

from msgspec.structs import replace

from woodfrog.kernel import ptrace
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.remote.held import HeldProcess, HeldTask
from woodfrog.remote.program import Program, ProgramError
from woodfrog.remote.scratch import Scratch
from woodfrog.resources import signals, timers
from woodfrog.resources.timers import Listed, PosixTimer

_OVERRUN_AT = 20  # in siginfo_t
# How many signals more a user must be allowed to have queued than are, to put one back.
_ROOM = 16
# So many timers are asked by one program: a scratch has room for little more.
_AT_ONCE = 100


class _Queued(NamedTuple):
    """A timer's signal in the queue of a thread, or (None) of the process."""

    task: HeldTask | None
    signal: int


class _Taken(NamedTuple):
    """A call that takes a signal, and where its siginfo_t goes: here, and in the process."""

    taken: int
    contents: bytearray
    place: int


class CollectedTimers:
    """The timers of a held process; ask for them last, as they ring on when a thread runs."""

    def __init__(self, held: HeldProcess, scratch: Scratch, listed: list[Listed]) -> None:
        self._held = held
        self._scratch = scratch
        ids = {task.pid: task.ids[-1] for task in held.tasks}
        queued = self._queued()
        found: list[PosixTimer] = []
        for first in range(0, len(listed), _AT_ONCE):
            program = scratch.program()
            answered = timers.ask_posix_timers(program, listed[first : first + _AT_ONCE], ids)
            scratch.run(program)
            found += answered()
        self._timers = [
            self._with_rung(one, queued[one.timer]) if one.timer in queued else one for one in found
        ]

    def records(self) -> list[PosixTimer]:
        """Return the timers, once nothing of ours runs in the process any more."""
        queued = self._queued()
        return [_settled(one, is_queued=one.timer in queued) for one in self._timers]

    def _queues(self) -> list[tuple[HeldTask | None, list[bytes]]]:
        own = [(task, signals.collect_pending(task.pid, shared=False)) for task in self._held.tasks]
        return [(None, signals.collect_pending(self._held.pid, shared=True)), *own]

    def _queued(self) -> Mapping[int, _Queued]:
        """Return where the signals of timers are queued, by the timers."""
        return {
            timer: _Queued(task, struct.unpack_from("<i", info)[0])
            for task, queue in self._queues()
            for info in queue
            if (timer := timers.timer_of(info)) is not None
        }

    def _with_rung(self, timer: PosixTimer, queued: _Queued) -> PosixTimer:
        """Return a timer whose signal is queued, with how often it has rung since, if it can tell.

        Of a signal that is taken as soon as a thread runs it is once.
        """
        if not timers.rings_on(timer):
            return timer
        taker = self._taker(queued)
        if taker is None or not self._has_room():
            return replace(timer, rung=1)
        program = self._scratch.program()
        before = timers.ask_overrun(program, timer.timer)
        self._scratch.run(program)
        if program[before]:
            # Which a taken signal would change, and a program may be about to ask for.
            return replace(timer, rung=1)
        program = self._scratch.program()
        info = self._take(program, taker, queued.signal)
        self._put_back(program, queued, info)
        next_time = timers.ask_next_time(program, timer)
        try:
            self._scratch.run(program, taker.tracee)
        except ProgramError:
            return replace(timer, rung=1)
        (overrun,) = struct.unpack_from("<i", info.contents, _OVERRUN_AT)
        again = replace(timer, rung=1 + max(0, overrun), at_ns=next_time())
        program = self._scratch.program()
        # It may have rung once more between the two calls.
        for _ in _alike(taker, queued.signal):
            program.may_fail(self._take(program, taker, queued.signal).taken)
        timers.set_posix_timer(program, again, max(again.began_ns, 1), absolute=True)
        self._scratch.run(program, taker.tracee)
        return again

    def _take(self, program: Program, taker: HeldTask, signal: int) -> _Taken:
        contents = bytearray(ptrace.SIGINFO_BYTES)
        place = program.address_of(contents)
        mask = (1 << signal - 1).to_bytes(8, "little")
        return _Taken(program.call(SYS.RT_SIGTIMEDWAIT, mask, place, bytes(16), 8), contents, place)

    def _put_back(self, program: Program, queued: _Queued, info: _Taken) -> None:
        """Queue a signal again; should that fail, the timer makes it anew."""
        process = self._held.ids[-1]
        if queued.task is None:
            put = program.call(SYS.RT_SIGQUEUEINFO, process, queued.signal, info.place)
        else:
            thread = queued.task.ids[-1]
            put = program.call(SYS.RT_TGSIGQUEUEINFO, process, thread, queued.signal, info.place)
        program.may_fail(put)

    def _taker(self, queued: _Queued) -> HeldTask | None:
        """Return who can take the signal, and just that one; a thread that would not by itself."""
        for one in [queued.task] if queued.task else self._held.tasks:
            blocked = ptrace.signal_mask(one.pid) >> (queued.signal - 1) & 1
            if blocked and len(_alike(one, queued.signal)) == 1:
                return one
        return None

    def _has_room(self) -> bool:
        """Tell whether a signal that was taken can surely be queued again."""
        used, most = map(int, re.findall(r"\d+", self._held.leader.status["SigQ"]))
        return used + _ROOM <= most


def _alike(task: HeldTask, signal: int) -> list[bytes]:
    """Return the signals of a number that a thread can take."""
    queues = (signals.collect_pending(task.pid, shared=shared) for shared in (False, True))
    return [
        info for queue in queues for info in queue if struct.unpack_from("<i", info)[0] == signal
    ]


def _settled(timer: PosixTimer, *, is_queued: bool) -> PosixTimer:
    """Return a timer as it is now that its signal was taken meanwhile, or has come."""
    if not timers.rings_on(timer) or is_queued == bool(timer.rung):
        return timer
    if is_queued:
        return replace(timer, rung=1, at_ns=timer.at_ns + timer.interval_ns)
    return replace(timer, rung=0)
