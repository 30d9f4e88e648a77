"""A process as a whole, and zombies."""

import os
from collections.abc import Callable

from woodfrog.image.record import Part, Record
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.process import PR_GET_CHILD_SUBREAPER, PR_SET_CHILD_SUBREAPER, PR_SET_DUMPABLE
from woodfrog.kernel.procfs.reading import read_file
from woodfrog.remote.program import Program
from woodfrog.resources import threads
from woodfrog.resources.descriptor import Descriptor
from woodfrog.resources.file_signals import FileSignals
from woodfrog.resources.keyrings import FIRST
from woodfrog.resources.limits import Limit
from woodfrog.resources.login import Login
from woodfrog.resources.membership import Membership
from woodfrog.resources.memory import AddressSpace
from woodfrog.resources.memory_modes import MemoryModes
from woodfrog.resources.queue_notices import QueueNotice
from woodfrog.resources.semaphore_undo import Undo
from woodfrog.resources.signals import SIGCHLD, Action
from woodfrog.resources.threads import EndedThread, Thread
from woodfrog.resources.timers import IntervalTimer, PosixTimer

_PR_GET_DUMPABLE = 3
_PR_SET_THP_DISABLE, _PR_GET_THP_DISABLE = 41, 42
_PR_SET_MDWE, _PR_GET_MDWE = 65, 66
_P_PID, _WNOHANG, _WSTOPPED, _WCONTINUED, _WNOWAIT, _WALL = 1, 1, 2, 8, 0x01000000, 0x40000000


class Lock(Part, frozen=True):
    """A lock on a file (fcntl(2), flock(2)); length 0: to the end.

    `how`: posix, ofd, flock or lease. A lease that somebody wants broken is `breaking`: to its end,
    or downgraded to one for reading.
    """

    how: str
    descriptor: int
    write: bool
    start: int
    length: int
    breaking: str = ""


class Shares(Part, frozen=True):
    """Whose part a process has as its own since clone(2), by that process's id; 0: nobody's."""

    memory: int = 0
    actions: int = 0
    descriptors: int = 0
    directory: int = 0  # with the root directory and the umask
    undo: int = 0  # see semaphore_undo

    @property
    def owners(self) -> tuple[int, int, int, int, int]:
        """All of them."""
        return self.memory, self.actions, self.descriptors, self.directory, self.undo

    def of(self, pid: int) -> tuple[int, ...]:
        """Return whose all parts are of a process with this id that shares these."""
        return tuple(owner or pid for owner in self.owners)


class NestedIds(Part, frozen=True):
    """What ids are in the nested pid namespaces that a process is in, outermost first.

    0: a group or session that is not seen there.
    """

    pid: list[int]
    group: list[int]
    session: list[int]


class Zombie(Record, frozen=True, tag="zombie"):
    """A process that has ended and that nobody has waited for. `status` is as wait(2) gives it."""

    pid: int
    parent: int
    group: int
    session: int
    name: bytes
    status: int
    exit_signal: int = SIGCHLD
    pid_namespace: int = 0  # 0: the container's own
    nested_ids: NestedIds | None = None

    @property
    def ids(self) -> list[int]:
        """See Process."""
        return [self.pid, *(self.nested_ids.pid if self.nested_ids else ())]

    @property
    def is_first(self) -> bool:
        """Whether it is the first process of its pid namespace, who gets the orphans there."""
        return self.ids[-1] == 1

    @property
    def shares(self) -> Shares:
        """It has nothing any more."""
        return Shares()

    @property
    def child_subreaper(self) -> bool:
        """It gets no orphans."""
        return False


class Process(Record, frozen=True, tag="process"):
    """A process; all ids are those of the container. Parent 0: `exec` brought it in.

    A working or root directory that was removed is also given by the id of its DeletedFile.
    """

    pid: int
    parent: int
    group: int
    session: int
    stopped_by: int
    stop_heard: bool
    continued: bool  # by SIGCONT, and its parent has not heard of it
    directory: bytes
    root: bytes
    umask: int
    oom_score_adj: int
    dumpable: int
    child_subreaper: bool
    thp_disable: bool
    mdwe: int
    foreground_group: int
    memory: AddressSpace
    descriptors: list[Descriptor]
    locks: list[Lock]
    actions: list[Action]
    pending: list[bytes]
    interval_timers: list[IntervalTimer]
    posix_timers: list[PosixTimer]
    limits: list[Limit]
    threads: list[Thread]
    shares: Shares = Shares()  # what it shares it has none of here
    exit_signal: int = SIGCHLD  # what its parent gets when it ends; 0: none
    controlling: int = -1  # the number of its session's terminal, if not the container's own
    left_terminal: bool = False  # it has none, though its session has one
    file_signals: list[FileSignals] = []
    queue_notices: list[QueueNotice] = []  # what it waits for at message queues
    thp_disable_flags: int = 0
    modes: MemoryModes = MemoryModes()
    directory_deleted: int = 0
    root_deleted: int = 0
    keyring: int = FIRST  # of its session
    login: Login | None = None  # if it is another's than the first process
    session_nice: int = 0  # of its session, if it leads that
    ended_thread: EndedThread | None = None  # the first one, if it is not among the threads
    nested_ids: NestedIds | None = None
    undo: list[Undo] = []

    @property
    def pid_namespace(self) -> int:
        """The id of its pid namespace; 0: the container's own."""
        return self.namespaces.get("pid", 0)

    @property
    def ids(self) -> list[int]:
        """Its ids in all pid namespaces of the container that it is in, outermost first."""
        return [self.pid, *(self.nested_ids.pid if self.nested_ids else ())]

    @property
    def is_first(self) -> bool:
        """Whether it is the first process of its pid namespace, who gets the orphans there."""
        return self.ids[-1] == 1

    @property
    def namespaces(self) -> Membership:
        """The nested namespaces that it is in, by its first thread."""
        return self.threads[0].namespaces if self.threads else {}

    @property
    def tables(self) -> list[list[Descriptor]]:
        """Return its descriptors, and those of threads that have a table of their own."""
        own = (thread.descriptors for thread in self.threads)
        return [self.descriptors, *(table for table in own if table is not None)]


