"""Has TCP connections whose ports others use later; knows how they were.

Of one connection the other end is closed. The other one has both its ends.
"""

import json
import select
import socket

from told import obey

HOME = "127.0.0.1"

listener = socket.create_server((HOME, 0))
server = listener.getsockname()
connections: dict[str, list[socket.socket]] = {}
names = {"half": (HOME, 0), "whole": (HOME, 0)}


def begin(name: str) -> None:
    """Connect, from the same port each time."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    client.bind(names[name])
    client.connect(server)
    names[name] = client.getsockname()
    connections[name] = [client, listener.accept()[0]]


def end(name: str) -> None:
    """Close a connection when all has been read, the server's end first: its ports stay in use."""
    client, *others = connections.pop(name)
    for one in (*others, client):
        if select.select([one], [], [], 0)[0]:
            one.recv(99)
        one.close()


def use_again() -> None:
    """End both, and have others of the same ports, which end as well."""
    for name in names:
        end(name)
        begin(name)
        end(name)


def end_both() -> None:
    """End both."""
    for name in names:
        end(name)


begin("half")
connections["half"][1].sendall(b"all there is")
connections["half"].pop().close()
begin("whole")
connections["whole"][0].sendall(b"some")
with open("/work/ports", "w") as file:
    json.dump({"server": server[1], **{name: at[1] for name, at in names.items()}}, file)


def check() -> None:
    """Raise AssertionError unless all connections are as they were."""
    (half,) = connections["half"]
    assert half.recv(99) == b"all there is"
    assert half.recv(99) == b""
    client, other = connections["whole"]
    assert other.recv(99) == b"some"
    other.sendall(b"more")
    assert client.recv(99) == b"more"


obey({"use again": use_again, "end": end_both}, check)
