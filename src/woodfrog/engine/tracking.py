"""Have the kernel note which pages of a container are written to, from one image to the next.

Each process gets a userfaultfd that nobody waits at: its write protection is undone by the kernel
itself, which is how it remembers (UFFD_FEATURE_WP_ASYNC). It remembers for as long as somebody
has the descriptors: a *keeper*, a process of ours that stays until the container ends.
What isn't noted counts as written to: a mapping that is new or has moved, the memory of a forked
child or of another program.
"""

import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import NamedTuple, Protocol

import msgspec

from woodfrog.engine.collected import CollectedProcess, scratch_in
from woodfrog.kernel import features, userfaultfd
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.pagemap import Pagemap
from woodfrog.kernel.process import pidfd_getfd, pidfd_open
from woodfrog.kernel.procfs.maps import read_maps
from woodfrog.kernel.procfs.status import read_stat, read_status
from woodfrog.remote import descriptors
from woodfrog.remote.program import Program, ProgramError
from woodfrog.remote.stub import Stub
from woodfrog.remote.vdso import Vdso
from woodfrog.resources.memory import Mapping

# What the kernel writes to by pages that it has pinned is not noted.
_PINNED = (b"[io_uring]", b"[aio]")
_GONE = b" (deleted)"


# Device, inode, size, and when it was last written to or its status changed; empty if unknown.
FileIdentity = tuple[int, ...]


class Noted(NamedTuple):
    """A process whose writes are noted: when it began, and its userfaultfd in the keeper."""

    start_time: int
    descriptor: int


class Known(msgspec.Struct, frozen=True):
    """What is noted of a container, by the pids of its processes, and since which image.

    `file` is that image's file as it was when all of it had been written or checked, if we know.
    """

    keeper: int
    image: str
    file: FileIdentity
    processes: dict[int, Noted]


class Tracker(Protocol):
    """What a runtime does about it."""

    def known(self) -> Known | None:
        """Return what is noted, if its keeper is there."""

    def forget(self) -> None:
        """Note that nothing is known any more, and have the keeper close what it has."""

    def keep(self, init: int, descriptors: list[int]) -> tuple[int, list[int]]:
        """Give descriptors to a keeper, who closes them unless `begun` is called.

        Returns its pid, and what it calls them. It ends with the process `init`.
        """

    def begun(self, known: Known) -> None:
        """Note what is noted from now on, and have the keeper stay."""


class Borrowed(Protocol):
    """Something that runs programs in a process."""

    def program(self) -> Program:
        """Return an empty program."""

    def run(self, program: Program) -> None:
        """Run it."""


def still_noted(known: Known | None) -> dict[int, Noted]:
    """Return those of the noted processes that are still the same ones."""
    found = {}
    for pid, noted in known.processes.items() if known else ():
        try:
            if read_stat(f"/proc/{pid}").start_time == noted.start_time:
                found[pid] = noted
        except OSError:
            pass
    return found


class Tracking:
    """Noting that begins now, for the image that is being made; ends with the `with` block.

    Unless a keeper has it by then.
    """

    def __init__(self) -> None:
        self._descriptors: dict[int, int] = {}
        self._kept: tuple[int, list[int]] = (0, [])

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def take_over(self, tracker: Tracker) -> None:
        """Fetch the descriptors that a keeper has, for which that is the end.

        From here on what it knew is not known any more: `begin` overwrites it.
        """
        known = tracker.known()
        processes = still_noted(known)
        if known and processes:
            pidfd = pidfd_open(HERE, known.keeper)
            try:
                for pid, noted in processes.items():
                    self._descriptors[pid] = pidfd_getfd(HERE, pidfd, noted.descriptor)
            finally:
                os.close(pidfd)
        tracker.forget()

    def begin(self, one: CollectedProcess, vdso: Vdso) -> None:
        """Begin with a held process; if that isn't possible, nothing of it is noted."""
        with ExitStack() as lent:
            self.begin_with(
                one.held.pid,
                one.space.mappings,
                lambda: lent.enter_context(scratch_in(one.held, vdso)),
            )

    def begin_in(self, stub: Stub, mappings: Iterable[Mapping]) -> None:
        """Begin with a process that is being restored."""
        self.begin_with(stub.pid, mappings, lambda: stub)

    def begin_with(
        self, pid: int, mappings: Iterable[Mapping], borrow: Callable[[], Borrowed]
    ) -> None:
        """Begin, likewise; `borrow` is called if the process has to make a call for it."""
        if not features.wanted(features.NOTED_WRITES):
            return
        if any(mapping[7].removesuffix(_GONE).endswith(_PINNED) for mapping in read_maps(pid)):
            self._give_up(pid)
            return
        try:
            if pid not in self._descriptors:
                self._descriptors[pid] = _created(pid, borrow())
            with Pagemap(pid) as pagemap:
                for mapping in mappings:
                    if not mapping.shared:
                        self._note(pid, mapping, pagemap)
        except (OSError, ProgramError):
            self._give_up(pid)

    def keep(self, tracker: Tracker, init: int) -> None:
        """Give all that is noted to a keeper, who stays only if `settle` tells it so.

        `init` is a living task of the first process.
        """
        if self._descriptors:
            first = int(read_status(f"/proc/{init}")["Tgid"])
            self._kept = tracker.keep(first, [*self._descriptors.values()])

    def settle(self, tracker: Tracker, image: str, file: FileIdentity) -> None:
        """Have the keeper stay, and note since which image all is noted; see `Known`."""
        if not self._descriptors:
            return
        processes = {}
        keeper, numbers = self._kept
        for pid, number in zip(self._descriptors, numbers, strict=True):
            try:
                processes[pid] = Noted(read_stat(f"/proc/{pid}").start_time, number)
            except OSError:
                pass  # it has ended
        tracker.begun(Known(keeper, image, file, processes))

    def _give_up(self, pid: int) -> None:
        if pid in self._descriptors:
            os.close(self._descriptors.pop(pid))

    def _note(self, pid: int, mapping: Mapping, pagemap: Pagemap) -> None:
        try:
            length = mapping.end - mapping.start
            userfaultfd.note(HERE, self._descriptors[pid], mapping.start, length)
            pagemap.protect(mapping.start, mapping.end, anonymous=mapping.is_anonymous)
        except OSError:
            pass  # some kinds can't be noted: it counts as written to


def _created(pid: int, borrowed: Borrowed) -> int:
    program = borrowed.program()
    theirs = userfaultfd.create(program, kernel_too=False)
    # Should we be killed before it is closed there, that is done by the next command (tidying).
    program.may_fail(userfaultfd.mark(program, theirs))
    borrowed.run(program)
    ours = descriptors.fetch(pid, program[theirs])
    try:
        end = borrowed.program()
        end.call(SYS.CLOSE, program[theirs])
        borrowed.run(end)
        userfaultfd.begin_to_note(HERE, ours)
    except BaseException:
        os.close(ours)
        raise
    return ours
