"""FILES: the root stub opens every file once, at descriptors that no process of the image uses."""

import fcntl
import os
import socket
import stat
import struct
import termios
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from woodfrog.engine.making_namespaces import MadeNamespaces
from woodfrog.engine.passing import Delegates
from woodfrog.errors import ImageError, UnsupportedResource, while_
from woodfrog.kernel import netdevice, syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.mounts import AT_EMPTY_PATH, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS
from woodfrog.kernel.netlink.messages import socket_in
from woodfrog.kernel.procfs.addresses import read_addresses
from woodfrog.remote import descriptors
from woodfrog.remote.address import page_up
from woodfrog.remote.program import Placeholder, Program
from woodfrog.remote.stub import Stub
from woodfrog.resources import credentials, deleted_files, shared_memory
from woodfrog.resources.deleted_files import DeletedFile
from woodfrog.resources.files import base
from woodfrog.resources.files.base import DescriptorTable, FileRecord
from woodfrog.resources.files.deleted import OpenDeletedFile
from woodfrog.resources.files.socket_option_table import CAP_NET_ADMIN, CAP_NET_RAW
from woodfrog.resources.nested import Membership
from woodfrog.resources.shared_memory import SharedMemory

_PROGRAM_CALLS = 4000
_AT_EACCESS = 0x200
# What an access mode of open(2) needs; 3 is for ioctl(2) alone, and needs both.
_ACCESS = (os.R_OK, os.W_OK, os.R_OK | os.W_OK, os.R_OK | os.W_OK)
# For SO_SNDBUFFORCE and TCP_REPAIR, and for a peer's last segments.
_FOR_SOCKETS = CAP_NET_ADMIN | CAP_NET_RAW


T = TypeVar("T")


def _resolved(program: Program, value: Any) -> Any:
    """Return a value with numbers instead of placeholders, once their program has run."""
    if isinstance(value, tuple):
        return tuple(_resolved(program, one) for one in value)
    return program[value] if isinstance(value, Placeholder) else value


K = TypeVar("K")
V = TypeVar("V")


class _Made(dict[K, V]):
    """What calls gave, by key: placeholders become numbers when their program has run."""

    def __init__(self) -> None:
        self._waiting: list[K] = []

    def __setitem__(self, key: K, value: V) -> None:
        super().__setitem__(key, value)
        if isinstance(value, Placeholder | tuple):
            self._waiting.append(key)

    def resolve(self, program: Program) -> None:
        """Take the results of a program that has run."""
        for key in self._waiting:
            super().__setitem__(key, _resolved(program, self[key]))
        self._waiting.clear()


