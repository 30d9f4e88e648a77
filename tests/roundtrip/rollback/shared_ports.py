"""Has UDP sockets that share ports, each with what waits at it alone, and knows what that was."""

import socket
from collections.abc import Iterator

from told import obey

HOME = "127.0.0.1"
DRAWN, NEWEST = 7100, 7101
SO_PEEK_OFF = 42


def twins(port: int, option: int) -> Iterator[socket.socket]:
    """Go through two sockets that share a port."""
    for _ in range(2):
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        one.setsockopt(socket.SOL_SOCKET, option, 1)
        one.bind((HOME, port))
        one.setblocking(False)
        yield one


def send(text: bytes, port: int) -> None:
    """Send from a new port: that is how the kernel draws who gets it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.sendto(text, (HOME, port))


def waiting(one: socket.socket, flags: int = 0) -> list[bytes]:
    """Take what waits, or look at it."""
    found = []
    try:
        while True:
            found.append(one.recv(99, flags))
    except BlockingIOError:
        return found


drawn = [*twins(DRAWN, socket.SO_REUSEPORT)]
for number in range(40):
    send(b"%d" % number, DRAWN)
had = []
for one in drawn:
    one.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
    had.append(waiting(one, socket.MSG_PEEK))
    one.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, -1)
assert all(had)
newest = []
for one, text in zip(twins(NEWEST, socket.SO_REUSEADDR), (b"first", b"second"), strict=True):
    newest.append(one)
    send(text, NEWEST)

CHANGES = {
    "read the first": lambda: (drawn[0].recv(99), newest[0].recv(99)),
    "read the second": lambda: (drawn[1].recv(99), newest[1].recv(99)),
    "close the first": lambda: (drawn[0].close(), newest[0].close()),
}


def check() -> None:
    """Raise AssertionError unless each has what it had, and the newest gets more."""
    assert [waiting(one) for one in drawn] == had
    send(b"news", NEWEST)
    assert [waiting(one) for one in newest] == [[b"first"], [b"second", b"news"]]


obey(CHANGES, check)
