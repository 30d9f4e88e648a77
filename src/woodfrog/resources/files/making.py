"""What the kinds of files ask of a restore, or rollback, while they are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from woodfrog.image.record import Part
from woodfrog.remote.program import Program

if TYPE_CHECKING:
    from woodfrog.resources.files.base import FileRecord

T = TypeVar("T")

# One file may have so much in a queue, as a rule: who makes many has calls run where there is less.
MUCH = 24 << 20


class Maker(Part, frozen=True):
    """Who made a file, as the kernel remembers of some: a process (0: it has ended) and user."""

    pid: int
    uid: int
    gid: int
    groups: list[int] = []


def needed(maker: Maker | None) -> Maker | None:
    """Return who must make something, None if the root stub of a restore is as good."""
    if maker is None or (maker.uid == maker.gid == 0 and maker.pid == 1):
        return None
    return maker


class Making(Protocol):
    """What restoring a file may need of the files around it."""

    program: Program
    # All files that are made before the processes are.
    records: Sequence[FileRecord]
    # TCP connections to outside are to be reset.
    tcp_close: bool
    # Socket buffers may be larger than programs may make them; nobody may in a user namespace.
    may_force_buffers: bool
    # An id that no process has: that of one which has ended.
    spare_pid: int

    @property
    def network(self) -> int:
        """The id of the nested network namespace in which the file is made; 0: in none."""

    @property
    def mounts(self) -> int:
        """The id of the nested mount namespace in which the file is made; 0: in none."""

    @property
    def new_network(self) -> bool:
        """Whether the network namespace is the container's own, or a nested one."""

    @property
    def files(self) -> Mapping[int, int]:
        """Return the root stub's descriptors of the files that stand, by id."""

    def uncovered(self, directory: bytes) -> int:
        """Return the stub's descriptor of a directory as it was before mounts were made."""

    def detached(self, number: int) -> int:
        """Return the stub's descriptor of a mount that is attached nowhere; raises ImageError."""

    def memory_object(self, number: int, *, for_writing: bool = False) -> int:
        """Return the stub's descriptor of a shared memory object or a deleted file."""

    def stdio(self, number: int) -> int:
        """Return the stub's descriptor of the new container's stdio."""

    def stdio_can_be_opened(self, number: int) -> bool:
        """Tell whether that is something to open once more, which then has no other position."""

    def has_terminal(self) -> bool:
        """Tell whether the new container has a terminal of its own."""

    def terminal(self) -> bytes:
        """Return the path of the new container's terminal; raises UnsupportedResource."""

    def terminal_has_size(self) -> bool:
        """Tell whether the new container's terminal has got a size from its user."""

    def pipe(self) -> tuple[int, int]:
        """Make a pipe; returns its read end and its write end."""

    def pair(self, kind: int) -> tuple[int, int]:
        """Make a pair of unix sockets of this type."""

    def reopen(self, memory: int, flags: int) -> int:
        """Open shared memory or a deleted file once more, as by its magic link in /proc."""

    def refuse_forbidden(self, fd: int, flags: int) -> None:
        """Have a file that we open by our rights be one that the container may open so."""

    def refuse_displacing(self, path: bytes) -> None:
        """Refuse to put a unix socket where anything but one stands."""

    def lacks_directory(self, path: bytes) -> bool:
        """Tell whether the directory of a path is missing, or cannot be written to."""

    def tell_missing(self, what: str) -> None:
        """Have people be told what a file lacks in the new container."""

    def reopen_descriptor(self, fd: int, flags: int) -> int:
        """Open what a descriptor of the stub names once more, likewise."""

    def open_namespace(self, name: str, number: int, flags: int) -> int:
        """Open a nested namespace, or 0: the new container's, by its name in /proc/PID/ns."""

    def has_address(self, address: bytes) -> bool:
        """Tell whether the network namespace has an internet address."""

    def address_at(self, device: bytes, family: int) -> bytes:
        """Return an internet address of a network device; empty if it is missing, or has none."""

    def device_number(self, name: bytes) -> int:
        """Return the number of a network device; 0 if the network namespace has none such."""

    def by_all_rights(self) -> AbstractContextManager[None]:
        """Have calls made with capabilities that the new container may lack."""

    def ours(self, fd: int) -> int:
        """Return a descriptor of ours, until all stand, for one of the stub that is settled."""

    def settle(self, fd: int) -> int:
        """Run the calls so far; returns the number of a descriptor."""

    def has_room(self, length: int) -> bool:
        """Tell whether so many bytes can be passed in before calls must run (`settle`)."""

    def send(self, ours: int) -> int:
        """Give the stub a descriptor of ours; returns its own."""

    def hold_to_the_end(self, fd: int) -> None:
        """Keep a file open, by a descriptor of ours, until all processes run."""

    def stands(self, maker: Maker | None) -> bool:
        """Tell whether the process of a maker stands already, and can do things itself."""

    def owner(self, file: int) -> Maker | None:
        """Return who has a file, if that stands already; of these, the first."""

    def by_process(
        self,
        maker: Maker,
        given: list[int],
        act: Callable[[Program, list[int]], tuple[int, ...]],
    ) -> tuple[int, ...]:
        """Have a process that stands make calls on descriptors of the stub's, given by number.

        The descriptors that these calls make are the stub's in the end.
        """

    def file_of(self, listener: int) -> AbstractContextManager[int]:
        """Have a descriptor, in the stub, of the file that a unix socket of its is bound to.

        Everybody may connect there meanwhile.
        """

    def acting(self, as_whom: Maker | None, make: Callable[[], T]) -> T:
        """Have calls made at once by another process and user; None: by the first process's.

        `make` may use what earlier calls have returned only if that is known (`settle`).
        """

    def spare(self, fd: int) -> int:
        """Have a descriptor closed once all files stand."""

    def shared(self, key: object) -> Any:
        """Return what `share` kept, or None."""

    def share(self, key: object, value: Any) -> None:
        """Keep something that several files are made from."""

    def at_end(self, action: Callable[[Making], None]) -> None:
        """Have something done once all files stand."""


class Late(Protocol):
    """What opens files of processes, once those stand; all descriptors are ours."""

    def open_process(self, pid: int, flags: int) -> int:
        """Open a task by the container's id (pidfd_open(2))."""

    def open_ended_process(self, status: int, flags: int) -> int:
        """Open a process that then ends by this status, and is waited for."""

    def open_namespace(self, name: str, number: int, flags: int) -> int:
        """Open a nested namespace, of a kind as /proc/PID/ns calls it, by its id."""

    def open_in_session(self, terminal: int, path: bytes, how: int, flags: int) -> int:
        """Open a path in the session that a pseudoterminal controls; `flags` are for later."""

    def open_in_proc(self, point: bytes, pid: int, name: bytes, flags: int, *, ended: bool) -> int:
        """Open a file of a process, in the proc that is mounted at `point` in the container.

        If it has `ended`, another process has its id for that moment.
        """
