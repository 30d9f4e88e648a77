"""Pseudoterminals: what tests write to them and read from them."""

import contextlib
import fcntl
import os
import pty
import select
import struct
import termios
import time
from collections.abc import Iterator, Mapping


def read_until(descriptor: int, text: bytes, within: float = 60) -> bytes:
    """Read from a terminal until a text has come."""
    found = b""
    end = time.monotonic() + within
    while text not in found:
        ready, _, _ = select.select([descriptor], [], [], end - time.monotonic())
        assert ready, found
        try:
            found += os.read(descriptor, 65536)
        except OSError:
            break
    assert text in found, found
    return found


def set_size(descriptor: int, rows: int, columns: int) -> None:
    """Set a terminal's size."""
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))


class Terminal:
    """A program that runs in a terminal."""

    def __init__(self, pid: int, master: int) -> None:
        self.pid = pid
        self.master = master

    def write(self, text: str) -> None:
        """Type something."""
        os.write(self.master, text.encode())

    def read_until(self, text: str, within: float = 60) -> str:
        """Read until a text has come."""
        return read_until(self.master, text.encode(), within).decode(errors="replace")

    def status(self) -> int:
        """Wait for the program's end; returns its exit status."""
        with contextlib.suppress(OSError):  # EIO, when it has ended
            while os.read(self.master, 65536):
                pass
        pid, self.pid = self.pid, 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextlib.contextmanager
def in_a_terminal(
    command: list[str], environment: Mapping[str, str], *, rows: int = 30, columns: int = 90
) -> Iterator[Terminal]:
    """Run a command in a terminal of this size; if it still runs in the end, it is killed."""
    master, slave = pty.openpty()
    set_size(slave, rows, columns)
    pid = os.fork()
    if pid == 0:
        os.close(master)
        os.login_tty(slave)
        os.execvpe(command[0], command, environment)
    os.close(slave)
    terminal = Terminal(pid, master)
    try:
        yield terminal
    finally:
        if terminal.pid:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
        os.close(master)
