"""What is queued in a pseudoterminal, in both directions: taken out, and put in again.

Nobody else may read or write meanwhile. All is reached through the master; its settings are those
of the terminal (drivers/tty/tty_ioctl.c, tty_mode_ioctl).
"""

import array
import fcntl
import os
import select
import struct
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from woodfrog.kernel.console import TIOCGPTPEER

TIOCGPTN, _TIOCGPTLCK, _TIOCGPKT = 0x80045430, 0x80045439, 0x80045438
_TIOCGEXCL, _TIOCGLCKTRMIOS, _TIOCSLCKTRMIOS = 0x80045440, 0x5456, 0x5457
_TERMIOS = struct.Struct("<4IB19s")  # struct termios of the kernel
SETTINGS_BYTES, SIZE_BYTES = _TERMIOS.size, 8
_VEOF, _VEOL, _VSTART, _VSTOP, _VEOL2 = 4, 11, 8, 9, 16
_DISABLED = 0  # _POSIX_VDISABLE
_CONTROL_Q, _CONTROL_S = 0o21, 0o23
# TIOCPKT_*, but for TIOCPKT_STOP
_FLUSH_READ, _FLUSH_WRITE, _START, _NO_STOP, _DO_STOP, _IOCTL = 1, 2, 8, 16, 32, 64
_PIECE, _LAST_PIECE = 256, 1792
_PATIENCE_S = 1.0
_EXTPROC = 0o200000
_BUFFER_BYTES = 4095
_READ_AT_ONCE = 1 << 17


class Line(msgspec.Struct, frozen=True):
    """Input as one read gets it; `ended` without a line end: by the end-of-file character."""

    data: bytes
    ended: bool


class Queues(msgspec.Struct, frozen=True):
    """What the terminal's readers will get, and its master's. `stopped`: output was, as by ^S.

    `news` is what a master in packet mode has not been told yet (TIOCPKT_* of TIOCPKT(2const)).
    """

    input: list[Line]
    output: bytes
    stopped: bool
    news: int = 0


def number(master: int, request: int) -> int:
    """Ask for a number by an ioctl."""
    found = array.array("i", [0])
    fcntl.ioctl(master, request, found)
    return found[0]


def index(master: int) -> int:
    """Return N of /dev/pts/N."""
    return number(master, TIOCGPTN)


def is_locked(master: int) -> bool:
    """Tell whether the terminal can't be opened yet (unlockpt(3))."""
    return bool(number(master, _TIOCGPTLCK))


def has_packet_mode(master: int) -> bool:
    """Tell whether reads begin with a byte that says what has happened (TIOCPKT)."""
    return bool(number(master, _TIOCGPKT))


def settings(master: int) -> bytes:
    """Return struct termios."""
    return fcntl.ioctl(master, termios.TCGETS, bytes(SETTINGS_BYTES))


def is_exclusive(terminal: int) -> bool:
    """Tell whether nobody may open a terminal any more (TIOCEXCL)."""
    return bool(number(terminal, _TIOCGEXCL))


def locked_settings(master: int) -> bytes:
    """Return which settings nobody may change (TIOCGLCKTRMIOS), as a mask of struct termios."""
    return fcntl.ioctl(master, _TIOCGLCKTRMIOS, bytes(SETTINGS_BYTES))


def lock_settings(master: int, locked: bytes) -> None:
    """Have nobody change some settings."""
    fcntl.ioctl(master, _TIOCSLCKTRMIOS, locked)


def size(master: int) -> bytes:
    """Return struct winsize."""
    return fcntl.ioctl(master, termios.TIOCGWINSZ, bytes(SIZE_BYTES))


def events(master: int) -> int:
    """Return what poll(2) says of a descriptor now."""
    poll = select.poll()
    poll.register(master, select.POLLIN | select.POLLPRI)
    found = poll.poll(0)
    return found[0][1] if found else 0


@contextmanager
def peer(master: int) -> Iterator[int]:
    """Open the terminal for a moment, without waiting for anything."""
    flags = os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
    terminal = int(fcntl.ioctl(master, TIOCGPTPEER, flags))
    try:
        yield terminal
    finally:
        os.close(terminal)


