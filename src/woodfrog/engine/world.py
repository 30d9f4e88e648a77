"""The container around the files that are being collected."""

from __future__ import annotations

import os
import stat
from collections import abc, defaultdict
from collections.abc import Set as AbstractSet
from functools import cached_property
from typing import TYPE_CHECKING, Any

from woodfrog.engine.collecting_confined import Confined
from woodfrog.engine.collecting_ipc import Ipc
from woodfrog.engine.collecting_keyrings import Keyrings
from woodfrog.engine.collecting_namespaces import Namespaces
from woodfrog.engine.links import Links, is_deleted
from woodfrog.engine.places import OWN, Place, Places
from woodfrog.errors import UnsupportedResource
from woodfrog.kernel.procfs.mountinfo import Mount
from woodfrog.remote.held import Held, HeldProcess
from woodfrog.resources.deleted_files import DELETED
from woodfrog.resources.files.open_file import (
    ACCESS_MODE,
    BPF_MAP,
    BY_PATH,
    O_PATH,
    O_TMPFILE,
    PTS_MAJORS,
    OpenFile,
)
from woodfrog.resources.membership import Membership
from woodfrog.resources.mount_tree.options import IN_MEMORY
from woodfrog.resources.queue_notices import Notices

if TYPE_CHECKING:
    from woodfrog.engine.detached import DetachedMounts
    from woodfrog.engine.rings import Rings
    from woodfrog.engine.sockets import Sockets

_NAMELESS = (b"/memfd:", b"pipe:", b"socket:")


