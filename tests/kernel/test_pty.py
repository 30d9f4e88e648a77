"""What is queued in a pseudoterminal can be taken out, put back, and put into another."""

import fcntl
import os
import termios
import tty
from collections.abc import Callable, Iterator

import pytest

from containers import eventually
from needs import needs
from woodfrog.kernel import pty
from woodfrog.kernel.pty import Line

pytestmark = needs("root")

Pair = tuple[int, int]


@pytest.fixture
def make() -> Iterator[Callable[[], Pair]]:
    """Make pseudoterminals that never wait; all are closed at the end."""
    opened: list[int] = []

    def openpty() -> Pair:
        pair = os.openpty()
        opened.extend(pair)
        for fd in pair:
            os.set_blocking(fd, False)
        return pair

    yield openpty
    for fd in opened:
        os.close(fd)


def write_all_that_fits(fd: int, data: bytes) -> int:
    """Write the same again and again until there is no room; returns how much that was."""
    written = 0
    try:
        while True:
            written += os.write(fd, data)
    except BlockingIOError:
        return written


def in_lines(pair: Pair) -> None:
    master, terminal = pair
    os.write(terminal, b"out\nput\n")
    os.write(master, b"one\rtwo\rended\x04part")


def raw(pair: Pair) -> None:
    master, terminal = pair
    tty.setraw(terminal)
    os.write(master, b"\x03\x04\r")
    os.write(terminal, b"raw\n")


def in_packets(pair: Pair) -> None:
    fcntl.ioctl(pair[0], termios.TIOCPKT, (1).to_bytes(4, "little"))
    raw(pair)


def full_of_output(pair: Pair) -> None:
    assert write_all_that_fits(pair[1], b"a line of some length\n") > 4096


def full_of_echoes(pair: Pair) -> None:
    assert write_all_that_fits(pair[0], b"a line\r") > 4096


@pytest.mark.parametrize("put", [in_lines, raw, in_packets, full_of_output, full_of_echoes])
def test_what_is_queued_stays_and_can_be_put_elsewhere(
    put: Callable[[Pair], None], make: Callable[[], Pair]
) -> None:
    master, terminal = make()
    put((master, terminal))
    eventually(lambda: pty.events(master), "something is queued")
    settings = pty.settings(master)

    first = pty.peek(master)
    second = pty.peek(master)

    assert first == second
    assert pty.settings(master) == settings
    assert first.output
    other, _ = make()
    fcntl.ioctl(other, termios.TCSETS, settings)
    in_packet_mode = pty.has_packet_mode(master)
    fcntl.ioctl(other, termios.TIOCPKT, in_packet_mode.to_bytes(4, "little"))
    pty.fill(other, first)
    assert pty.peek(other) == first


def test_lines_keep_their_ends(make: Callable[[], Pair]) -> None:
    master, terminal = make()
    in_lines((master, terminal))
    eventually(lambda: b"part" in pty.peek(master).output, "all is echoed")

    queues = pty.peek(master)

    assert queues.input == [
        Line(b"one\n", ended=False),
        Line(b"two\n", ended=False),
        Line(b"ended", ended=True),
        Line(b"part", ended=False),
    ]
    assert [os.read(terminal, 100) for _ in range(3)] == [b"one\n", b"two\n", b"ended"]
    with pytest.raises(BlockingIOError):
        os.read(terminal, 100)
    os.write(master, b"ial\r")
    eventually(lambda: pty.events(terminal), "the line is finished")
    assert os.read(terminal, 100) == b"partial\n"


def test_stopped_output_stays_stopped(make: Callable[[], Pair]) -> None:
    master, terminal = make()
    os.write(terminal, b"before")
    os.write(master, b"\x13")
    eventually(lambda: not _takes_output(terminal), "output is stopped")

    queues = pty.peek(master)

    assert queues.stopped
    assert queues.output.startswith(b"before")
    assert not _takes_output(terminal)
    os.write(master, b"\x11")
    eventually(lambda: _takes_output(terminal), "output goes on")


def _takes_output(terminal: int) -> bool:
    try:
        return os.write(terminal, b".") == 1
    except BlockingIOError:
        return False
