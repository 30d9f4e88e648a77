"""Names of unix sockets, made again: binding to them, and connecting through them."""

import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from woodfrog.kernel import mounts, syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.remote.program import Program
from woodfrog.resources.files import unix_paths, unix_peers
from woodfrog.resources.files.making import MUCH, Maker, Making, needed
from woodfrog.resources.files.unix_paths import BoundPath

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_LONGEST = 108  # sun_path of struct sockaddr_un
_ASIDE = 200  # bytes, so that there is room for more in a name


def address_of(name: bytes) -> bytes:
    """Return the struct sockaddr_un of a name."""
    # A path ends in a zero byte, if that has room; an abstract name is as long as it is.
    tail = b"" if name[:1] == b"\0" or len(name) == _LONGEST else b"\0"
    return struct.pack("<H", socket.AF_UNIX) + name + tail


class Name(msgspec.Struct, frozen=True):
    """A socket's name, the directory where it begins, and whether it is to stay.

    For a whole path, that is the root directory of who has bound it, if not the container's. A path
    that nobody finds any more, or whose socket isn't saved, is one of a place apart. What is to
    come `at` another path, as its directories are others by now, is first in some for the moment.
    """

    name: bytes
    directory: bytes = b""
    stands: bool = True
    at: bytes = b""

    @property
    def is_abstract(self) -> bool:
        """Tell whether it is no path."""
        return self.name[:1] == b"\0"

    @property
    def path(self) -> bytes:
        """Return the whole path."""
        if self.name[:1] == b"/":
            return self.directory + self.name
        return os.path.join(self.directory, self.name)


def aside(name: bytes, path: bytes) -> Name:
    """Return a relative name that begins in a directory for the moment, beside its path by now."""
    above, last = os.path.split(path)
    # Deep enough for what leads upwards.
    depth = name.split(b"/").count(b"..")
    directory = os.path.join(above, b".woodfrog-" + last[:_ASIDE], *[b"-"] * depth)
    return Name(name, directory, at=path)


def path_at_first(name: bytes, path: bytes) -> bytes:
    """Return where a socket is made that has a name, and a path by now, where it comes last."""
    if name[:1] == b"/":
        return name
    if unix_paths.beginning(name, path):
        return os.path.join(os.path.dirname(path), os.path.basename(name))
    return aside(name, path).path


class Unfinished:
    """What is done when all sockets stand: until then every path is there, and can be used."""

    def __init__(self) -> None:
        self.bound: dict[bytes, None] = {}
        self.paths: dict[bytes, BoundPath] = {}
        # Directories that are there for the moment.
        self.aside: list[bytes] = []
        # Datagram sockets by their names.
        self.senders: dict[bytes, int] = {}
        # What fills queues, and needs other files or sockets for that.
        self.fills: list[Callable[[Making], None]] = []
        # Those that are connected to a name: file, own name, and that name.
        self.datagrams: list[tuple[int, bytes, Name]] = []

    def finish(self, making: Making) -> None:
        """Fill queues, connect datagram sockets, and give paths their mode and owner."""
        for fill in self.fills:
            fill(making)
            if not making.has_room(MUCH):
                making.settle(-1)
        program = making.program
        waiting = self.datagrams
        while waiting:
            # One that has a peer lets nobody else connect: first those that nobody waits for.
            wanted = {peer.name for _, name, peer in waiting if peer.name != name}
            ready = [one for one in waiting if one[1] not in wanted] or waiting
            for number, _, peer in ready:
                connect_to(making, making.files[number], peer)
            waiting = [one for one in waiting if one not in ready]
        for path in self.bound:
            found = self.paths.get(path, BoundPath())
            if found.alias:
                # In the place of the socket file from before, if that stands there.
                making.refuse_displacing(found.alias)
                program.call(SYS.RENAME, path, found.alias)
            program.call(SYS.CHMOD, found.alias or path, found.mode)
            program.call(SYS.LCHOWN, found.alias or path, *found.owner)
        for directory in reversed(self.aside):
            program.may_fail(program.call(SYS.RMDIR, directory))

    def make_aside(self, program: Program, name: Name) -> None:
        """Make the directories that lead to a name for the moment."""
        first = os.path.dirname(name.at)
        parts = os.path.relpath(name.directory, first).split(b"/") + name.name.split(b"/")[:-1]
        for depth, part in enumerate(parts, 1):
            if part not in (b"", b".", b".."):
                self.aside.append(os.path.join(first, *parts[:depth]))
                program.may_fail(program.call(SYS.MKDIR, self.aside[-1], 0o700))


def unfinished(making: Making) -> Unfinished:
    """Return what is left to do for the sockets that are being made."""
    key = ("unfinished unix sockets", making.network, making.mounts)
    found: Unfinished | None = making.shared(key)
    if found is None:
        found = Unfinished()
        making.share(key, found)
        making.at_end(found.finish)
    return found


def listener(making: Making, kind: int, name: Name) -> tuple[object, ...]:
    """Return the key by which a listening socket is shared; abstract names are a network's."""
    where = making.network if name.is_abstract else (making.mounts, name.directory)
    return "unix listener", kind, name.name, name.stands, where


