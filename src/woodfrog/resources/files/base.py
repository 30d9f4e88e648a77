"""What all kinds of open files have in common."""

import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, ClassVar, Protocol, Self, TypeVar

import msgspec

from woodfrog.image.record import Part, Record
from woodfrog.kernel import syscalls
from woodfrog.kernel.caller import Caller
from woodfrog.kernel.procfs.fdinfo import read_fdinfo
from woodfrog.kernel.procfs.mountinfo import Mount
from woodfrog.remote.descriptors import fetch
from woodfrog.remote.program import Program
from woodfrog.resources.file_signals import O_ASYNC
from woodfrog.resources.queue_notices import Notices

# Flags that open(2) and fcntl(F_SETFL) take, and that fdinfo shows.
ACCESS_MODE = 0o3
O_CLOEXEC = 0o2000000
O_PATH = 0o10000000
O_TMPFILE = 0o20200000
_LARGEFILE = 0o100000
_SO_DOMAIN = 39
CREATION_FLAGS = 0o100 | 0o200 | 0o400 | 0o1000 | O_CLOEXEC  # CREAT EXCL NOCTTY TRUNC

# What magic links of some kinds read.
EPOLL = b"anon_inode:[eventpoll]"
IO_URING = b"anon_inode:[io_uring]"
BPF_MAP = b"anon_inode:bpf-map"
# What has no path, and how the target of such a one begins that was opened by O_PATH.
_NAMELESS = (b"pipe:", b"socket:", b"anon_inode:")
BY_PATH = b"O_PATH of "
# Device numbers of pseudoterminals' slaves.
PTS_MAJORS = range(136, 144)

T = TypeVar("T")


class World(Protocol):
    """What collecting a file may need to know of the container around it."""

    init: int
    # Leads to the container's root directory.
    root: str
    mounts: dict[int, Mount]
    namespaces: Any
    unix_close: bool
    tcp_close: bool
    tcp_established: bool
    tcp_skip_in_flight: bool
    # Numbers of the pseudoterminals whose master is in the container.
    pty_masters: set[str]
    # Paths of the terminals that are open in the container, by their numbers.
    terminals: dict[int, bytes]
    # The number of the container's own terminal, or -1.
    own_terminal: int
    # The ids of mounts that are as the container got them.
    given_mounts: AbstractSet[int]
    # Inodes of the pipes that are written to in packet mode.
    packet_pipes: set[int]
    # Learns who waits for notifications by message queues.
    notices: Notices

    @property
    def sockets(self) -> Any:
        """What is known of the container's sockets."""

    def place_of_mount(self, mnt_id: int) -> Any:
        """Return the mount namespace that a mount is in: its `root`, `mounts` and `names`.

        None: it is in none of the container's.
        """

    @property
    def queue_devices(self) -> Mapping[int, int]:
        """Return the ids of ipc namespaces, 0 for the own one, by their queues' devices."""

    @property
    def queue_names(self) -> set[bytes]:
        """Return the names of POSIX message queues."""

    def detached_mount(self, file: "OpenFile") -> tuple[int, bool]:
        """Return the id of the mount, attached nowhere, that a file is in, and whether it holds it.

        0: it is in none such.
        """

    def identify(self, pid: int) -> int:
        """Return the container's id of a process or thread that we see as `pid`, or 0."""

    def controls_sessions(self, terminal: int) -> bool:
        """Tell whether sessions can have this terminal, which is not the container's own."""

    def is_copied(self, mnt_id: int) -> bool:
        """Tell whether the files of a mount may be read for the image, which has them."""

    def is_covered_by_own(self, path: bytes) -> bool:
        """Tell whether a mount that the container has made is above a path, or there."""

    def bpf_map(self, number: int) -> int:
        """Return the id of the file of a BPF map, by the kernel's number; 0 if nobody has it."""

    def named(self, target: bytes) -> int:
        """Return the id of an open file whose magic link reads so; 0 if nobody has it."""

    def open_socket(self, inode: int) -> "OpenFile | None":
        """Return an open socket of the container by its inode."""

    def ring(self, file: "OpenFile") -> dict[str, Any]:
        """Return the fields of an io_uring's record; raises UnsupportedResource."""

    def is_process(self, pid: int) -> bool:
        """Tell whether a process, or zombie, of the container has this id of the container's."""

    def one_sided(self, file: "OpenFile") -> bool:
        """Tell whether only one end of a pipe is in the container."""

    def stdio_number(self, file: "OpenFile") -> int | None:
        """Return as which of descriptors 0 to 2 the container may have got a file, if so."""

    def is_stdio_opened_inside(self, file: "OpenFile") -> bool:
        """Tell whether such a file is not the one that came from outside, but opened by it."""

    def memory_object(self, fd: int, name: bytes) -> int:
        """Return the id of the shared memory that a descriptor of ours names."""

    def is_deleted(self, file: "OpenFile") -> bool:
        """Tell whether a file with a path has been deleted."""

    def find_inode(
        self, device: tuple[int, int], inode: int, kind: int, handle: bytes
    ) -> tuple[bytes, int]:
        """Return a path of an inode, and its id if it is a deleted file, else 0.

        `handle`, of this kind, is as name_to_handle_at(2) gives it.
        """

    def deleted_file(self, file: "OpenFile") -> int:
        """Return the id of the deleted file that such a file is."""

    def is_first_to_read(self, file: "OpenFile") -> bool:
        """Tell whether a file is the first by which a FIFO is read, or written if nobody reads."""


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


