"""Send a descriptor over to a held task, fetch one back."""

import array
import errno
import os
import socket
import struct
from collections.abc import Callable

from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.remote.program import Program
from woodfrog.remote.stub import Stub

_IOVEC, _MSGHDR = struct.Struct("<QQ"), struct.Struct("<QIxxxxQQQQi")
_CMSGHDR_BYTES = 16
_PIDFD_THREAD = os.O_EXCL  # Linux 6.9


def fetch(pid: int, fd: int) -> int:
    """Return a descriptor of ours for a file that the process has open."""
    pidfd = _open(pid)
    try:
        return HERE.call(SYS.PIDFD_GETFD, pidfd, fd, 0)
    finally:
        os.close(pidfd)


def _open(pid: int) -> int:
    try:
        return HERE.call(SYS.PIDFD_OPEN, pid, 0)
    except OSError as error:
        # Not the first thread of a process, which has ended then (before Linux 6.15 EINVAL).
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise
        return HERE.call(SYS.PIDFD_OPEN, pid, _PIDFD_THREAD)


def send(
    pid: int, memory: int, page: int, call: Callable[..., int], descriptors: list[int]
) -> list[int]:
    """Give our descriptors to a held task; returns their numbers there (close-on-exec).

    `call` makes one system call in the task; `page` is the address of a writable page of it.
    Works across all namespaces: one end of a socket pair made there is fetched here, and carries
    the descriptors (unix(7), SCM_RIGHTS).
    """
    call(SYS.SOCKETPAIR, socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0, page)
    theirs, ours = struct.unpack("<2i", os.pread(memory, 8, page))
    send_by(pid, ours, descriptors)
    control = page + 128
    message = _MSGHDR.pack(0, 0, page + 64, 1, control, _control_bytes(len(descriptors)), 0)
    os.pwrite(memory, message.ljust(64, b"\0") + _IOVEC.pack(page + 80, 1), page)
    call(SYS.RECVMSG, theirs, page, socket.MSG_CMSG_CLOEXEC)
    call(SYS.CLOSE, theirs)
    call(SYS.CLOSE, ours)
    found = os.pread(memory, 4 * len(descriptors), control + _CMSGHDR_BYTES)
    return list(struct.unpack(f"<{len(descriptors)}i", found))


def send_by(pid: int, end: int, descriptors: list[int]) -> None:
    """Send descriptors of ours into a socket of a process's, whose other end gets them."""
    with socket.socket(fileno=fetch(pid, end)) as connection:
        rights = array.array("i", descriptors)
        connection.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])


def receive(program: Program, end: int, count: int) -> list[int]:
    """Take descriptors that were sent to a socket; returns their numbers (close-on-exec)."""
    byte = program.address_of(bytes(1))
    vector = program.address_of(_IOVEC.pack(byte, 1))
    control = program.address_of(bytes(_control_bytes(count)))
    message = _MSGHDR.pack(0, 0, vector, 1, control, _control_bytes(count), 0)
    program.call(SYS.RECVMSG, end, program.address_of(message), socket.MSG_CMSG_CLOEXEC)
    return [program.load(control + _CMSGHDR_BYTES + 4 * number) for number in range(count)]


def _control_bytes(count: int) -> int:
    """Return how much room the control message of so many descriptors needs."""
    return -(-(_CMSGHDR_BYTES + 4 * count) // 8) * 8


def give(stub: Stub, ours: list[int]) -> list[int]:
    """Give a stub descriptors of ours; returns their numbers there (close-on-exec)."""
    page = stub.program().base

    def call(number: int, *arguments: int) -> int:
        # Behind the page that carries the message.
        program = Program(page + 4096, stub.size - 4096)
        result = program.call(number, *arguments)
        stub.run(program)
        return program[result]

    return send(stub.pid, stub.memory, page, call, ours)