def bind(making: Making, fd: int, name: Name) -> None:
    """Bind to a name; a socket file that stands there was this one's, from before."""
    stands = _can_stand(making, name)
    if stands and name.at:
        unfinished(making).make_aside(making.program, name)
    with leading(making, name) as address:
        if not name.is_abstract:
            if stands:
                making.refuse_displacing(name.path)
            making.program.may_fail(making.program.call(SYS.UNLINK, name.name))
        making.program.call(SYS.BIND, fd, address, len(address))
    if stands and not name.is_abstract:
        unfinished(making).bound[name.path] = None


def _can_stand(making: Making, name: Name) -> bool:
    """Tell whether a name is to stand, and has a place for that in the new container."""
    if not name.stands or name.is_abstract:
        return name.stands
    key = ("place of a unix socket", making.mounts, name.path)
    can: bool | None = making.shared(key)
    if can is None:
        can = not making.lacks_directory(name.at or name.path)
        making.share(key, can)
        if not can:
            making.tell_missing(
                f"nothing reaches the unix socket {os.fsdecode(name.at or name.path)}: the"
                " container has no such directory, or may not write there"
            )
    return can


def connect_to(making: Making, fd: int, name: Name) -> None:
    """Connect a socket to what is bound to a name."""
    with leading(making, name) as address:
        making.program.call(SYS.CONNECT, fd, address, len(address))


@contextmanager
def leading(making: Making, name: Name) -> Iterator[bytes]:
    """Have the address of a name lead to its place."""
    program = making.program
    if name.is_abstract:
        yield address_of(name.name)
    elif not _can_stand(making, name):
        with _apart(making, name.name):
            yield address_of(name.name)
    elif name.name[:1] == b"/":
        if not name.directory:
            yield address_of(name.name)
            return
        home = syscalls.openat2(program, b"/", _DIRECTORY)
        root = syscalls.openat2(program, name.directory, _DIRECTORY)
        _change_root(making, root)
        yield address_of(name.name)
        _change_root(making, home)
        syscalls.close(program, root)
        syscalls.close(program, home)
    else:
        home = syscalls.openat2(program, b".", _DIRECTORY)
        directory = syscalls.openat2(program, name.directory, _DIRECTORY)
        program.call(SYS.FCHDIR, directory)
        yield address_of(name.name)
        program.call(SYS.FCHDIR, home)
        syscalls.close(program, directory)
        syscalls.close(program, home)


def _change_root(making: Making, directory: int) -> None:
    with making.by_all_rights():
        making.program.call(SYS.FCHDIR, directory)
        making.program.call(SYS.CHROOT, b".")


@contextmanager
def _apart(making: Making, name: bytes) -> Iterator[None]:
    """Have calls see a file system of ours, with all directories of a path."""
    program = making.program
    with making.by_all_rights():
        place = making.shared("place for unix sockets")
        if place is None:
            place = making.spare(mounts.new_mount(program, "tmpfs", 0))
            making.share("place for unix sockets", place)
        home = syscalls.openat2(program, b"/", _DIRECTORY)
        program.call(SYS.FCHDIR, place)
        program.call(SYS.CHROOT, b".")
        parts = name.split(b"/")
        for depth in range(1, len(parts)):
            if directory := b"/".join(parts[:depth]):
                program.may_fail(program.call(SYS.MKDIR, directory, 0o700))
        yield
        program.call(SYS.FCHDIR, home)
        program.call(SYS.CHROOT, b".")
        syscalls.close(program, home)


def connect(
    making: Making,
    kind: int,
    *,
    client: Name,
    server: Name,
    listens: Maker | None,
    connects: Maker | None,
) -> tuple[int, int]:
    """Connect through the listener of a name, or one for the moment; returns client and server.

    `listens` and `connects` are who the client and the server take their peer for.
    """
    key = listener(making, kind, server)
    if making.shared(key) is None:
        # All that were accepted have one name, and one file.
        behind = making.spare(making.program.call(SYS.SOCKET, socket.AF_UNIX, kind, 0))
        making.share(key, behind)
        making.share(("for the moment", key), True)
        bind(making, behind, server)
    if making.shared(("for the moment", key)):
        making.share(key, unix_peers.listen(making, making.shared(key), 1, listens))
    ours: int = making.program.call(SYS.SOCKET, socket.AF_UNIX, kind, 0)
    if client.name:
        bind(making, ours, client)
    ours = connect_by(making, ours, kind, server, connects)
    program = making.program
    theirs = program.call(SYS.ACCEPT4, making.shared(key), 0, 0, 0)
    # It has inherited this one from the listener.
    program.call(SYS.SETSOCKOPT, theirs, socket.SOL_SOCKET, socket.SO_PASSCRED, bytes(4), 4)
    return ours, theirs


def connect_by(making: Making, fd: int, kind: int, name: Name, maker: Maker | None) -> int:
    """Connect a socket for somebody to the listener of a name; returns its descriptor."""
    if maker is None or not (needed(maker) or making.stands(maker)):
        connect_to(making, fd, name)
        return fd
    number = making.settle(fd)
    if not making.stands(maker):
        making.acting(maker, lambda: connect_to(making, number, name))
        return number

    def connect(program: Program, got: list[int]) -> tuple[int, ...]:
        # The name need not lead there from where the process is.
        address = address_of(b"/proc/self/fd/%d" % got[1] if got[1:] else name.name)
        program.call(SYS.CONNECT, got[0], address, len(address))
        return ()

    if name.is_abstract:
        making.by_process(maker, [number], connect)
    else:
        with making.file_of(making.shared(listener(making, kind, name))) as file:
            making.by_process(maker, [number, file], connect)
    return number
