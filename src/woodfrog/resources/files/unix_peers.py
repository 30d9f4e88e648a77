"""Who is at the other end of a unix socket, as SO_PEERCRED and SO_PEERGROUPS tell (unix(7)).

The kernel notes who makes a pair, who listens, and who connects.
"""

import os
import socket
import struct
from collections.abc import Callable, Sequence

from woodfrog.errors import ImageError
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.remote.program import Program
from woodfrog.resources import namespaces
from woodfrog.resources.files.making import Maker, Making, needed
from woodfrog.resources.files.unix_queue import CREDENTIALS, Message
from woodfrog.resources.files.world import World

_SO_PEERGROUPS = 59
_MOST_GROUPS = 65536


def collect(one: socket.socket, world: World) -> Maker | None:
    """Return who was noted as the peer's maker, None if nobody was, or somebody outside."""
    told = one.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    found = _maker(CREDENTIALS.unpack(told), world)
    if found is None:
        return None
    space = bytearray(4 * _MOST_GROUPS)
    length = bytearray(len(space).to_bytes(4, "little"))
    HERE.call(SYS.GETSOCKOPT, one.fileno(), socket.SOL_SOCKET, _SO_PEERGROUPS, space, length)
    told = bytes(space)[: int.from_bytes(length, "little")]
    groups = [group for (group,) in struct.iter_unpack("<I", told)]
    return Maker(pid=found.pid, uid=found.uid, gid=found.gid, groups=groups)


def name(one: socket.socket) -> bytes:
    """Return the name of what a socket is connected to, if there is any."""
    try:
        found = one.getpeername()
    except OSError:
        return b""
    return found if isinstance(found, bytes) else os.fsencode(found)


def _maker(told: tuple[int, int, int], world: World) -> Maker | None:
    pid, uid, gid = told
    inside = world.identify(pid) if pid else 0
    if not inside and (not pid or not namespaces.is_ours(world.init, "user")):
        return None
    return Maker(pid=inside, uid=uid, gid=gid)


def authors(messages: Sequence[Message], world: World) -> list[Maker | None]:
    """Return who sent each of the messages that wait at a socket; empty if it tells of none."""
    found = [_maker(one.author, world) if one.author else None for one in messages]
    return found if any(found) else []


def ask(program: Program, descriptor: int) -> Callable[[], int]:
    """Add the call that tells a socket's peer by the id that its process has, or had, inside."""
    told = bytearray(CREDENTIALS.size)
    length = len(told).to_bytes(4, "little")
    program.call(SYS.GETSOCKOPT, descriptor, socket.SOL_SOCKET, socket.SO_PEERCRED, told, length)
    return lambda: int(CREDENTIALS.unpack(told)[0])


def check(maker: Maker | None) -> None:
    """Check one from an image."""
    if maker and not (0 <= maker.pid < 1 << 22 and len(maker.groups) <= _MOST_GROUPS):
        raise ImageError("a unix socket has an impossible peer")


def pair(making: Making, kind: int, maker: Maker | None) -> tuple[int, int]:
    """Make a pair of sockets for somebody."""
    if maker is None or not making.stands(maker):
        return making.acting(maker, lambda: making.pair(kind))

    def make(program: Program, _: list[int]) -> tuple[int, ...]:
        ends = program.address_of(bytes(8))
        program.call(SYS.SOCKETPAIR, socket.AF_UNIX, kind, 0, ends)
        return program.load(ends), program.load(ends + 4)

    one, other = making.by_process(maker, [], make)
    return one, other


def listen(making: Making, fd: int, backlog: int, maker: Maker | None) -> int:
    """Have a socket listen for somebody, and return its descriptor."""
    if maker is None or not (needed(maker) or making.stands(maker)):
        making.program.call(SYS.LISTEN, fd, backlog)
        return fd
    number = making.settle(fd)

    def act(program: Program, got: list[int]) -> tuple[int, ...]:
        program.call(SYS.LISTEN, got[0], backlog)
        return ()

    if making.stands(maker):
        making.by_process(maker, [number], act)
    else:
        making.acting(maker, lambda: act(making.program, [number]))
    return number
