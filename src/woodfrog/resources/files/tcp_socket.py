"""tcp(7): listening and unconnected sockets; connections to the outside as reset, if allowed."""

import os
import socket
import stat
import struct
from typing import Self

from woodfrog.errors import UnsupportedResource
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.netlink.sock_diag import TCP_CLOSE, TCP_LISTEN
from woodfrog.remote.program import Program
from woodfrog.resources.files import socket_options
from woodfrog.resources.files.base import FileRecord, Making, OpenFile, World, set_flags
from woodfrog.resources.files.socket_options import Option

_REUSEADDR = struct.pack("<i", 1)


class TcpSocket(FileRecord, frozen=True, tag="tcp-socket"):
    """A TCP socket. `reset` if it was connected, and is restored as a connection that broke."""

    family: int
    state: int
    local: bytes
    port: int
    backlog: int
    reset: bool
    options: list[Option]

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        return _protocol(file) == (socket.SOCK_STREAM, socket.IPPROTO_TCP)

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        found = world.sockets.tcp(file.stat.st_ino)
        with socket.socket(fileno=os.dup(file.descriptor)) as one:
            options = socket_options.collect(one)
            family = int(one.family)
            host, port = one.getsockname()[:2]
            local = socket.inet_pton(family, host.partition("%")[0])
        state = found.state if found is not None else TCP_CLOSE
        connected = state not in (TCP_CLOSE, TCP_LISTEN)
        if connected and not world.tcp_close:
            peer = socket.inet_ntop(family, found.remote[0])
            raise UnsupportedResource(
                f"the TCP connection to {peer} port {found.remote[1]} cannot be saved yet",
                hint="--tcp-close restores it as reset, so that the client connects again",
            )
        waiting = found.receive_queue if state == TCP_LISTEN and found is not None else 0
        if waiting and not world.tcp_close:
            raise UnsupportedResource(
                f"{waiting} TCP connections to port {port} have not been accepted,"
                " and cannot be saved yet",
                hint="--tcp-close restores the listener without them",
            )
        return cls(
            id=number,
            flags=file.flags,
            family=family,
            state=state,
            local=local,
            port=port,
            backlog=found.send_queue if state == TCP_LISTEN else 0,
            reset=connected,
            options=options,
        )

    def restore(self, making: Making) -> int:
        program = making.program
        if self.reset:
            fd = making.reset_connection(self.family)
        else:
            fd = program.call(SYS.SOCKET, self.family, socket.SOCK_STREAM, 0)
            if self.port:
                _bind(program, fd, self)
            else:
                early = [one for one in self.options if _is_early(one)]
                socket_options.restore(program, fd, early)
        late = [option for option in self.options if not _is_early(option)]
        socket_options.restore(program, fd, late)
        if self.state == TCP_LISTEN:
            program.call(SYS.LISTEN, fd, self.backlog)
        set_flags(program, fd, self.flags)
        return fd


def _protocol(file: OpenFile) -> tuple[int, int] | None:
    """Return type and protocol of an internet socket."""
    if not stat.S_ISSOCK(file.stat.st_mode):
        return None
    with socket.socket(fileno=os.dup(file.descriptor)) as one:
        if one.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        return one.type, one.proto


def _is_early(option: Option) -> bool:
    """Tell whether an option must be set before the socket is bound."""
    return (option.level, option.name) in (
        (socket.SOL_SOCKET, socket.SO_REUSEPORT),
        (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY),
    )


def _bind(program: Program, fd: int, record: TcpSocket) -> None:
    # Connections that ended with the container's former life may linger in TIME_WAIT on its port.
    program.call(SYS.SETSOCKOPT, fd, socket.SOL_SOCKET, socket.SO_REUSEADDR, _REUSEADDR, 4)
    socket_options.restore(program, fd, [one for one in record.options if _is_early(one)])
    if record.family == socket.AF_INET:
        address = struct.pack("<H", record.family) + record.port.to_bytes(2, "big") + record.local
        address = address.ljust(16, b"\0")
    else:
        address = struct.pack("<H", record.family) + record.port.to_bytes(2, "big") + bytes(4)
        address += record.local + bytes(4)
    program.call(SYS.BIND, fd, address, len(address))
    program.call(SYS.SETSOCKOPT, fd, socket.SOL_SOCKET, socket.SO_REUSEADDR, bytes(4), 4)
