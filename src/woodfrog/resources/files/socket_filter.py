"""A classic BPF filter that a program has attached to a socket (SO_ATTACH_FILTER)."""

import errno
import os
import socket
import struct

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.image.record import Part
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.remote.program import Program

_SO_ATTACH_FILTER = _SO_GET_FILTER = 26
_SO_LOCK_FILTER = 44
_INSTRUCTION_BYTES = 8
_MOST_INSTRUCTIONS = 4096


class SocketFilter(Part, frozen=True):
    """The instructions, as struct sock_filter (8 bytes each); `locked` if it can't be removed."""

    instructions: bytes
    locked: bool


def collect(one: socket.socket) -> SocketFilter | None:
    """Read a socket's filter."""
    # The length that goes in and out counts instructions.
    length = bytearray(4)
    try:
        HERE.call(SYS.GETSOCKOPT, one.fileno(), socket.SOL_SOCKET, _SO_GET_FILTER, 0, length)
        count = int.from_bytes(length, "little")
        if count == 0:
            return None
        instructions = bytearray(count * _INSTRUCTION_BYTES)
        HERE.call(
            SYS.GETSOCKOPT, one.fileno(), socket.SOL_SOCKET, _SO_GET_FILTER, instructions, length
        )
    except OSError as error:
        if error.errno == errno.EACCES:
            raise UnsupportedResource("is a socket with an eBPF program (SO_ATTACH_BPF)") from None
        raise OSError(error.errno, f"SO_GET_FILTER: {os.strerror(error.errno or 0)}") from None
    locked = bool(one.getsockopt(socket.SOL_SOCKET, _SO_LOCK_FILTER))
    return SocketFilter(instructions=bytes(instructions), locked=locked)


def restore(program: Program, fd: int, record: SocketFilter | None) -> None:
    """Attach a recorded filter; the kernel checks that it is a sound one."""
    if record is None:
        return
    count, rest = divmod(len(record.instructions), _INSTRUCTION_BYTES)
    if rest or not 0 < count <= _MOST_INSTRUCTIONS:
        raise ImageError("the image has an impossible socket filter")
    address = program.address_of(record.instructions)
    head = struct.pack("<H6xQ", count, address)
    program.call(SYS.SETSOCKOPT, fd, socket.SOL_SOCKET, _SO_ATTACH_FILTER, head, len(head))
    if record.locked:
        word = (1).to_bytes(4, "little")
        program.call(SYS.SETSOCKOPT, fd, socket.SOL_SOCKET, _SO_LOCK_FILTER, word, 4)
