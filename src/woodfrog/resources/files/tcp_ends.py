"""TCP sockets whose connections have ended by a peer at the loopback device: reset, or refused."""

import select
import socket
import struct

from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.remote.program import Program

# What comes by the loopback device does so at once, but where the kernel has more to do.
_COMES_WITHIN_MS = 1000
_PIECE = 1 << 16


def reset(program: Program, family: int, unread: bytes = b"") -> int:
    """Make a TCP socket whose connection was reset by its peer, after that had sent something."""
    size = 16 if family == socket.AF_INET else 28
    listener, bound = _bound_socket(program, family, size)
    program.call(SYS.LISTEN, listener, 1)
    ours = program.call(SYS.SOCKET, family, socket.SOCK_STREAM, 0)
    program.call(SYS.CONNECT, ours, bound, size)
    theirs = program.call(SYS.ACCEPT4, listener, 0, 0, 0)
    if unread:
        _bring(program, theirs, ours, unread)
    # Closed without lingering, it sends a reset.
    linger = struct.pack("<2i", 1, 0)
    program.call(SYS.SETSOCKOPT, theirs, socket.SOL_SOCKET, socket.SO_LINGER, linger, 8)
    syscalls.close(program, theirs)
    syscalls.close(program, listener)
    return ours


def refused(program: Program, family: int, *, told: bool) -> int:
    """Make a TCP socket that was refused a connection, and maybe told so."""
    size = 16 if family == socket.AF_INET else 28
    holder, bound = _bound_socket(program, family, size)  # nobody listens there
    ours = program.call(SYS.SOCKET, family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, 0)
    program.may_fail(program.call(SYS.CONNECT, ours, bound, size))
    _await(program, ours, select.POLLOUT)
    if told:
        error = program.address_of(bytes(4))
        length = program.address_of((4).to_bytes(4, "little"))
        program.call(SYS.GETSOCKOPT, ours, socket.SOL_SOCKET, socket.SO_ERROR, error, length)
    syscalls.close(program, holder)
    return ours


def _bring(program: Program, theirs: int, ours: int, data: bytes) -> None:
    """Have a socket receive data; it makes room for as much as it is to wait for."""
    low = socket.SOL_SOCKET, socket.SO_RCVLOWAT
    program.call(SYS.SETSOCKOPT, ours, *low, len(data).to_bytes(4, "little"), 4)
    for at in range(0, len(data), _PIECE):
        piece = data[at : at + _PIECE]
        program.expect(program.call(SYS.SENDTO, theirs, piece, len(piece), 0, 0, 0), len(piece))
    _await(program, ours, select.POLLIN)
    program.call(SYS.SETSOCKOPT, ours, *low, (1).to_bytes(4, "little"), 4)


def _await(program: Program, fd: int, event: int) -> None:
    wait = program.address_of(struct.pack("<IHH", 0, event, 0))
    program.store(wait, fd)
    program.call(SYS.POLL, wait, 1, _COMES_WITHIN_MS)


def _bound_socket(program: Program, family: int, size: int) -> tuple[int, int]:
    """Make a TCP socket at a port of the loopback device; returns it, and where its name is."""
    loopback = bytes((127, 0, 0, 1)) if family == socket.AF_INET else bytes(15) + b"\1"
    address = bytearray(struct.pack("<HH", family, 0))
    address += loopback if family == socket.AF_INET else bytes(4) + loopback
    address = address.ljust(size, b"\0")
    made = program.call(SYS.SOCKET, family, socket.SOCK_STREAM, 0)
    program.call(SYS.BIND, made, bytes(address), size)
    bound = program.address_of(bytes(size))
    length = program.address_of(size.to_bytes(4, "little"))
    program.call(SYS.GETSOCKNAME, made, bound, length)
    return made, bound
