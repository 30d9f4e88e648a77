"""Room for more memory in held processes whose limits leave none, be it for what they lend us.

RLIMIT_AS, RLIMIT_DATA and, after mlockall(2), RLIMIT_MEMLOCK are raised as long as it is needed.
What they were stands in the padding of the process's vDSO until they are put back: should we be
killed before that, the next command does it (tidying.py).
"""

import errno
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple

from woodfrog.errors import UnsupportedResource
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import PAGE, SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.procfs.maps import read_maps
from woodfrog.kernel.procfs.status import read_status
from woodfrog.remote import cut_calls
from woodfrog.remote.address import TASK_SIZE
from woodfrog.remote.held import HeldProcess
from woodfrog.remote.scratch import SCRATCH_BYTES, Scratch, call_through_vdso
from woodfrog.remote.vdso import Vdso
from woodfrog.resources import limits, memory_checks

# What counts against which limit (proc_pid_status(5)), in the order of `Needed`.
_COUNTED = ((limits.SPACE, "VmSize"), (limits.DATA, "VmData"), (limits.LOCKED, "VmLck"))
# What tells a note; whose limits they are; what all were; and what we have made of them.
MAGIC = b"woodfrog: limits"
NOTE = struct.Struct("<16sQ6Q6Q")
_WERE_AT, _ARE_AT, _LIMIT_BYTES = 24, 72, 16
_MOST_CODE = 512  # of a call that a process makes through its vDSO

Limit = tuple[int, int]  # soft and hard
Call = Callable[..., int]  # its number and arguments


class Needed(NamedTuple):
    """Bytes of memory that a process is to have besides what it has."""

    space: int = 0
    data: int = 0
    locked: int = 0


LENT = Needed(space=PAGE + SCRATCH_BYTES, data=SCRATCH_BYTES, locked=PAGE + SCRATCH_BYTES)
# Only the error tells whether it would be locked (mlockall(MCL_FUTURE)), and that was in the way.
_LACKED = {errno.ENOMEM: LENT._replace(locked=0), errno.EAGAIN: Needed(locked=LENT.locked)}
LENT_MAPPINGS = 2


class Room:
    """The limits of a held process on its memory, which are put back at the end of a `with`."""

    def __init__(self, held: HeldProcess, vdso: Vdso) -> None:
        self._held = held
        self._vdso = vdso
        self._note = place(held)
        self._were: list[Limit] = []
        self._are: list[Limit] = []

    def __enter__(self) -> "Room":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):  # it has ended
            self.put_back()

    def make(self, needed: Needed) -> bool:
        """Raise the limits that leave no room for so much; tell whether there were any.

        Raises UnsupportedResource if one can't be raised so far.
        """
        now = _in_force(self._held.pid)
        wanted = _sufficient(self._held.path, now, needed)
        if wanted == now:
            return False
        if self._vdso.room < _MOST_CODE + NOTE.size + len(cut_calls.CODE):
            raise UnsupportedResource(
                "has used up its memory by its limits, and the vDSO of this kernel has no room to"
                " note these while they are raised"
            )
        self._were, self._are = self._were or now, wanted
        numbers = (number for limit in (*self._were, *wanted) for number in limit)
        note = NOTE.pack(MAGIC, self._held.pid, *numbers)
        os.pwrite(self._held.memory, note, self._note)
        _set(self._held.pid, now, wanted, self._note + _ARE_AT, self._call)
        return True

    def put_back(self, call: Call | None = None) -> None:
        """Have all limits be what they were; `call` makes a call in the process."""
        if self._were:
            at = self._note + _WERE_AT
            _set(self._held.pid, self._are, self._were, at, call or self._call)
            os.pwrite(self._held.memory, bytes(NOTE.size), self._note)
            self._were = []

    def _call(self, number: int, *arguments: int) -> int:
        return _call(self._held, self._vdso, number, *arguments)


def put_back_leftover(held: HeldProcess, vdso: Vdso) -> int:
    """Put back what a killed command has raised in a process; tell how many limits it were.

    The program might have written such a note itself: nothing is raised by it.
    """
    if not held.vdso[1]:
        return 0
    magic, pid, *numbers = NOTE.unpack(os.pread(held.memory, NOTE.size, place(held)))
    # Others may have the same memory, or a copy of it.
    if (magic, pid) != (MAGIC, held.pid):
        return 0
    now = _in_force(pid)
    pairs = [*zip(numbers[::2], numbers[1::2], strict=True)]
    were, are = pairs[: len(now)], pairs[len(now) :]
    # What is something else by now the program has set.
    wanted = [
        was if one == is_now and was[0] <= one[0] and was[1] <= one[1] else is_now
        for was, one, is_now in zip(were, are, now, strict=True)
    ]
    _set(pid, now, wanted, place(held) + _WERE_AT, lambda *call: _call(held, vdso, *call))
    os.pwrite(held.memory, bytes(NOTE.size), place(held))
    return sum(one != limit for one, limit in zip(wanted, now, strict=True))