def peek(master: int) -> Queues:
    """Take out what is queued, put it in again at once, and return it."""
    with _unlocked(master), peer(master) as terminal:
        news = _take_news(master)
        # A read that finds nothing waits for what is still on its way, to be taken as usual. But
        # where more may wait than the terminal takes at once, that must stay as it is.
        little = number(terminal, termios.FIONREAD) < _BUFFER_BYTES // 2
        lines = _read_lines(terminal) if little else []
        with _quiet(terminal):
            # In the quiet no echo comes that would take the room of what is put back.
            output = _drain_output(master, terminal)
            lines += _read_lines(terminal)
            more = _read_rest(terminal, lines)
            # Each read made room, by which more may have come than fits in at once.
            more = _take_beyond(terminal, lines) + more
            _tell_of_flushes(terminal, news)
            stopped = _fill_output(terminal, output)
            _fill_input(terminal, lines)
        _write(master, more)
        _tell(terminal, news)
        if stopped:
            _stop(terminal)
        # What is stopped takes nothing, though there is room (pty_write_room).
        idle = not output and not _takes_output(terminal)
    return Queues(lines, output, stopped or idle, news)


def empty(master: int) -> None:
    """Take out what is queued, and start output that was stopped."""
    with _unlocked(master), peer(master) as terminal:
        _take_news(master)
        fcntl.ioctl(terminal, termios.TCXONC, termios.TCOON)
        with _quiet(terminal):
            _drain_output(master, terminal)
            lines = _read_lines(terminal)
            _read_rest(terminal, lines)
        _take_news(master)


def fill(master: int, queues: Queues) -> None:
    """Put into a new or empty pseudoterminal what had been queued in another."""
    with peer(master) as terminal:
        with _quiet(terminal):
            _tell_of_flushes(terminal, queues.news)
            _fill_output(terminal, queues.output)
            _fill_input(terminal, queues.input)
        _tell(terminal, queues.news)
        if queues.stopped:
            _stop(terminal)


def has_news(master: int) -> bool:
    """Tell whether a master in packet mode will be told something before it gets data."""
    return has_packet_mode(master) and bool(events(master) & select.POLLPRI)


def _take_news(master: int) -> int:
    """Read what a master in packet mode would be told; it comes alone, and is then forgotten."""
    return os.read(master, 1)[0] if has_news(master) else 0


def _tell_of_flushes(terminal: int, news: int) -> None:
    """Have the master be told again that queues were emptied, now that they are empty."""
    if news & _FLUSH_READ:
        termios.tcflush(terminal, termios.TCIFLUSH)
    if news & _FLUSH_WRITE:
        termios.tcflush(terminal, termios.TCOFLUSH)


def _tell(terminal: int, news: int) -> None:
    """Have it be told the rest, of which the last is how things are; and what stops comes later."""
    if news & (_DO_STOP | _NO_STOP):
        before = settings(terminal)
        flags_in, *others, characters = _TERMIOS.unpack(before)
        # Flow control by ^S and ^Q, or not.
        usual = bytearray(characters)
        usual[_VSTART], usual[_VSTOP] = _CONTROL_Q, _CONTROL_S
        flags_in ^= termios.IXON if characters == usual else 0
        flags_in |= termios.IXON if characters != usual else 0
        packed = _TERMIOS.pack(flags_in, *others, bytes(usual))
        fcntl.ioctl(terminal, termios.TCSETS, packed)
        fcntl.ioctl(terminal, termios.TCSETS, before)
    elif news & _IOCTL:
        fcntl.ioctl(terminal, termios.TCSETS, settings(terminal))
    if news & _START:
        for how in (termios.TCOOFF, termios.TCOON):
            fcntl.ioctl(terminal, termios.TCXONC, how)


def _takes_output(terminal: int) -> bool:
    poll = select.poll()
    poll.register(terminal, select.POLLOUT)
    return bool(poll.poll(0))


@contextmanager
def _unlocked(master: int) -> Iterator[None]:
    """Have all settings be changeable for the moment."""
    locked = locked_settings(master)
    if any(locked):
        lock_settings(master, bytes(SETTINGS_BYTES))
    try:
        yield
    finally:
        if any(locked):
            lock_settings(master, locked)


@contextmanager
def _quiet(terminal: int) -> Iterator[None]:
    """Have what goes in and out neither changed nor echoed nor obeyed, but for line ends."""
    before = settings(terminal)
    flags_in, _, control, local, discipline, characters = _TERMIOS.unpack(before)
    kept = (_VEOF, _VEOL, _VEOL2, _VSTART, _VSTOP, termios.VMIN, termios.VTIME)
    quiet = bytes(one if at in kept else _DISABLED for at, one in enumerate(characters))
    # What concerns flow control stays: a master in packet mode is told when that changes.
    flags_in &= termios.IXON | termios.IXOFF | termios.IXANY
    local &= termios.ICANON | _EXTPROC
    packed = _TERMIOS.pack(flags_in, 0, control, local, discipline, quiet)
    fcntl.ioctl(terminal, termios.TCSETS, packed)
    try:
        yield
    finally:
        fcntl.ioctl(terminal, termios.TCSETS, before)


