"""What the kinds of files ask of the container around them while they are collected."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Protocol

from woodfrog.kernel.procfs.mountinfo import Mount
from woodfrog.resources.files.open_file import OpenFile
from woodfrog.resources.queue_notices import Notices


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

    def detached_mount(self, file: OpenFile) -> tuple[int, bool]:
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

    def open_socket(self, inode: int) -> OpenFile | None:
        """Return an open socket of the container by its inode."""

    def ring(self, file: OpenFile) -> dict[str, Any]:
        """Return the fields of an io_uring's record; raises UnsupportedResource."""

    def is_process(self, pid: int) -> bool:
        """Tell whether a process, or zombie, of the container has this id of the container's."""

    def one_sided(self, file: OpenFile) -> bool:
        """Tell whether only one end of a pipe is in the container."""

    def stdio_number(self, file: OpenFile) -> int | None:
        """Return as which of descriptors 0 to 2 the container may have got a file, if so."""

    def is_stdio_opened_inside(self, file: OpenFile) -> bool:
        """Tell whether such a file is not the one that came from outside, but opened by it."""

    def memory_object(self, fd: int, name: bytes) -> int:
        """Return the id of the shared memory that a descriptor of ours names."""

    def is_deleted(self, file: OpenFile) -> bool:
        """Tell whether a file with a path has been deleted."""

    def find_inode(
        self, device: tuple[int, int], inode: int, kind: int, handle: bytes
    ) -> tuple[bytes, int]:
        """Return a path of an inode, and its id if it is a deleted file, else 0.

        `handle`, of this kind, is as name_to_handle_at(2) gives it.
        """

    def nameless(self, device: tuple[int, int], inode: int) -> int:
        """Return the id of an open memfd, pipe or socket by its inode; 0 if nobody has it."""

    def deleted_file(self, file: OpenFile) -> int:
        """Return the id of the deleted file that such a file is."""

    def is_first_to_read(self, file: OpenFile) -> bool:
        """Tell whether a file is the first by which a FIFO is read, or written if nobody reads."""
