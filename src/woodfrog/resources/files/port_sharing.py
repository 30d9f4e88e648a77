"""Sockets that share a port: how each gets it again, and what waits at it alone."""

import socket
import struct

from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.remote.program import Program
from woodfrog.resources.files import socket_filter
from woodfrog.resources.files.making import Making
from woodfrog.resources.files.socket_filter import SocketFilter

_SO_DETACH_FILTER = 27
_SO_ATTACH_REUSEPORT_CBPF, _SO_DETACH_REUSEPORT_BPF = 51, 68
_INSTRUCTION = struct.Struct("<H2xI")
_RETURN = 0x06  # BPF_RET | BPF_K
_NOTHING = SocketFilter(instructions=_INSTRUCTION.pack(_RETURN, 0), locked=False)


def set_reuse(program: Program, fd: int, value: bool) -> None:
    """Set SO_REUSEADDR, which bind(2) asks for, at all sockets of the port."""
    word = value.to_bytes(4, "little")
    program.call(SYS.SETSOCKOPT, fd, socket.SOL_SOCKET, socket.SO_REUSEADDR, word, 4)


def join(making: Making, group: object) -> int:
    """Return which one of a group (SO_REUSEPORT) a socket is that is bound, or listens, now.

    `group` is what all its sockets have in common.
    """
    key = "members", making.network, group
    found: int = making.shared(key) or 0
    making.share(key, found + 1)
    return found


def choose(program: Program, fd: int, member: int) -> None:
    """Have one of a group get all that comes, by a program that returns its number."""
    head = struct.pack("<H6xQ", 1, program.address_of(_INSTRUCTION.pack(_RETURN, member)))
    attach = socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF
    program.call(SYS.SETSOCKOPT, fd, *attach, head, len(head))


def draw(program: Program, fd: int) -> None:
    """Have the kernel draw again who of a group gets what."""
    detach = socket.SOL_SOCKET, _SO_DETACH_REUSEPORT_BPF
    # Before Linux 5.3 it stays as it is until somebody attaches another program.
    program.may_fail(program.call(SYS.SETSOCKOPT, fd, *detach, bytes(4), 4))


def hear_nothing(program: Program, fd: int) -> None:
    """Have a socket drop what comes: what waits at it stands."""
    socket_filter.restore(program, fd, _NOTHING)


def hear(program: Program, fd: int, own: SocketFilter | None) -> None:
    """Undo that."""
    if own is None:
        program.call(SYS.SETSOCKOPT, fd, socket.SOL_SOCKET, _SO_DETACH_FILTER, bytes(4), 4)
    else:
        socket_filter.restore(program, fd, own)