def _drain_output(master: int, terminal: int) -> bytes:
    """Read all that the master would; in packet mode, a byte that says "data" comes first."""
    head = 1 if has_packet_mode(master) else 0
    output = b""
    while events(master) & select.POLLIN:
        output += os.read(master, _READ_AT_ONCE)[head:]
        # Echoes that had no room come with any write, even of nothing (n_tty_write).
        os.write(terminal, b"")
    return output


def _read_lines(terminal: int) -> list[Line]:
    """Read all that the terminal gives by itself: lines, or what there is."""
    flags = _TERMIOS.unpack(settings(terminal))
    ends = bytes((0x0A, flags[5][_VEOL], flags[5][_VEOL2]))
    line_ends = (b"\n", *_one_by_one(ends)) if flags[3] & termios.ICANON else None
    lines = []
    try:
        while True:
            data = os.read(terminal, _READ_AT_ONCE)
            ended = line_ends is not None and data[-1:] not in line_ends
            lines.append(Line(data, ended=ended))
    except BlockingIOError:
        return lines


def _take_beyond(terminal: int, lines: list[Line]) -> bytes:
    """Take away the lines for which a terminal has no room; returns what to type once more."""
    kept = taken = 0
    for line in lines:
        taken += len(line.data) + line.ended
        if taken > _BUFFER_BYTES:
            break
        kept += 1
    beyond = b"".join(_typed(terminal, line) for line in lines[kept:])
    del lines[kept:]
    return beyond


def _typed(terminal: int, line: Line) -> bytes:
    end_of_file = _TERMIOS.unpack(settings(terminal))[5][_VEOF]
    return line.data + bytes((end_of_file,) if line.ended else ())


def _read_rest(terminal: int, lines: list[Line]) -> bytes:
    """Read an unfinished line, too; returns what had not even come to the terminal."""
    rest = b""
    with _without_lines(terminal):
        for line in _read_lines(terminal):
            rest += line.data
    room = max(0, _BUFFER_BYTES - sum(len(line.data) + line.ended for line in lines))
    if rest[:room]:
        lines.append(Line(rest[:room], ended=False))
    return rest[room:]


def _one_by_one(characters: bytes) -> list[bytes]:
    return [bytes((one,)) for one in characters if one != _DISABLED]


@contextmanager
def _without_lines(terminal: int) -> Iterator[None]:
    """Give out an unfinished line, too; it must be empty when lines are back."""
    before = settings(terminal)
    flags = list(_TERMIOS.unpack(before))
    flags[3] &= ~termios.ICANON
    fcntl.ioctl(terminal, termios.TCSETS, _TERMIOS.pack(*flags))
    try:
        yield
    finally:
        fcntl.ioctl(terminal, termios.TCSETS, before)


def _fill_output(terminal: int, output: bytes) -> bool:
    """Write for the master to read; tells whether output was stopped, and has been started."""
    try:
        output = output[os.write(terminal, output[:_PIECE]) :]
        stopped = False
    except BlockingIOError:
        stopped = True
        for how in (termios.TCOOFF, termios.TCOON):
            fcntl.ioctl(terminal, termios.TCXONC, how)
    _write(terminal, output)
    return stopped


def _write(fd: int, data: bytes) -> None:
    """Write what just was in a terminal's buffers, which must take as much again.

    In small pieces, and a last one: a buffer of that size is taken over the limit, if it is there
    from before, and so is one buffer of a page (drivers/tty/tty_buffer.c, tty_buffer_alloc).
    """
    deadline = time.monotonic() + _PATIENCE_S
    while data:
        try:
            data = data[os.write(fd, data[: _PIECE if len(data) > _LAST_PIECE else None]) :]
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.001)  # the kernel is moving it on


def _fill_input(terminal: int, lines: list[Line]) -> None:
    """Insert what had been typed, without the ways that typing takes (TIOCSTI)."""
    for line in lines:
        for one in _typed(terminal, line):
            fcntl.ioctl(terminal, termios.TIOCSTI, bytes((one,)))


def _stop(terminal: int) -> None:
    """Stop output, as by the stop character if the terminal obeys that."""
    flags_in, _, _, _, _, characters = _TERMIOS.unpack(settings(terminal))
    if flags_in & termios.IXON and characters[_VSTOP] != _DISABLED:
        fcntl.ioctl(terminal, termios.TIOCSTI, characters[_VSTOP : _VSTOP + 1])
    else:
        fcntl.ioctl(terminal, termios.TCXONC, termios.TCOOFF)