class OpenFile:
    """An open file of a held process, found at one of its descriptors."""

    def __init__(self, pid: int, fd: int, target: bytes) -> None:
        self.pid = pid
        self.fd = fd
        self.target = target
        self.fdinfo, self.lines = read_fdinfo(pid, fd)
        flags = int(self.fdinfo["flags"], 8)
        self.cloexec = bool(flags & O_CLOEXEC)
        self.flags = flags & ~O_CLOEXEC & ~_LARGEFILE
        if flags & O_PATH and target.startswith(_NAMELESS):
            # It only names what others are, and nothing else can be asked of it.
            self.target = BY_PATH + target
        self.position = int(self.fdinfo["pos"])
        self.mnt_id = int(self.fdinfo.get("mnt_id", "0"))
        self.inode = int(self.fdinfo.get("ino", "0"))
        # Every descriptor that names this file: (pid as we see it, number).
        self.holders: list[tuple[int, int]] = [(pid, fd)]
        # Its id in the image; files in the queue of a unix socket, by the number of the message.
        self.number = 0
        # Its kind is made when processes stand.
        self.is_late = False
        self.in_flight: dict[int, list[OpenFile]] = {}
        # All messages in that queue: empty ones show only at the first look.
        self.messages: list[Any] = []

    @property
    def has_write_lease(self) -> bool:
        """Tell whether others who open the file would break a lease (fcntl(2), F_SETLEASE)."""
        leases = (line for line in self.lines if " LEASE " in line)
        return any(" BREAKING " in line or " WRITE " in line for line in leases)

    @property
    def link(self) -> str:
        """The magic link that leads to the file."""
        return f"/proc/{self.pid}/fd/{self.fd}"

    @cached_property
    def descriptor(self) -> int:
        """Our own descriptor for the file."""
        return fetch(self.pid, self.fd)

    @cached_property
    def stat(self) -> os.stat_result:
        """The file's inode."""
        return os.stat(self.link)

    @cached_property
    def socket_family(self) -> int:
        """The address family of a socket."""
        # Left to itself, Python asks for the name, which not every kind has.
        with socket.socket(socket.AF_UNIX, fileno=os.dup(self.descriptor)) as one:
            return int(one.getsockopt(socket.SOL_SOCKET, _SO_DOMAIN))

    def renew(self, target: bytes, descriptor: int) -> None:
        """Be another file, that has taken this one's place at all of its descriptors."""
        self.close()
        self.target = target
        self.__dict__["descriptor"] = descriptor
        self.__dict__.pop("stat", None)

    def close(self) -> None:
        """Close our own descriptor, if there is one."""
        if "descriptor" in self.__dict__:
            os.close(self.__dict__.pop("descriptor"))


class Making(Protocol):
    """What restoring a file may need of the files around it."""

    program: Program
    # All files that are made before the processes are.
    records: "Sequence[FileRecord]"
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

    def send(self, ours: int) -> int:
        """Give the stub a descriptor of ours; returns its own."""

    def hold_to_the_end(self, fd: int) -> None:
        """Keep a file open, by a descriptor of ours, until all processes run."""

    def stands(self, maker: "Maker | None") -> bool:
        """Tell whether the process of a maker stands already, and can do things itself."""

    def owner(self, file: int) -> "Maker | None":
        """Return who has a file, if that stands already; of these, the first."""

    def by_process(
        self,
        maker: "Maker",
        given: list[int],
        act: "Callable[[Program, list[int]], tuple[int, ...]]",
    ) -> tuple[int, ...]:
        """Have a process that stands make calls on descriptors of the stub's, given by number.

        The descriptors that these calls make are the stub's in the end.
        """

    def file_of(self, listener: int) -> AbstractContextManager[int]:
        """Have a descriptor, in the stub, of the file that a unix socket of its is bound to.

        Everybody may connect there meanwhile.
        """

    def acting(self, as_whom: "Maker | None", make: Callable[[], T]) -> T:
        """Have calls made at once by another process and user; None: by the first process's.

        `make` may use what earlier calls have returned only if that is known (`settle`).
        """

    def spare(self, fd: int) -> int:
        """Have a descriptor closed once all files stand."""

    def shared(self, key: object) -> Any:
        """Return what `share` kept, or None."""

    def share(self, key: object, value: Any) -> None:
        """Keep something that several files are made from."""

    def at_end(self, action: Callable[["Making"], None]) -> None:
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