class Making:
    """See resources.files.base.Making; also where each file came to be.

    `capabilities` are what the new container may have, `permitted` what its stubs have; `undo`
    closes descriptors of ours.
    """

    def __init__(
        self,
        stub: Stub,
        high: int,
        *,
        capabilities: int,
        permitted: int,
        tcp_close: bool,
        undo: ExitStack,
        new_network: bool,
        namespaces: MadeNamespaces,
        may_force_buffers: bool,
        spare_pid: int,
        uncovered: Mapping[bytes, int],
    ) -> None:
        self._undo = undo
        self.capabilities = capabilities
        self.permitted = self._effective = permitted
        self.tcp_close = tcp_close
        self._has_new_network = new_network
        self._namespaces = namespaces
        # The nested namespaces that the stub is in.
        self._within: Membership = {}
        self.may_force_buffers = may_force_buffers
        self.spare_pid = spare_pid
        self._uncovered = uncovered
        self.stub = stub
        self.high = high
        self.program: Program = stub.program()
        # What files lack in the new container.
        self.missing: list[str] = []
        # Descriptors in the root stub, all at `high` or above.
        self.records: Sequence[FileRecord] = ()
        self.files: _Made[int, int] = _Made()
        self.objects: _Made[int, int] = _Made()
        self._written: _Made[int, int] = _Made()
        # Those that have another name in the container, and were not made.
        self._linked: set[int] = set()
        self._last: list[tuple[FileRecord, int, dict[int, int]]] = []
        self._root = -1
        self._delegates = Delegates(stub)
        self._kept: _Made[object, Any] = _Made()
        self._spare: list[int] = []
        self._settled_spare = 0
        self._addresses: dict[int, frozenset[bytes]] = {}
        self._at_end: list[tuple[Membership, Callable[[base.Making], None]]] = []
        self._stdio = [syscalls.duplicate_above(self.program, number, high) for number in range(3)]
        self.run()

    @property
    def new_network(self) -> bool:
        """See the protocol."""
        return self._has_new_network or bool(self.network)

    @property
    def network(self) -> int:
        """See the protocol."""
        return self._within.get("net", 0)

    def _be_within(self, namespaces: Membership) -> None:
        """Have what follows happen in nested namespaces, and in no others."""
        if namespaces == self._within:
            return
        effective = self._effective
        self._set_capabilities(self.permitted)
        self.run()
        # They would stay where they are.
        self._delegates.end()
        self._namespaces.join(self.stub, namespaces, self._within)
        self._within = namespaces
        self._set_capabilities(effective)

    def run(self) -> None:
        """Run what has been collected; placeholders become numbers."""
        program = self.program
        self.stub.run(program)

        for made in (self.files, self.objects, self._written, self._kept):
            made.resolve(program)
        fresh = self._spare[self._settled_spare :]
        self._spare[self._settled_spare :] = [_resolved(program, fd) for fd in fresh]
        self._settled_spare = len(self._spare)
        self._stdio = [_resolved(program, fd) for fd in self._stdio]
        self.program = self.stub.program()

    def acting(self, as_whom: base.Maker | None, make: Callable[[], T]) -> T:
        """See the protocol."""
        if as_whom is None:
            return make()
        pid = as_whom.pid or self.spare_pid
        if pid not in self._delegates:
            with self.by_all_rights():
                self.run()
                self._delegates.make(pid)
        self.run()
        root = self.stub
        self.stub = self._delegates[pid]
        program = self.program = self.stub.program()
        credentials.become(program, as_whom, self._effective, self.permitted)
        made = make()
        if self.program is not program:
            raise AssertionError("what is made for another is made at once")
        if self.stub is root:
            credentials.become_root_again(program, self._effective, self.permitted)
        self.run()
        self.stub = root
        self.program = root.program()
        found: T = _resolved(program, made)
        return found

    def make_shared_memory(self, objects: Iterable[SharedMemory], pages: int, base: int) -> None:
        """Make and fill all shared memory."""
        for one in objects:
            with while_("making shared memory"):
                made = shared_memory.create(self.program, one)
                self._run_for(made)
                if one.memfd is None:
                    fd = self._descriptor_of_mapping(self._made, one.size)
                else:
                    fd = self._made
                high = syscalls.duplicate_above(self.program, fd, self.high)
                syscalls.close(self.program, fd)
                self.objects[one.id] = high
                shared_memory.fill(self.program, one, high, pages, base)
                self.run()

    def make_deleted_files(
        self,
        files: Iterable[DeletedFile],
        opened: Mapping[int, Sequence[OpenDeletedFile]],
        written: Container[int],
        pages: int,
        base: int,
    ) -> None:
        """Make and fill all deleted files, and open them as `opened` says by their ids.

        Shared mappings may write to those in `written`.

        They are made by all rights that the stub has: the container's own need not reach as far as
        where the file was made, and nobody else can reach what has no name.
        """
        for one in files:
            with while_(f"making the deleted file {os.fsdecode(one.path)}"):
                wanted = opened.get(one.id, ())
                ways = [os.O_RDONLY | os.O_CLOEXEC, *(file.way for file in wanted)]
                fd, by_name = deleted_files.make(self, one, self.stub.pid, ways)
                if one.link:
                    self._linked.add(one.id)
                    self._set_capabilities(self.capabilities)
                    self.refuse_forbidden(fd, os.O_RDWR if one.id in written else os.O_RDONLY)
                    self._set_capabilities(self.permitted)
                for file, early in zip(wanted, by_name[1:], strict=False):
                    self._kept[file.early] = early
                if one.kind == stat.S_IFREG and not one.link:
                    deleted_files.fill(self.program, one, fd, pages, base)
                if not one.link:
                    self._set_capabilities(self.capabilities)
                    deleted_files.finish(self.program, one, fd)
                    self._set_capabilities(self.permitted)
                if one.id in written or one.unnamed:
                    both = self.reopen_descriptor(fd, os.O_RDWR) if one.link else fd
                    self._written[one.id] = syscalls.duplicate_above(self.program, both, self.high)
                    if one.link:
                        self._spare.append(both)
                if one.kind == stat.S_IFREG:
                    # Not for writing: what might be written to can't be executed.
                    self._spare.append(fd)
                    fd = by_name[0] if by_name else self.reopen_descriptor(fd, os.O_RDONLY)
                self.objects[one.id] = self._up(fd)
                if len(self.program) > _PROGRAM_CALLS:
                    self.run()
        self.run()

    def _set_capabilities(self, effective: int) -> None:
        self._effective = effective
        credentials.set_effective(self.program, effective, self.permitted)

    @contextmanager
    def by_all_rights(self) -> Iterator[None]:
        """See the protocol."""
        before = self._effective
        self._set_capabilities(self.permitted)
        yield
        self._set_capabilities(before)

    def mapped(self, number: int, writable: bool) -> int:
        """Return the stub's descriptor for a mapping of shared memory or a deleted file."""
        return self.memory_object(number, for_writing=writable)

    @property
    def descriptors(self) -> list[int]:
        """Return all descriptors of the root stub that processes are made from."""
        return [*self.files.values(), *self.objects.values(), *self._written.values()]

    def _run_for(self, placeholder: int) -> None:
        program = self.program
        self.run()
        self._made = program[placeholder]

    def _descriptor_of_mapping(self, start: int, size: int) -> int:
        """Return the stub's descriptor for a shared anonymous mapping of its own."""
        end = start + page_up(size)
        path = f"/proc/{self.stub.pid}/map_files/{start:x}-{end:x}"
        ours = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fd = self.send(ours)
        finally:
            os.close(ours)
        syscalls.munmap(self.program, start, end - start)
        return fd

    def send(self, ours: int) -> int:
        """Give the stub a descriptor of ours."""
        return descriptors.give(self.stub, [ours])[0]

    def make_files(
        self,
        records: Iterable[FileRecord],
        unheld: Container[int],
        within: Mapping[int, Membership],
    ) -> None:
        """Make all files, then verify what can be verified only on the made ones.

        `within` are the nested namespaces in which some are made, by their ids.
        Those in `unheld` are in flight, and no process will tie them to others.
        No file is opened by a capability that the new container doesn't have; only sockets' queues
        are filled past the limits for it.
        """
        made: list[FileRecord] = []
        self._set_capabilities(self.capabilities | _FOR_SOCKETS & self.permitted)

        def turn(record: FileRecord) -> tuple[int, list[tuple[str, int]]]:
            return record.turn(), sorted(within.get(record.id, {}).items())

        self.records = sorted((r for r in records if not r.late), key=turn)
        for record in self.records:
            self._be_within(within.get(record.id, {}))
            with while_(f"opening file {record.id} ({type(record).__name__})"):
                fd = record.restore(self)
                self.files[record.id] = self._up(fd)
                made.append(record)
            if len(self.program) > _PROGRAM_CALLS:
                self.run()
        self.run()
        for namespaces, action in self._at_end:
            self._be_within(namespaces)
            action(self)
        self._be_within({})
        self.run()
        self._delegates.end()
        for fd in self._spare:
            syscalls.close(self.program, fd)
        self._spare, self._settled_spare = [], 0
        table = DescriptorTable({fd: number for number, fd in self.files.items()}, frozenset())
        for record in made:
            if record.id in unheld:
                record.connect(self.program, self.files[record.id], table)
        self._set_capabilities(self.permitted)
        self.run()
        for record in made:
            kind = type(record)
            if kind.complete is not FileRecord.complete:
                self._keep_for_last(record)
            if kind.verify is FileRecord.verify and kind.missing is FileRecord.missing:
                continue
            descriptor = descriptors.fetch(self.stub.pid, self.files[record.id])
            try:
                record.verify(descriptor)
                if missing := record.missing(descriptor):
                    self.missing.append(missing)
            finally:
                os.close(descriptor)

    def _keep_for_last(self, record: FileRecord) -> None:
        """Fetch what `complete` needs, while the root stub still has it, and stands in its root."""
        if self._root < 0:
            self._root = os.open(f"/proc/{self.stub.pid}/root", os.O_PATH | os.O_CLOEXEC)
            self._undo.callback(os.close, self._root)
        ours = descriptors.fetch(self.stub.pid, self.files[record.id])
        self._undo.callback(os.close, ours)
        deleted = {}
        for number in record.needs_deleted():
            path = f"/proc/{self.stub.pid}/fd/{self.memory_object(number)}"
            deleted[number] = os.open(path, os.O_PATH | os.O_CLOEXEC)
            self._undo.callback(os.close, deleted[number])
        self._last.append((record, ours, deleted))

    def complete(self) -> None:
        """Have files do what must come last."""
        for record, descriptor, deleted in self._last:
            with while_(f"completing file {record.id} ({type(record).__name__})"):
                record.complete(descriptor, self._root, deleted)

    def _up(self, fd: int) -> int:
        if fd in self._stdio and type(fd) is int:
            return fd
        high = syscalls.duplicate_above(self.program, fd, self.high)
        self._spare.append(fd)
        return high

    # What records ask for.

    def uncovered(self, directory: bytes) -> int:
        """See the protocol."""
        return self._uncovered[directory]

    def memory_object(self, number: int, *, for_writing: bool = False) -> int:
        """See the protocol."""
        if for_writing and number in self._written:
            return self._written[number]
        if number not in self.objects:
            raise ImageError(
                "an open file has shared memory or a deleted file that the image lacks"
            )
        return self.objects[number]

    def stdio(self, number: int) -> int:
        """See the protocol."""
        return self._stdio[number]

    def stdio_can_be_opened(self, number: int) -> bool:
        """See the protocol."""
        mode = os.stat(f"/proc/{self.stub.pid}/fd/{self._stdio[number]}").st_mode
        return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)

    def _terminal(self) -> bytes:
        return os.readlink(os.fsencode(f"/proc/{self.stub.pid}/fd/{self._stdio[0]}"))

    def has_terminal(self) -> bool:
        """See the protocol."""
        return self._terminal().startswith(b"/dev/pts/")

    def terminal(self) -> bytes:
        """See the protocol."""
        path = self._terminal()
        if not self.has_terminal():
            raise UnsupportedResource(
                "the checkpointed container had a terminal, the new one has none",
                hint='set "terminal": true in the bundle\'s config.json',
            )
        return path

    def terminal_has_size(self) -> bool:
        """See the protocol."""
        size = bytearray(8)
        descriptor = descriptors.fetch(self.stub.pid, self._stdio[0])
        try:
            fcntl.ioctl(descriptor, termios.TIOCGWINSZ, size)
        finally:
            os.close(descriptor)
        return any(size)

    def pipe(self) -> tuple[int, int]:
        """See the protocol."""
        return self._two(SYS.PIPE2, 0)

    def pair(self, kind: int) -> tuple[int, int]:
        """See the protocol."""
        return self._two(SYS.SOCKETPAIR, socket.AF_UNIX, kind, 0)

    def _two(self, number: int, *arguments: int) -> tuple[int, int]:
        program = self.program
        ends = program.address_of(bytes(8))
        if number == SYS.PIPE2:
            program.call(number, ends, *arguments)
        else:
            program.call(number, *arguments, ends)
        return program.load(ends), program.load(ends + 4)

    def reset_connection(self, family: int) -> int:
        """See the protocol."""
        program = self.program
        size = 16 if family == socket.AF_INET else 28
        loopback = bytes((127, 0, 0, 1)) if family == socket.AF_INET else bytes(15) + b"\1"
        address = bytearray(struct.pack("<HH", family, 0))
        address += loopback if family == socket.AF_INET else bytes(4) + loopback
        address = address.ljust(size, b"\0")
        listener = program.call(SYS.SOCKET, family, socket.SOCK_STREAM, 0)
        program.call(SYS.BIND, listener, bytes(address), size)
        program.call(SYS.LISTEN, listener, 1)
        bound = program.address_of(bytes(size))
        length = program.address_of(size.to_bytes(4, "little"))
        program.call(SYS.GETSOCKNAME, listener, bound, length)
        ours = program.call(SYS.SOCKET, family, socket.SOCK_STREAM, 0)
        program.call(SYS.CONNECT, ours, bound, size)
        theirs = program.call(SYS.ACCEPT4, listener, 0, 0, 0)
        # Closed without lingering, it sends a reset.
        linger = struct.pack("<2i", 1, 0)
        program.call(SYS.SETSOCKOPT, theirs, socket.SOL_SOCKET, socket.SO_LINGER, linger, 8)
        syscalls.close(program, theirs)
        syscalls.close(program, listener)
        return ours

    def reopen(self, memory: int, flags: int) -> int:
        """See the protocol."""
        fd = self.memory_object(memory)
        if memory in self._linked and not flags & base.O_PATH:
            self.refuse_forbidden(fd, flags)
        return self.reopen_descriptor(fd, flags)

    def refuse_forbidden(self, fd: int, flags: int) -> None:
        """See the protocol."""
        wanted = _ACCESS[flags & base.ACCESS_MODE]
        how = AT_EMPTY_PATH | _AT_EACCESS
        self.program.call(SYS.FACCESSAT2, fd, b"", wanted, how)

    def refuse_displacing(self, path: bytes) -> None:
        """See the protocol."""
        root = os.open(f"/proc/{self.stub.pid}/root", os.O_PATH | os.O_CLOEXEC)
        try:
            resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
            flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
            there = syscalls.openat2(HERE, path, flags, directory=root, resolve=resolve)
        except OSError:
            return
        finally:
            os.close(root)
        try:
            if stat.S_ISSOCK(os.fstat(there).st_mode):
                return
        finally:
            os.close(there)
        raise UnsupportedResource(
            f"{os.fsdecode(path)} in the new container is no socket, as it was",
            hint="take it away, or give the new container the files of the old one",
        )

    def reopen_descriptor(self, fd: int, flags: int) -> int:
        """See the protocol."""
        number = self.settle(fd)
        path = f"/proc/{self.stub.pid}/fd/{number}"
        return self._send_opened(path, flags | os.O_NONBLOCK | os.O_NOCTTY)

    def _send_opened(self, link: str, flags: int) -> int:
        """Open what a magic link leads to, for the stub."""
        ours = os.open(link, flags & ~(base.CREATION_FLAGS | os.O_NOFOLLOW) | os.O_CLOEXEC)
        try:
            return self.send(ours)
        finally:
            os.close(ours)

    def has_address(self, address: bytes) -> bool:
        """See the protocol."""
        if self.network not in self._addresses:
            self._addresses[self.network] = frozenset(read_addresses(self.stub.pid))
        return address in self._addresses[self.network]

    def device_number(self, name: bytes) -> int:
        """See the protocol."""
        with socket_in(self.stub.pid, socket.AF_INET, socket.SOCK_DGRAM, 0) as one:
            return netdevice.number_of(one.fileno(), name)

    def open_namespace(self, name: str, number: int, flags: int) -> int:
        """See the protocol."""
        if number:
            return self._send_opened(self._namespaces.link(name, number), flags)
        return self._send_opened(f"/proc/{self.stub.pid}/ns/{name}", flags)

    def settle(self, fd: int) -> int:
        """See the protocol."""
        program = self.program
        self.run()
        return program[fd] if isinstance(fd, Placeholder) else fd

    def ours(self, fd: int) -> int:
        """See the protocol."""
        ours = descriptors.fetch(self.stub.pid, fd)
        self._undo.callback(os.close, ours)
        return ours

    def hold_to_the_end(self, fd: int) -> None:
        """See the protocol."""
        number = self.settle(fd)
        self._undo.callback(os.close, descriptors.fetch(self.stub.pid, number))
        self._spare.append(number)

    def spare(self, fd: int) -> int:
        """See the protocol."""
        self._spare.append(fd)
        return fd

    def shared(self, key: object) -> Any:
        """See the protocol."""
        return self._kept.get(key)

    def share(self, key: object, value: Any) -> None:
        """See the protocol."""
        self._kept[key] = value

    def at_end(self, action: Callable[[base.Making], None]) -> None:
        """See the protocol."""
        self._at_end.append((self._within, action))