class World:
    """See resources.files.world.World; `view` is a process whose root is the container's."""

    def __init__(
        self,
        init: int,
        places: Places,
        tree: Held,
        namespaces: Namespaces,
        stdio: dict[tuple[int, int], int],
        *,
        unix_close: bool,
        tcp_close: bool,
        tcp_established: bool,
        tcp_skip_in_flight: bool,
        noted: AbstractSet[int],
        notices: Notices,
        given_mounts: AbstractSet[int] = frozenset(),
    ) -> None:
        self.init = init
        self.places = places
        self.view = places[OWN].view
        self.namespaces = namespaces
        self.root = places[OWN].root
        self.unix_close = unix_close
        self.tcp_close = tcp_close
        self.tcp_established = tcp_established
        self.tcp_skip_in_flight = tcp_skip_in_flight
        self.noted = noted
        self.notices: Notices = notices
        self.given_mounts = given_mounts
        self.mounts: dict[int, Mount] = places[OWN].mounts
        self._names = places[OWN].names
        self._files: list[OpenFile] = []
        self._with_paths: list[OpenFile] = []
        self.pty_masters: set[str] = set()
        self._sockets: dict[int, OpenFile] = {}
        self.bpf_maps: list[OpenFile] = []
        self.terminals: dict[int, bytes] = {}
        self.own_terminal = _own_terminal(self.root)
        self.packet_pipes: set[int] = set()
        self.links = Links()
        self.ipc = Ipc(init, namespaces, self.links.objects, tree.afterwards)
        # What is known of io_urings (engine/rings.py).
        self.rings: Rings | None = None
        self.detached: DetachedMounts | None = None
        # Processes whose parent has not waited for the news that they stopped or go on.
        self.news: set[int] = set()
        self.keyrings = Keyrings()
        self.confined = Confined(namespaces.in_others("user"))
        # By the inodes of FIFOs.
        self._fifo_readers: dict[tuple[int, int], OpenFile] = {}
        # Whom a lease for writing forbids all others to open, by inode.
        self._lessees: dict[tuple[int, int], OpenFile] = {}
        self._pipe_sides: dict[int, set[bool]] = defaultdict(set)
        # By inode, as which of descriptors 0 to 2 the container was given what is outside; and
        # what processes have there now.
        self._stdio = stdio
        self._at_stdio: dict[tuple[int, int], int] = {}
        self._learn_ids(tree)

    def _learn_ids(self, tree: Held) -> None:
        """Learn what the container calls its tasks and groups, and whose children they are."""
        self._ids = {task.pid: task.namespace_pid for task in tree.tasks()}
        self._ids |= {one.group: one.namespace_pid for one in tree.processes}
        self._ids |= {zombie.pid: zombie.namespace_pid for zombie in tree.zombies}
        self._children: dict[int, list[list[int]]] = defaultdict(list)
        for one in tree.processes:
            self._children[self.identify(one.leader.stat.parent)].append(one.ids)
        self._processes = {one.namespace_pid for one in tree.processes}
        self._processes |= {zombie.namespace_pid for zombie in tree.zombies}
        self._groups = {
            one.leader.stat.group: one.ids_of(one.leader.status["NSpgid"])[0]
            for one in tree.processes
        }

    @cached_property
    def sockets(self) -> Sockets:
        """What is known of sockets."""
        from woodfrog.engine.sockets import Sockets

        return Sockets(self.init, self.namespaces)

    @property
    def has_sockets(self) -> bool:
        """Whether there are any."""
        return bool(self._sockets)

    def look_at(self, files: list[OpenFile]) -> None:
        """Learn what a file can only know in the company of the others."""
        self._files = files
        self._with_paths = [file for file in files if file.target.startswith(b"/")]
        for file in files:
            if file.target.startswith(BY_PATH):
                continue
            if file.target.endswith(DELETED):
                file.target = self._place_of_file(file).mounted(file.target, file.stat)
            self._look_at_fifo(file)
            if file.has_write_lease:
                self._lessees[file.stat.st_dev, file.stat.st_ino] = file
            if (lowest := min(fd for _, fd in file.holders)) <= 2:
                self._at_stdio.setdefault((file.stat.st_dev, file.stat.st_ino), lowest)
            if file.target.startswith(b"pipe:"):
                inode = int(file.target[6:-1])
                access = file.flags & ACCESS_MODE
                if access != 0 and file.flags & os.O_DIRECT:
                    self.packet_pipes.add(inode)
                self._pipe_sides[inode] |= {access != 1} if access != 2 else {True, False}
            elif file.flags & O_TMPFILE == O_TMPFILE:
                self.links.unnamed.add((file.stat.st_dev, file.stat.st_ino))
            elif file.target == BPF_MAP:
                self.bpf_maps.append(file)
            elif file.target.startswith(b"socket:"):
                inode = int(file.target[8:-1])
                self.sockets.inside.add(inode)
                self._sockets[inode] = file
            elif os.major(file.stat.st_rdev) in PTS_MAJORS and file.mnt_id in self.mounts:
                self.terminals[os.minor(file.stat.st_rdev)] = file.target
            if "tty-index" in file.fdinfo and file.mnt_id in self.mounts:
                self.pty_masters.add(file.fdinfo["tty-index"])

    def _look_at_fifo(self, file: OpenFile) -> None:
        """Learn who reads a FIFO."""
        if not (file.target.startswith(b"/") and stat.S_ISFIFO(file.stat.st_mode)):
            return
        if not file.flags & O_PATH:
            key = (file.stat.st_dev, file.stat.st_ino)
            first = self._fifo_readers.setdefault(key, file)
            if not _is_readable(first) and _is_readable(file):
                self._fifo_readers[key] = file

    def identify(self, pid: int) -> int:
        """See the protocol."""
        return self._ids.get(pid, 0)

    def is_unix_socket(self, file: OpenFile) -> bool:
        """Tell whether a file is a unix socket of any kind."""
        is_one = stat.S_ISSOCK(file.stat.st_mode) and file.target.startswith(b"socket:")
        return is_one and self.sockets.unix(file.stat.st_ino) is not None

    def controls_sessions(self, terminal: int) -> bool:
        """See the protocol."""
        is_outside = terminal in self.terminals and terminal != self.own_terminal
        return str(terminal) in self.pty_masters or is_outside

    def is_covered_by_own(self, path: bytes) -> bool:
        """See the protocol."""
        return any(
            number not in self.given_mounts
            and (path == one.point or path.startswith(one.point.rstrip(b"/") + b"/"))
            for number, one in self.mounts.items()
        )

    def named(self, target: bytes) -> int:
        """See the protocol."""
        return next((file.number for file in self._files if file.target == target), 0)

    def open_socket(self, inode: int) -> OpenFile | None:
        """See the protocol."""
        return self._sockets.get(inode)

    def renew_socket(self, file: OpenFile, descriptor: int) -> None:
        """Note that another socket, of which this is a descriptor of ours, is there instead."""
        file.renew(b"socket:[%d]" % os.fstat(descriptor).st_ino, os.dup(descriptor))
        self.sockets.inside.add(file.stat.st_ino)
        self._sockets[file.stat.st_ino] = file

    def ring(self, file: OpenFile) -> dict[str, Any]:
        """See the protocol."""
        assert self.rings is not None
        return self.rings.collect(file)

    def bpf_map(self, number: int) -> int:
        """See the protocol."""
        found = (one.number for one in self.bpf_maps if one.fdinfo.get("map_id") == str(number))
        return next(found, 0)

    def is_process(self, pid: int) -> bool:
        """See the protocol."""
        return pid in self._processes

    def identify_group(self, pid: int) -> int:
        """Return the container's id of a process group that we see as `pid`, or 0."""
        return self._groups.get(pid, 0)

    def detached_mount(self, file: OpenFile) -> tuple[int, bool]:
        """See the protocol."""
        return self.detached.of(file) if self.detached else (0, False)

    def place_of_mount(self, mnt_id: int) -> Place | None:
        """See the protocol."""
        number = self.places.of_mount(mnt_id)
        return None if number is None else self.places[number]

    def _place_of_file(self, file: OpenFile) -> Place:
        """Return the mount namespace that a file is in; the own one if it is in none."""
        return self.places[self.places.of_mount(file.mnt_id) or OWN]

    def place_of(self, pid: int) -> Place:
        """Return the mount namespace that a process is in."""
        return self.places[self.namespaces.of(pid).get("mnt", OWN)]

    def is_at_home(self, pid: int) -> bool:
        """Tell whether a process is in the container's own mount namespace."""
        return self.place_of(pid) is self.places[OWN]

    def ipc_of(self, pid: int) -> int:
        """Return the id of the ipc namespace that a task is in; 0 is the container's own."""
        return self.namespaces.of(pid).get("ipc", 0)

    def within(self, file: OpenFile) -> Membership:
        """Return the nested namespaces in which a file must be made again.

        Raises UnsupportedResource where that can't be.
        """
        found = {}
        if file.target.startswith(b"socket:"):
            if network := self.namespaces.of_socket(file.descriptor):
                found["net"] = network
            if mounts := self._place_of_unix(file):
                found["mnt"] = mounts
        elif namespace := self.queue_devices.get(file.stat.st_dev):
            found["ipc"] = namespace
        elif place := self.places.of_mount(file.mnt_id):
            found["mnt"] = place
            if self.places[place].mounts[file.mnt_id].type == "proc":
                raise UnsupportedResource(
                    "is a file of a proc that is mounted in a mount namespace of its own, which"
                    " cannot be saved yet"
                )
        return found

    def _place_of_unix(self, file: OpenFile) -> int:
        """Return the nested mount namespace in which a unix socket's path, or its peer's, is."""
        if self.places.are_one or (one := self.sockets.unix(file.stat.st_ino)) is None:
            return 0
        from woodfrog.resources.files import unix_paths

        ends = [file, self.open_socket(one.peer)]
        found = {
            self.places.of_mount(mnt_id) or 0
            for end in ends
            if end is not None and (mnt_id := unix_paths.mount_of(end.descriptor)) is not None
        }
        if len(found) > 1:
            raise UnsupportedResource(
                "is a unix socket that is connected to one with a path in another mount namespace,"
                " and has one in its own, which cannot be saved yet"
            )
        return found.pop() if found else 0

    def is_copied(self, mnt_id: int) -> bool:
        """Tell whether the files of a mount may be read for the image."""
        return mnt_id in self.mounts and self.mounts[mnt_id].type in IN_MEMORY

    def children(self, parent: HeldProcess) -> dict[int, int]:
        """Return the living children of a process by the container's ids, and what it calls them.

        One in a pid namespace deeper than its parent's has an id in that of the parent, too.
        """
        level = len(parent.ids) - 1
        return {ids[0]: ids[level] for ids in self._children[parent.namespace_pid]}

    def one_sided(self, file: OpenFile) -> bool:
        """See the protocol."""
        return len(self._pipe_sides[file.stat.st_ino]) < 2

    def stdio_number(self, file: OpenFile) -> int | None:
        """See the protocol."""
        lowest = min(fd for _, fd in file.holders)
        inode = (file.stat.st_dev, file.stat.st_ino)
        return lowest if lowest <= 2 else self._stdio.get(inode, self._at_stdio.get(inode))

    def is_stdio_opened_inside(self, file: OpenFile) -> bool:
        """See the protocol."""
        inode = (file.stat.st_dev, file.stat.st_ino)
        return min(fd for _, fd in file.holders) > 2 and inode in self._at_stdio

    def memory_object(self, fd: int, name: bytes) -> int:
        """See the protocol."""
        return self.links.memory(fd, name)

    @property
    def queue_devices(self) -> abc.Mapping[int, int]:
        """See the protocol."""
        return self.ipc.queue_devices

    @property
    def queue_names(self) -> set[bytes]:
        """See the protocol."""
        return self.ipc.queue_names

    def is_deleted(self, file: OpenFile) -> bool:
        """See the protocol."""
        return is_deleted(file.target, file.stat, self._place_of_file(file))

    def deleted_file(self, file: OpenFile) -> int:
        """See the protocol."""
        lessee = file if file.has_write_lease else None
        place = self._place_of_file(file)
        return self.links.deleted_file(file.link, file.target, place, lessee)

    def is_first_to_read(self, file: OpenFile) -> bool:
        """See the protocol."""
        return self._fifo_readers[file.stat.st_dev, file.stat.st_ino] is file

    @property
    def has_write_leases(self) -> bool:
        """Tell whether there are files that nobody may open."""
        return bool(self._lessees)

    @property
    def leased(self) -> dict[tuple[int, int], int]:
        """Return descriptors of files that nobody may open, by their inodes."""
        return {
            inode: file.descriptor
            for inode, file in self._lessees.items()
            if file.flags & ACCESS_MODE != os.O_WRONLY
        }

    def find_inode(
        self, device: tuple[int, int], inode: int, kind: int, handle: bytes
    ) -> tuple[bytes, int]:
        """See the protocol."""
        for file in self._with_paths:
            mount = self.mounts.get(file.mnt_id)
            if mount is not None and mount.device == device and file.stat.st_ino == inode:
                path, number = self.links.name_at(file.link, file.stat, self.places[OWN])
                if number or self._names.stands_at(path, file.stat):
                    return path, number
        for fd in self._names.by_handle(device, kind, handle):
            path, number = self.links.name_at(f"/proc/self/fd/{fd}", os.fstat(fd), self.places[OWN])
            if number or self._names.stands_at(path, os.fstat(fd)):
                return path, number
        name = self._names.by_inode(device, inode)
        if name is None:
            major, minor = device
            raise UnsupportedResource(
                f"watches inode {inode} of the file system {major}:{minor}, whose name is not found"
            )
        return name, 0

    def nameless(self, device: tuple[int, int], inode: int) -> int:
        """See the protocol."""
        for file in self._files:
            if file.target.startswith(_NAMELESS) and not file.flags & O_PATH:
                found = file.stat
                if (found.st_dev, found.st_ino) == (os.makedev(*device), inode):
                    return file.number
        return 0

    def close(self) -> None:
        """Close what was opened."""
        self.links.close()
        self.ipc.close()


def _is_readable(file: OpenFile) -> bool:
    return file.flags & ACCESS_MODE != os.O_WRONLY


def _own_terminal(root: str) -> int:
    """Return the number of the terminal that is the container's console; -1 if it has none."""
    try:
        device = os.stat(f"{root}/dev/console").st_rdev
    except OSError:
        return -1
    return os.minor(device) if os.major(device) in PTS_MAJORS else -1
