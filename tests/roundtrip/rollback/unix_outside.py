"""Serves those outside its container."""

import socket

from told import obey

listener = socket.socket(socket.AF_UNIX)
listener.bind("/work/outer")
listener.listen(5)
open("/work/listens", "w").close()
lasting, closing = (listener.accept()[0] for _ in range(2))


def check() -> None:
    """Raise AssertionError unless one is still served, and the other closed."""
    lasting.send(b"for you")
    assert lasting.recv(99) == b"thanks"
    assert closing.recv(99) == b""
    assert closing.getsockname() == lasting.getsockname() == "/work/outer"
    again = listener.accept()[0]
    again.send(b"welcome back")
    assert again.recv(99) == b"thanks"


obey(
    {"listen": lambda: listener.listen(2), "close": closing.close, "accept": listener.accept}, check
)