def ask(program: Program) -> Callable[[], dict[str, object]]:
    """Add the calls that tell of a process what /proc doesn't."""
    subreaper = bytearray(4)
    dumpable = syscalls.prctl(program, _PR_GET_DUMPABLE)
    syscalls.prctl(program, PR_GET_CHILD_SUBREAPER, subreaper)
    thp = program.may_fail(syscalls.prctl(program, _PR_GET_THP_DISABLE))
    mdwe = program.may_fail(syscalls.prctl(program, _PR_GET_MDWE))

    def answered() -> dict[str, object]:
        return {
            "dumpable": program[dumpable],
            "child_subreaper": any(subreaper),
            "thp_disable": program[thp] > 0,
            "thp_disable_flags": max(program[thp], 0) & ~1,
            "mdwe": max(0, program[mdwe]),
        }

    return answered


def ask_news(program: Program, children: list[tuple[int, int]]) -> Callable[[], set[int]]:
    """Add the calls that tell of which children a process could hear that they stopped or go on.

    `children` have ids of the container's and what they are for the process.
    """
    looks = []
    for child, pid in children:
        information = bytearray(128)
        looks.append((child, information))
        how = _WSTOPPED | _WCONTINUED | _WNOHANG | _WNOWAIT | _WALL
        program.may_fail(program.call(SYS.WAITID, _P_PID, pid, information, how, 0))

    def answered() -> set[int]:
        return {child for child, information in looks if any(information)}

    return answered


def read_oom_score_adj(path: str) -> int:
    """Read /proc/PID/oom_score_adj."""
    return int(read_file(f"{path}/oom_score_adj"))


def restore_directories(program: Program, process: Process, deleted: Callable[[int], int]) -> None:
    """Go to the working directory, and to the root if that is not the container's.

    `deleted` gives the stub's descriptor of a deleted one.
    """
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    if process.directory_deleted:
        directory = deleted(process.directory_deleted)
    else:
        directory = syscalls.openat2(program, process.directory, flags)
    if process.root_deleted:
        program.call(SYS.FCHDIR, deleted(process.root_deleted))
        program.call(SYS.CHROOT, b".")
    elif process.root != b"/":
        # By the stub's rights a magic link of a proc could lead to the host's root.
        root = syscalls.openat2(program, process.root, flags)
        program.call(SYS.FCHDIR, root)
        program.call(SYS.CHROOT, b".")
        syscalls.close(program, root)
    program.call(SYS.FCHDIR, directory)
    if not process.directory_deleted:
        syscalls.close(program, directory)
    program.call(SYS.UMASK, process.umask)


def restore_attributes(program: Program, process: Process) -> None:
    """Set what doesn't depend on who the process is; some of it came from its parent's stub."""
    if process.child_subreaper:
        syscalls.prctl(program, PR_SET_CHILD_SUBREAPER, 1)
    syscalls.prctl(program, _PR_SET_THP_DISABLE, int(process.thp_disable), 0)
    if process.thp_disable_flags:
        # Since Linux 6.18 not where they are advised; before, nowhere.
        flags = process.thp_disable_flags
        program.may_fail(syscalls.prctl(program, _PR_SET_THP_DISABLE, 1, flags))


def restore_last(program: Program, process: Process) -> None:
    """Set what forbids or changes things for the calls before."""
    threads.set_personality(program, process.threads[0])
    if process.mdwe:
        syscalls.prctl(program, _PR_SET_MDWE, process.mdwe)
    # A change of ids resets it; 2 (suidsafe) can only be had by such a change.
    syscalls.prctl(program, PR_SET_DUMPABLE, 1 if process.dumpable == 1 else 0)