class Row(msgspec.Struct, frozen=True):
    """What the README says of a kind: what such files are, and what of them is kept or refused."""

    called: str
    kept: tuple[str, ...]
    refused: tuple[str, ...] = ()


class FileRecord(Record, frozen=True):
    """An open file description. Descriptors refer to it by `id`."""

    row: ClassVar[Row]

    id: int
    flags: int
    # Opened by `restore_late`, when all processes and threads stand, instead of `restore`.
    late: ClassVar[bool] = False
    # Its memory can be mapped, and it is nowhere in a file system.
    has_memory: ClassVar[bool] = False
    # Made by its owner, when that has its rights: an io_uring with a thread of the kernel's.
    made_last: ClassVar[bool] = False

    # A rollback may make it anew, for those who had it.
    may_be_replaced: ClassVar[bool] = False

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        """Tell whether the file is of this kind."""
        raise NotImplementedError

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        """Read the file into a record with this id; raises UnsupportedResource."""
        raise NotImplementedError

    def losses(self) -> Mapping[str, int]:
        """Return what of it a flag allowed to lose, or programs are told that is lost: how many."""
        return {}

    def turn(self) -> int:
        """Return when it is to be made: those with a lower one come before."""
        return 0

    def own_addresses(self) -> set[bytes]:
        """Return the internet addresses of the container's own that it names."""
        return set()

    def moved(self, moves: Mapping[bytes, bytes]) -> Self:
        """Return the file for a container that has other addresses."""
        del moves
        return self

    def bonds(self) -> Iterable[object]:
        """Return what only files have in common that are made together, like the ends of a pipe."""
        return ()

    def immaterial(self, now: "FileRecord") -> frozenset[str]:
        """Return the names of fields in which an open file may differ, and stay at a rollback."""
        del now
        return frozenset()

    def leads(self) -> Iterable[object]:
        """Return what those follow that are made through it: they are made anew if it is."""
        return ()

    def follows(self) -> Iterable[object]:
        """Return what leads it: that may stay when it is made anew, but for `bonds` with that."""
        return ()

    def carries(self) -> set[int]:
        """Return the ids of the files that are in flight with what waits at it."""
        return set()

    def restore(self, making: Making) -> int:
        """Make the file in the root stub; returns its descriptor."""
        raise NotImplementedError

    def restore_late(self, late: Late) -> int:
        """Open the file; returns a descriptor of ours."""
        raise NotImplementedError

    def is_of_ended(self) -> bool:
        """Tell whether a late file is of a process that has ended."""
        return False

    def refuse_holders(self, holders: set[int], bounding: int) -> None:
        """Refuse a late file that these processes, by their ids, could not have opened."""

    def connect(self, program: Program, fd: int, table: "DescriptorTable") -> None:
        """Tie the file to others, in a process that has it as `fd`, once all processes stand."""

    def ties(self) -> set[int]:
        """Return the ids of the files that `connect` must find in the process's table."""
        return set()

    @property
    def may_be_set_back(self) -> bool:
        """Tell whether a rollback can give an open file the state that it had."""
        return hasattr(self, "position") and not self.flags & O_PATH

    def set_back(self, descriptor: int) -> None:
        """Do that, by a descriptor of ours."""
        os.lseek(descriptor, getattr(self, "position", 0), os.SEEK_SET)

    def refuse_wider(self, bounding: int) -> None:
        """Refuse what needs a capability that the container lacks; raises UnsupportedResource."""

    def needs_deleted(self) -> set[int]:
        """Return the ids of the deleted files that `complete` will need."""
        return set()

    def complete(self, descriptor: int, root: int, deleted: Mapping[int, int]) -> None:
        """Do what must come last of all, when nothing of ours touches any files any more.

        All three are descriptors of ours: of this file, the container's root, deleted files.
        """

    def verify(self, descriptor: int) -> None:
        """Check what was made, through a descriptor of ours; raises ImageError."""

    def missing(self, descriptor: int) -> str:
        """Return what the file lacks in the new container, for the user to know."""
        del descriptor
        return ""


class DescriptorTable(msgspec.Struct, frozen=True):
    """A process's descriptors: the ids of the files behind them, and which are close-on-exec."""

    files: Mapping[int, int]
    cloexec: frozenset[int]


def set_flags(on: Caller, fd: int, flags: int) -> None:
    """Give a file the status flags that it was recorded with, but O_ASYNC: see file_signals."""
    syscalls.set_status_flags(on, fd, flags & ~ACCESS_MODE & ~CREATION_FLAGS & ~O_ASYNC)
