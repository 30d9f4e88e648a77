"""Processes that Landlock confines: no kernel shows it, but they may not look at others any more.

Who is confined may not trace who isn't (security/landlock/task.c), whatever else is allowed; and
get_robust_list(2) of another process asks for that right, and does nothing.
"""

import errno
from collections.abc import Callable
from collections.abc import Set as AbstractSet

from woodfrog.errors import UnsupportedResource
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.procfs.status import Status
from woodfrog.remote.held import HeldProcess, HeldTask
from woodfrog.remote.program import Program


class Confined:
    """Looks for such processes among held ones, each by one that was looked at before.

    `foreign` are our ids of those in user namespaces that programs made: by their ids and
    capabilities nobody can tell what they may.
    """

    def __init__(self, foreign: AbstractSet[int]) -> None:
        self._foreign = foreign
        self._known: dict[int, HeldProcess] = {}
        # Threads of a process are mostly alike.
        self._seen: dict[tuple[object, ...], HeldProcess | None] = {}

    def note(self, process: HeldProcess, *, dumpable: bool) -> None:
        """Let others look at a process from now on, if it isn't protected from that."""
        if dumpable and len(process.ids) == 1 and process.pid not in self._foreign:
            self._known[process.group] = process

    def whom(self, task: HeldTask) -> HeldProcess | None:
        """Return whom the task is to be asked to look at, if there is anybody."""
        status = task.status
        who = task.process.group, status.between("Uid", "Gid"), status["CapPrm"]
        if who not in self._seen:
            self._seen[who] = self._whom(task)
        return self._seen[who]

    def ask(self, seen: HeldProcess | None, program: Program) -> Callable[[], None]:
        """Add the call that tells; the answer is UnsupportedResource."""
        if seen is None:
            return lambda: None
        ignored = bytearray(8), bytearray(8)
        looked = program.may_fail(program.call(SYS.GET_ROBUST_LIST, seen.namespace_pid, *ignored))

        def answered() -> None:
            if program[looked] == -errno.EPERM:
                raise UnsupportedResource(
                    f"is confined by Landlock, it seems, as it may not look at {seen.name}; how it"
                    " is confined no kernel shows, so that it cannot be saved"
                )

        return answered

    def _whom(self, task: HeldTask) -> HeldProcess | None:
        """Return a process that a task may look at by all other rules, its parent if possible."""
        is_foreign = task.process.pid in self._foreign
        if len(task.process.ids) > 1 or is_foreign or _has_label(task.process.path):
            return None
        parent = self._known.get(task.process.leader.stat.parent)
        for one in ([parent] if parent else []) + list(self._known.values()):
            if one is not task.process and _may_look(task.status, one.leader.status):
                return one
        return None


def _may_look(looker: Status, seen: Status) -> bool:
    """Tell whether one task may look at another by its ids and capabilities (ptrace(2))."""
    for name in ("Uid", "Gid"):
        real = looker[name].split()[0]
        if any(one != real for one in seen[name].split()[:3]):
            return False
    return not int(seen["CapPrm"], 16) & ~int(looker["CapPrm"], 16)


def _has_label(path: str) -> bool:
    """Tell whether another security module may have its say, as SELinux or AppArmor."""
    try:
        with open(f"{path}/attr/current", "rb") as file:
            return file.read().rstrip(b"\0\n") not in (b"", b"unconfined", b"kernel")
    except OSError:
        return False
