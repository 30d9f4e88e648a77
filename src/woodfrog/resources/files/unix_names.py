"""Names of unix sockets: what they are bound to, and connections through them."""

import os
import socket
import stat
import struct
from collections.abc import Callable
from typing import NamedTuple

from woodfrog.errors import UnsupportedResource
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.mounts import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS
from woodfrog.resources.files.base import Making, World

_O_PATH_NOFOLLOW = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def peer_name(one: socket.socket) -> bytes:
    """Return the name of what a socket is connected to, if there is any."""
    try:
        name = one.getpeername()
    except OSError:
        return b""
    return name if isinstance(name, bytes) else os.fsencode(name)


class BoundPath(NamedTuple):
    """Mode (with the type) and owner of a socket's path; zeros if it was unlinked.

    `alias` is its path if that isn't its name any more: renamed, or linked and unlinked.
    """

    mode: int = 0
    owner: tuple[int, int] = (0, 0)
    alias: bytes = b""


def bound_path(name: bytes, inode: int, world: World) -> BoundPath:
    """Look for the path of a socket, by its name and the inode that it was bound to."""
    if not name or name[:1] == b"\0":
        return BoundPath()
    what = f"unix socket {os.fsdecode(name)} is bound"
    if name[:1] != b"/":
        raise UnsupportedResource(f"{what} to a relative path, which cannot be saved yet")
    found = _stat_inside(name, world)
    if found is None or found.st_ino != inode:
        for alias in _beside(name, inode, world):
            other = _stat_inside(alias, world)
            if other is not None and stat.S_ISSOCK(other.st_mode):
                return BoundPath(other.st_mode, (other.st_uid, other.st_gid), alias)
    if found is None:
        if _stat_inside(os.path.dirname(name), world) is None:
            raise UnsupportedResource(f"{what} in a removed directory, which cannot be saved yet")
        return BoundPath()  # unlinked since: it is bound, and unlinked, again
    if not stat.S_ISSOCK(found.st_mode):
        raise UnsupportedResource(
            f"{what} to a path where another file is now, which cannot be saved yet"
        )
    return BoundPath(found.st_mode, (found.st_uid, found.st_gid))


def _stat_inside(path: bytes, world: World) -> os.stat_result | None:
    """Return what a path names in the container, where symbolic links stay inside."""
    try:
        fd = _open_inside(path, _O_PATH_NOFOLLOW, world)
    except OSError:
        return None
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def _open_inside(path: bytes, flags: int, world: World) -> int:
    root = os.open(world.root, os.O_PATH | os.O_CLOEXEC)
    try:
        resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
        return syscalls.openat2(HERE, path, flags, directory=root, resolve=resolve)
    finally:
        os.close(root)


def _beside(name: bytes, inode: int, world: World) -> list[bytes]:
    """Return the paths of an inode in the directory of a name."""
    directory = os.path.dirname(name)
    try:
        fd = _open_inside(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, world)
    except OSError:
        return []
    try:
        with os.scandir(fd) as entries:
            return [
                os.path.join(directory, os.fsencode(entry.name))
                for entry in entries
                if entry.inode() == inode
            ]
    finally:
        os.close(fd)


def address_of(name: bytes) -> bytes:
    """Return the struct sockaddr_un of a name."""
    # A path ends in a zero byte, an abstract name is as long as it is.
    tail = b"" if name[:1] == b"\0" else b"\0"
    return struct.pack("<H", socket.AF_UNIX) + name + tail


class Unfinished:
    """What is done when all sockets stand: until then every path is there, and can be used."""

    def __init__(self) -> None:
        self.bound: dict[bytes, None] = {}
        self.paths: dict[bytes, BoundPath] = {}
        # What fills queues with files, which must all stand.
        self.fills: list[Callable[[Making], None]] = []
        # Those that are connected to a name: file, own name, and that name.
        self.datagrams: list[tuple[int, bytes, bytes]] = []

    def finish(self, making: Making) -> None:
        """Send files, connect datagram sockets, and give paths their mode and owner."""
        for fill in self.fills:
            fill(making)
        program = making.program
        waiting = self.datagrams
        while waiting:
            # One that has a peer lets nobody else connect: first those that nobody waits for.
            wanted = {peer for _, name, peer in waiting if peer != name}
            ready = [one for one in waiting if one[1] not in wanted] or waiting
            for number, _, peer in ready:
                address = address_of(peer)
                program.call(SYS.CONNECT, making.files[number], address, len(address))
            waiting = [one for one in waiting if one not in ready]
        for path in self.bound:
            found = self.paths.get(path, BoundPath())
            if found.alias:
                # In the place of the socket file from before, if that stands there.
                program.call(SYS.RENAME, path, found.alias)
            if found.mode:
                program.call(SYS.CHMOD, found.alias or path, found.mode)
                program.call(SYS.LCHOWN, found.alias or path, *found.owner)
            else:
                program.call(SYS.UNLINK, path)


def unfinished(making: Making) -> Unfinished:
    """Return what is left to do for the sockets that are being made."""
    found: Unfinished | None = making.shared("unfinished unix sockets")
    if found is None:
        found = Unfinished()
        making.share("unfinished unix sockets", found)
        making.at_end(found.finish)
    return found


def listener(kind: int, name: bytes) -> tuple[str, int, bytes]:
    """Return the key by which a listening socket is shared."""
    return "unix listener", kind, name


def is_listening(making: Making, kind: int, name: bytes) -> bool:
    """Tell whether a listening socket of this name has been made."""
    return making.shared(listener(kind, name)) is not None


def bind(making: Making, fd: int, name: bytes) -> None:
    """Bind to a name; a socket file that stands there was this one's, from before."""
    program = making.program
    address = address_of(name)
    if name[:1] == b"/":
        program.may_fail(program.call(SYS.UNLINK, name))
        unfinished(making).bound[name] = None
    program.call(SYS.BIND, fd, address, len(address))


def connect(making: Making, kind: int, *, client: bytes, server: bytes) -> tuple[int, int]:
    """Connect through the listener of a name, or one for the moment; returns client and server."""
    program = making.program
    behind = making.shared(listener(kind, server))
    temporary = behind is None
    if temporary:
        behind = program.call(SYS.SOCKET, socket.AF_UNIX, kind, 0)
        bind(making, behind, server)
        program.call(SYS.LISTEN, behind, 1)
    ours = program.call(SYS.SOCKET, socket.AF_UNIX, kind, 0)
    if client:
        bind(making, ours, client)
    address = address_of(server)
    program.call(SYS.CONNECT, ours, address, len(address))
    theirs = program.call(SYS.ACCEPT4, behind, 0, 0, 0)
    # It has inherited this one from the listener.
    program.call(SYS.SETSOCKOPT, theirs, socket.SOL_SOCKET, socket.SO_PASSCRED, bytes(4), 4)
    if temporary:
        syscalls.close(program, behind)
    return ours, theirs
