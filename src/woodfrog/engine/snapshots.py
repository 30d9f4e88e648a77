"""Copies of processes' memory by fork(2), from which an image is written while they run on.

Each copy is a child that its process makes of itself: copy on write, held from before its first
instruction, without files, and without a signal for its end. Nobody waits for it but us: in the end
its process does, by a call of ours.
"""

import os
from collections.abc import Iterable, Mapping, Sequence

from woodfrog.engine.collected import CollectedProcess, scratch_in
from woodfrog.kernel import ptrace, syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.kcmp import KCMP_VM
from woodfrog.kernel.namespaces import CLONE_FILES
from woodfrog.kernel.process import PR_SET_NAME
from woodfrog.kernel.process_memory import ProcessMemory
from woodfrog.kernel.ptrace import Event
from woodfrog.remote.held import Held, HeldProcess, Zombie
from woodfrog.remote.hold import held
from woodfrog.remote.program import ProgramError
from woodfrog.remote.scratch import SCRATCH_BYTES
from woodfrog.remote.socket_waits import Resumed
from woodfrog.remote.stub import MASK, Stub, await_birth
from woodfrog.remote.vdso import Vdso
from woodfrog.resources import memory
from woodfrog.resources.signals import SIGKILL

# What /proc/PID/comm says of a copy; `tidying` looks for it.
NAME = b"woodfrog-copy"

_CLOSE_RANGE_UNSHARE = 2
_MOST_CALLS = 100
# A fork takes as long as writing so much memory, which doesn't matter for a few.
_WORTH_A_FORK = 1 << 20
_FEW = 8
_FIRST_TO_DIE = 1000  # oom_score_adj


class Snapshot:
    """The memory of one process as it was, for as long as its copy is held."""

    def __init__(self, stub: Stub) -> None:
        self.pid = stub.pid
        self.stub = stub
        self.memory = ProcessMemory(stub.memory)


class Snapshots:
    """All copies of a container's processes; they end with the `with` block at the latest."""

    def __init__(self, init: int, vdso: Vdso) -> None:
        self._init = init
        self._vdso = vdso
        self._taken: dict[int, Snapshot] = {}
        self.count = 0

    def __enter__(self) -> "Snapshots":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def of(self, process: HeldProcess) -> Snapshot | None:
        """Return the copy of a process, if there is one."""
        return self._taken.get(process.pid)

    def take(self, processes: Sequence[CollectedProcess], room: int | None) -> None:
        """Copy held processes, as far as that is worth it and allowed; the others have no copy.

        `room` is how much memory the container may still use. A copy needs none by itself, but what
        is written to while it is there, counts twice.
        """
        few = len(processes) <= _FEW
        having = [
            one for one in processes if KCMP_VM not in one.held.shares and not _is_barred(one.held)
        ]
        wanted = [one for one in having if few or one.held.own_bytes >= _WORTH_A_FORK]
        if room is not None and room < sum(one.held.own_bytes for one in wanted):
            return
        for one in wanted:
            self._copy(one.held, one.space.mappings)

    def _copy(self, process: HeldProcess, mappings: Sequence[memory.Mapping]) -> None:
        options = process.leader.options
        with scratch_in(process, self._vdso) as scratch:
            program = scratch.program()
            program.end_child(program.call(SYS.CLONE, CLONE_FILES, 0, 0, 0, 0))
            ptrace.set_options(process.leader.pid, options | ptrace.O_TRACECLONE)
            try:
                scratch.run(program)
            except ProgramError:
                return  # a limit of processes or of memory
            finally:
                ptrace.set_options(process.leader.pid, options)
            child = process.leader.tracee.born.pop()
            await_birth(child)
            ptrace.set_options(child, options | ptrace.O_EXITKILL)
            # It is in its process's group, which may be sent any, by a terminal, say (SIGWINCH).
            ptrace.set_signal_mask(child, MASK)
            stub = Stub(child, scratch.start, SCRATCH_BYTES)
        self._taken[process.pid] = Snapshot(stub)
        self.count += 1
        with open(f"/proc/{child}/oom_score_adj", "w", encoding="ascii") as file:
            file.write(str(_FIRST_TO_DIE))
        program = stub.program()
        # Before its process runs on: an end of a pipe that it keeps open would be noticed.
        program.call(SYS.CLOSE_RANGE, 0, (1 << 32) - 1, _CLOSE_RANGE_UNSHARE)
        syscalls.prctl(program, PR_SET_NAME, NAME + b"\0")
        stub.run(program)
        # Nor must who writes to a huge page find that its copy takes the last one.
        _unmap(stub, (mapping for mapping in mappings if mapping.is_private_huge))

    def let_go_of_shared_memory(self, process: HeldProcess, mappings: list[memory.Mapping]) -> None:
        """Unmap what a copy shares with others, who may count (shmctl(2) does)."""
        _unmap(self._taken[process.pid].stub, (mapping for mapping in mappings if mapping.shared))

    def end(self, resumed: Mapping[int, Resumed] | None = None) -> None:
        """End all copies, and have those whose children they are wait for them.

        `resumed` is what the hold has left in which they were taken.
        """
        if not self._taken:
            return
        for snapshot in self._taken.values():
            os.kill(snapshot.pid, SIGKILL)
            while ptrace.wait(snapshot.pid).event not in (Event.EXITED, Event.KILLED):
                ptrace.resume(snapshot.pid)
            snapshot.stub.close()
        self._taken.clear()
        try:
            with held(self._init, resumed=resumed) as tree:
                reap(tree, self._vdso)
        except (ProcessLookupError, FileNotFoundError):
            pass  # the container has ended, and they with it


def _unmap(stub: Stub, mappings: Iterable[memory.Mapping]) -> None:
    program = stub.program()
    for mapping in mappings:
        # What is sealed (mseal(2)) stays.
        program.may_fail(syscalls.munmap(program, mapping.start, mapping.end - mapping.start))
        if len(program) == _MOST_CALLS:
            stub.run(program)
            program = stub.program()
    stub.run(program)


def _is_barred(process: HeldProcess) -> bool:
    """Tell whether a process's next child would begin or join a pid namespace."""
    try:
        links = {os.readlink(f"{process.path}/ns/{name}") for name in ("pid", "pid_for_children")}
    except FileNotFoundError:
        return True  # nobody has begun it yet
    return len(links) > 1


def reap(tree: Held, vdso: Vdso) -> int:
    """Have the processes of a held container wait for copies that have ended; returns how many."""
    ended = [zombie for zombie in tree.zombies if _is_ours(zombie)]
    for zombie in ended:
        tree.zombies.remove(zombie)
        parent = next((one for one in tree.processes if one.group == zombie.stat.parent), None)
        if parent is not None:
            with scratch_in(parent, vdso) as scratch:
                program = scratch.program()
                # Its id where its parent is, in an outer pid namespace perhaps.
                pid = zombie.ids[len(parent.ids) - 1]
                program.call(SYS.WAIT4, pid, 0, ptrace.WALL, 0)
                scratch.run(program)
    return len(ended)


def _is_ours(zombie: Zombie) -> bool:
    """Tell whether it is a copy: by its name, and because nobody gets a signal for its end."""
    return zombie.stat.comm == NAME and zombie.stat.exit_signal == 0