def place(held: HeldProcess) -> int:
    """Return where a process has a note: behind a call through its vDSO, before `cut_calls`."""
    return held.vdso[1] - len(cut_calls.CODE) - NOTE.size


def _in_force(pid: int) -> list[Limit]:
    in_force = limits.in_force(pid)
    return [in_force[which] for which, _ in _COUNTED]


def _set(pid: int, now: list[Limit], wanted: list[Limit], noted_at: int, call: Call) -> None:
    """Set limits from outside, or have the process set them, which has them noted.

    Without CAP_SYS_RESOURCE we may set none of another user's process; but it may itself.
    """
    for number, (which, _) in enumerate(_COUNTED):
        if wanted[number] == now[number]:
            continue
        try:
            syscalls.prlimit(HERE, pid, which, limits.packed(*wanted[number]), None)
        except PermissionError:
            call(SYS.PRLIMIT64, 0, which, noted_at + number * _LIMIT_BYTES, 0)


def _call(held: HeldProcess, vdso: Vdso, number: int, *arguments: int) -> int:
    """Have a held process make a call through its vDSO."""
    padding = held.vdso[0] + vdso.padding
    return call_through_vdso(held.leader.tracee, held.memory, padding, vdso.room, number, arguments)


def is_unlimited(held: HeldProcess) -> bool:
    """Tell whether nothing but locked memory counts against a limit of a process's."""
    *memory, _ = _in_force(held.pid)
    return all(soft == limits.NONE for soft, _ in memory)


def _sufficient(path: str, now: list[Limit], needed: Needed) -> list[Limit]:
    """Return limits that leave room for so much; those in force `now`, if they do.

    `path` is the process's directory in /proc. Raises UnsupportedResource if a hard one would have
    to be raised and we may not.
    """
    found = [*now]
    for number, ((which, name), more) in enumerate(zip(_COUNTED, needed, strict=True)):
        soft, hard = now[number]
        if not more or soft == limits.NONE:
            continue
        used = int(read_status(path)[name].split()[0]) << 10
        if used + more <= soft:
            continue
        if used + more <= hard:
            found[number] = hard, hard
        elif limits.may_exceed_hard():
            found[number] = limits.NONE, limits.NONE
        else:
            raise UnsupportedResource(
                f"has {used} bytes of the memory that {limits.NAMES[which]} is about, whose hard"
                f" limit is {hard}, and {more} more are needed for a moment",
                hint="run woodfrog with CAP_SYS_RESOURCE, or start the program with a higher one",
            )
    return found


@contextmanager
def lent(held: HeldProcess, vdso: Vdso) -> Iterator[Scratch]:
    """Have a held process lend us memory, even if its limits leave no room."""
    scratch = Scratch(held.leader.tracee, held.memory, held.vdso[0], vdso, SCRATCH_BYTES)
    with ExitStack() as lending:
        with Room(held, vdso) as room:
            borrow(lending, scratch, held, room)
        yield scratch


def borrow(lending: ExitStack, scratch: Scratch, held: HeldProcess, room: Room) -> None:
    """Map scratch memory; room is made for it if there is none."""
    while True:
        try:
            lending.enter_context(scratch)
            return
        except OSError as error:
            needed = _LACKED.get(error.errno or 0)
            if needed is None or not room.make(needed):
                refuse_many_mappings(read_maps(held.pid), LENT_MAPPINGS)
                raise


def refuse_many_mappings(mapped: Iterable[tuple[Any, ...]], needed: int) -> None:
    """Refuse a process that is to have more mappings than any may have; it has those `mapped`."""
    most = memory_checks.most_mappings()
    # The last one listed, [vsyscall], is none.
    count = sum(mapping[0] < TASK_SIZE for mapping in mapped)
    if count + needed > most:
        raise UnsupportedResource(
            f"has {count} mappings, the kernel allows {most} (vm.max_map_count), and {needed} more"
            " are needed for a moment",
            hint=f"sysctl vm.max_map_count={count + needed + memory_checks.SPARE_MAPPINGS}",
        )
