"""Pseudo-terminals: making one, its size, and raw mode."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import termios

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TIOCGPTPEER = 0x5441
TIOCSPTLCK = 0x40045431


def unlock(master: int) -> None:
    """Let the other end of a new pseudo-terminal be opened."""
    fcntl.ioctl(master, TIOCSPTLCK, struct.pack("i", 0))


def open_peer(master: int) -> int:
    """Open the terminal end that belongs to a master, without going through a path."""
    return int(fcntl.ioctl(master, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))


def window_size(terminal: int) -> tuple[int, int]:
    """Return (rows, columns)."""
    rows, columns, _, _ = struct.unpack("4H", fcntl.ioctl(terminal, termios.TIOCGWINSZ, bytes(8)))
    return rows, columns


def set_window_size(terminal: int, rows: int, columns: int) -> None:
    """Set the size; the foreground group behind it gets SIGWINCH."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))


def make_controlling(terminal: int) -> None:
    """Make this the controlling terminal of our (new) session."""
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)


def set_raw(terminal: int) -> list[Any]:
    """Pass every byte through unchanged; returns the attributes to restore later."""
    before = termios.tcgetattr(terminal)
    raw = termios.tcgetattr(terminal)
    raw[0] &= ~(
        termios.IGNBRK
        | termios.BRKINT
        | termios.PARMRK
        | termios.ISTRIP
        | termios.INLCR
        | termios.IGNCR
        | termios.ICRNL
        | termios.IXON
    )
    raw[1] &= ~termios.OPOST
    raw[2] = raw[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    raw[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    raw[6][termios.VMIN], raw[6][termios.VTIME] = 1, 0
    set_attributes(terminal, raw)
    return before


def keep_line_ends(terminal: int) -> None:
    """Add no carriage return to the lines that are written."""
    attributes = termios.tcgetattr(terminal)
    attributes[1] &= ~termios.ONLCR
    set_attributes(terminal, attributes)


def set_attributes(terminal: int, attributes: list[Any]) -> None:
    """Set the attributes of a terminal, in the form that `set_raw` returns."""
    while True:
        try:
            termios.tcsetattr(terminal, termios.TCSADRAIN, attributes)
            return
        except termios.error as error:
            if error.args[0] != errno.EINTR:
                raise OSError(*error.args) from None
