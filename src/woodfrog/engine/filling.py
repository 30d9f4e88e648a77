"""The processes of ours that stay for as long as restored memory is still being filled in.

The page server brings pages. A holder has the same descriptors, as one table of both: if the server
is killed, nothing is closed, and missing pages don't read as zeros. It then ends the container, and
only after that lets go.
"""

import os
import select
from collections.abc import Mapping, Sequence
from typing import NoReturn, Protocol

import msgspec

from woodfrog.engine.page_server import PageServer
from woodfrog.engine.staying import leave_everything
from woodfrog.engine.working_set import WorkingSet
from woodfrog.errors import WoodfrogError
from woodfrog.image.pages import Chunks
from woodfrog.kernel import features
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.namespaces import CLONE_FILES
from woodfrog.kernel.process import PR_SET_NAME, pidfd_open, pidfd_send_signal
from woodfrog.kernel.signals import signals
from woodfrog.resources.missing_memory import Missing

_NAME_OF_SERVER, _NAME_OF_HOLDER = b"woodfrog-pages\0", b"woodfrog-holder\0"
_FIRST_NOT_TO_DIE = -999  # oom_score_adj: the end of the server would be the container's
_STANDS = b"1"
_HAS_TOLD = 3  # exit status of a server that has ended the container itself


class Teller(Protocol):
    """What a runtime does about it; all of it happens in processes of ours that stay."""

    def begun(self, holder: int, server: int, total: int) -> None:
        """Note who is at work, and how many bytes are missing."""

    def tell(self, filled: int, total: int) -> None:
        """Note how far it is."""

    def lost(self, reason: str) -> None:
        """Note why the container was ended; it may need help with that."""

    def ended(self) -> None:
        """Note that all is in, or the container has ended."""


class Task(msgspec.Struct, frozen=True):
    """What there is to do, as the page server takes it; see there. The descriptors are its own.

    `working_set` says what comes first, by pids inside, or has it noted.
    """

    spaces: Mapping[int, Missing]
    chunks: Chunks
    pids: Mapping[int, int]  # of the processes, by the descriptors of `spaces`
    working_set: WorkingSet

    @property
    def descriptors(self) -> set[int]:
        """Return all that must stay open."""
        return {*self.spaces, *self.chunks.descriptors, self.working_set.descriptor}

    @property
    def first(self) -> dict[int, Sequence[int]]:
        """Return the addresses that come first, by descriptor."""
        touched = self.working_set.touched
        return {descriptor: touched.get(pid, ()) for descriptor, pid in self.pids.items()}

    def note(self, touched: Mapping[int, list[int]]) -> None:
        """Note what was touched first, by descriptor."""
        self.working_set.note({self.pids[one]: some for one, some in touched.items() if some})


class Filling:
    """Our end of it, until the container runs."""

    def __init__(self, holder: int, told: int) -> None:
        self._holder = holder
        self._told = told

    def confirm(self) -> None:
        """Wait until the server stands, so that whoever waits for memory gets it."""
        if os.read(self._told, 1) != _STANDS:
            raise WoodfrogError("the process that fills in memory did not come to stand")

    def close(self) -> None:
        """Let go of our end."""
        os.close(self._told)

    def await_end(self) -> None:
        """Wait until the processes have ended, as they do when the container has."""
        try:
            os.waitpid(self._holder, 0)
        except ChildProcessError:
            pass  # somebody has waited for all that we had


def start(init: int, task: Task, teller: Teller) -> Filling:
    """Begin to fill in the memory of a container's processes; see PageServer.

    The descriptors of its spaces are ours no longer. This process must have no other thread.
    """
    told, tells = os.pipe()
    pidfd = pidfd_open(HERE, init)
    holder = os.fork()
    if holder == 0:
        _become_holder(pidfd, task, teller, tells)
    for descriptor in (tells, pidfd, *task.spaces):
        os.close(descriptor)
    return Filling(holder, told)


def _become_holder(init: int, task: Task, teller: Teller, tells: int) -> NoReturn:
    """Start the server and stay until it ends, in a process of its own."""
    try:
        wake_up = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        leave_everything(but={init, *task.descriptors, tells, wake_up})
        _be_the_last_to_die()
        signals.signal(signals.SIGUSR1, lambda *_: os.eventfd_write(wake_up, 1))
        server = HERE.call(SYS.CLONE, CLONE_FILES | signals.SIGCHLD, 0, 0, 0, 0)
        if server == 0:
            _serve(init, task, teller, tells, wake_up)
        HERE.call(SYS.PRCTL, PR_SET_NAME, _NAME_OF_HOLDER, 0, 0, 0)
        status = os.waitstatus_to_exitcode(os.waitpid(server, 0)[1])
        if status not in (0, _HAS_TOLD):
            how = f"was killed by signal {-status}" if status < 0 else "failed"
            _end_container(init, teller, f"the process that filled in its memory {how}")
        if status == 0:
            teller.ended()
    except BaseException as error:
        _end_container(init, teller, f"the process that holds its memory failed: {error}")
    finally:
        os._exit(0)


def _serve(init: int, task: Task, teller: Teller, tells: int, wake_up: int) -> NoReturn:
    status = _HAS_TOLD
    try:
        HERE.call(SYS.PRCTL, PR_SET_NAME, _NAME_OF_SERVER, 0, 0, 0)
        total = sum(missing.bytes for missing in task.spaces.values())
        server = PageServer(
            task.spaces,
            task.chunks,
            init,
            ahead=features.wanted(features.FILLING_AHEAD),
            wake_up=wake_up,
            tell=teller.tell,
            first=task.first,
            note=None if task.working_set.touched else task.note,
        )
        teller.begun(os.getppid(), os.getpid(), total)
        os.write(tells, _STANDS)
        os.close(tells)
        server.run()
        status = 0
    except BaseException as error:
        _end_container(init, teller, f"its memory cannot be filled in: {error}")
    finally:
        os._exit(status)


def _be_the_last_to_die() -> None:
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write(str(_FIRST_NOT_TO_DIE))
    except PermissionError:
        pass  # without CAP_SYS_RESOURCE


def _end_container(init: int, teller: Teller, reason: str) -> None:
    """End the container, and wait for that, while all descriptors are still held."""
    try:
        pidfd_send_signal(HERE, init, signals.SIGKILL)
    except ProcessLookupError:
        pass  # it has ended by itself
    try:
        teller.lost(reason)
    finally:
        poll = select.poll()
        poll.register(init, select.POLLIN)
        poll.poll()
