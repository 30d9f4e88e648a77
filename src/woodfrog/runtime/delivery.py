"""What is handed to whoever called us: the pid, the terminal, a pidfd."""

from __future__ import annotations

import os

from woodfrog.errors import StateError, while_
from woodfrog.kernel import process as kernel_process
from woodfrog.kernel.caller import HERE


def fetch_descriptor(pid: int, number: int) -> int:
    """Return a duplicate of a descriptor that another process of ours holds."""
    pidfd = kernel_process.pidfd_open(HERE, pid)
    try:
        return kernel_process.pidfd_getfd(HERE, pidfd, number)
    finally:
        os.close(pidfd)


def send_console(path: str, master: int) -> None:
    """Hand a console's master to the engine that listens at a unix socket."""
    try:
        _send_descriptor(path, b"/dev/ptmx", master)
    except OSError as error:
        raise StateError(f"cannot hand the console to {path}: {error.strerror}") from None


def send_pidfd(path: str, pid: int) -> None:
    """Hand a descriptor of a process of ours to the engine that listens at a unix socket."""
    pidfd = kernel_process.pidfd_open(HERE, pid)
    try:
        _send_descriptor(path, b"pidfd", pidfd)
    except OSError as error:
        raise StateError(f"cannot hand the pidfd to {path}: {error.strerror}") from None
    finally:
        os.close(pidfd)


def _send_descriptor(path: str, name: bytes, descriptor: int) -> None:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(path)
        socket.send_fds(connection, [name], [descriptor])


def write_pid_file(path: str, pid: int) -> None:
    """Write a pid file; who watches for it sees it complete or not at all."""
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, f".{name}")
    with while_(f"writing the pid file {path}"):
        with open(temporary, "wb", buffering=0) as file:
            file.write(str(pid).encode())
        os.rename(temporary, path)
