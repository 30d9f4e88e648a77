"""What records ask for while their files are made: the root stub, and what is made already."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import termios
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from woodfrog.engine.making_namespaces import MadeNamespaces
from woodfrog.engine.passing import Delegates
from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import PAGE, SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.mounts import AT_EMPTY_PATH, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS
from woodfrog.remote import descriptors
from woodfrog.remote.program import Placeholder, Program
from woodfrog.remote.stub import Stub
from woodfrog.resources import credentials
from woodfrog.resources.files import making, open_file
from woodfrog.resources.files.base import FileRecord
from woodfrog.resources.files.making import needed
from woodfrog.resources.membership import Membership

if TYPE_CHECKING:
    from woodfrog.engine.addresses import Addresses
    from woodfrog.resources.mount_tree.ghosts import Ghosts

_AT_EACCESS = 0x200
# What an access mode of open(2) needs; 3 is for ioctl(2) alone, and needs both.
_ACCESS = (os.R_OK, os.W_OK, os.R_OK | os.W_OK, os.R_OK | os.W_OK)

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


class Workshop:
    """See resources.files.making.Making; also where each file came to be.

    Descriptors that only stubs have lie in `room`. `capabilities` are what the new container may
    have, `permitted` what its stubs have; `undo` closes descriptors of ours.
    """

    def __init__(
        self,
        stub: Stub,
        room: range,
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
        ghosts: Ghosts | None,
        detached: Mapping[int, int],
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
        self._detached = detached
        self._left = ghosts.left if ghosts else {}
        self.stub = stub
        self._room = room
        self.high = room.start
        self.program: Program = stub.program()
        # What files lack in the new container.
        self.missing: list[str] = []
        # Descriptors in the root stub, all at `high` or above.
        self.records: Sequence[FileRecord] = ()
        self.files: _Made[int, int] = _Made()
        self.objects: _Made[int, int] = _Made()
        self._written: _Made[int, int] = _Made()
        self._read_only: _Made[int, int] = _Made()
        # Those that have another name in the container, and were not made.
        self._linked: set[int] = set()
        # Descriptors of ours, and the seals that they get later.
        self._unsealed: list[tuple[int, int]] = []
        self._last: list[tuple[FileRecord, int, dict[int, int], dict[int, int]]] = []
        self._root = -1
        self._delegates = Delegates(stub)
        self._kept: _Made[object, Any] = _Made()
        self._spare: list[int] = [*detached.values()]
        self._settled_spare = 0
        self._at_end: list[tuple[Membership, Callable[[making.Making], None]]] = []
        self._stdio = [
            syscalls.duplicate_above(self.program, number, self.high) for number in range(3)
        ]
        self.run()

    def leave_room(self, program: Program, own: Iterable[int]) -> None:
        """Close the descriptors that only stubs have, in one of them, whose process has these.

        There may be more of them than there is room for.
        """
        first = self._room.start
        for number in sorted(one for one in own if one >= first):
            if first < number:
                syscalls.close_range(program, first, number - 1)
            first = number + 1
        syscalls.close_range(program, first, 0xFFFFFFFF)

    @property
    def new_network(self) -> bool:
        """See the protocol."""
        return self._has_new_network or bool(self.network)

    @property
    def network(self) -> int:
        """See the protocol."""
        return self._within.get("net", 0)

    @property
    def mounts(self) -> int:
        """See the protocol."""
        return self._within.get("mnt", 0)

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

        for made in (self.files, self.objects, self._written, self._read_only, self._kept):
            made.resolve(program)
        fresh = self._spare[self._settled_spare :]
        self._spare[self._settled_spare :] = [_resolved(program, fd) for fd in fresh]
        self._settled_spare = len(self._spare)
        self._stdio = [_resolved(program, fd) for fd in self._stdio]
        self.program = self.stub.program()

    def acting(self, as_whom: making.Maker | None, make: Callable[[], T]) -> T:
        """See the protocol."""
        as_whom = needed(as_whom)
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

    def send(self, ours: int) -> int:
        """See the protocol."""
        return descriptors.give(self.stub, [ours])[0]

    def _up(self, fd: int) -> int:
        if fd in self._stdio and type(fd) is int:
            return fd
        high = syscalls.duplicate_above(self.program, fd, self.high)
        self._spare.append(fd)
        return high

    def uncovered(self, directory: bytes) -> int:
        """See the protocol."""
        return self._uncovered[directory]

    def detached(self, number: int) -> int:
        """See the protocol."""
        if number not in self._detached:
            raise ImageError("the image lacks a mount that an open file is in")
        return self._detached[number]

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

    def reopen(self, memory: int, flags: int) -> int:
        """See the protocol."""
        fd = self.memory_object(memory)
        if memory in self._linked and not flags & open_file.O_PATH:
            self.refuse_forbidden(fd, flags)
        return self.reopen_descriptor(fd, flags)

    def refuse_forbidden(self, fd: int, flags: int) -> None:
        """See the protocol."""
        wanted = _ACCESS[flags & open_file.ACCESS_MODE]
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

    def lacks_directory(self, path: bytes) -> bool:
        """See the protocol."""
        root = os.open(f"/proc/{self.stub.pid}/root", os.O_PATH | os.O_CLOEXEC)
        try:
            resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
            flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
            there = syscalls.openat2(
                HERE, os.path.dirname(path), flags, directory=root, resolve=resolve
            )
        except OSError:
            return True
        finally:
            os.close(root)
        try:
            return bool(os.fstatvfs(there).f_flag & os.ST_RDONLY)
        finally:
            os.close(there)

    def tell_missing(self, what: str) -> None:
        """See the protocol."""
        self.missing.append(what)

    def reopen_descriptor(self, fd: int, flags: int) -> int:
        """See the protocol."""
        number = self.settle(fd)
        path = f"/proc/{self.stub.pid}/fd/{number}"
        return self._send_opened(path, flags | os.O_NONBLOCK | os.O_NOCTTY)

    def _send_opened(self, link: str, flags: int) -> int:
        """Open what a magic link leads to, for the stub."""
        ours = os.open(link, flags & ~(open_file.CREATION_FLAGS | os.O_NOFOLLOW) | os.O_CLOEXEC)
        try:
            return self.send(ours)
        finally:
            os.close(ours)

    @cached_property
    def _addresses(self) -> Addresses:
        from woodfrog.engine.addresses import Addresses

        return Addresses()

    def has_address(self, address: bytes) -> bool:
        """See the protocol."""
        return self._addresses.has(self.stub.pid, self.network, address)

    def address_at(self, device: bytes, family: int) -> bytes:
        """See the protocol."""
        return self._addresses.at(self.stub.pid, self.network, device, family) if device else b""

    def device_number(self, name: bytes) -> int:
        """See the protocol."""
        from woodfrog.engine import addresses

        return addresses.device_number(self.stub.pid, name)

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

    def has_room(self, length: int) -> bool:
        """See the protocol."""
        return self.program.room > length + PAGE

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

    def at_end(self, action: Callable[[making.Making], None]) -> None:
        """See the protocol."""
        self._at_end.append((self._within, action))
