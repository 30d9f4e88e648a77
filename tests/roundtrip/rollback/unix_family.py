"""Processes that are connected by unix sockets, and know who is at the other end."""

import os
import select
import signal
import socket
import struct
from collections.abc import Callable

from told import obey

PATH, USER = "/work/listening", 1000


def who(one: socket.socket) -> tuple[int, ...]:
    """Return the process, user and group that its peer is said to be."""
    return struct.unpack("3i", one.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))


def serve(orders: socket.socket, held: list[socket.socket]) -> None:
    """Do what is told, letter by letter, and say so."""
    while order := orders.recv(1):
        match order:
            case b"r":
                told = held[0].recv(99)
            case b"w":
                told = b"%d" % held[0].send(b"x" * 5)
            case b"c":
                held[0].close()
                told = b"closed"
            case _:
                told = b"%d %d %d" % who(held[0])
        orders.send(told)


def child(make: Callable[[], list[socket.socket]], user: int = 0) -> tuple[int, socket.socket]:
    """Start a process that makes sockets, and does with them what it is told."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if pid := os.fork():
        theirs.close()
        assert ours.recv(9) == b"made"
        return pid, ours
    ours.close()
    if user:
        os.setgroups([7, 8])
        os.setgid(user)
        os.setuid(user)
    held = make()
    theirs.send(b"made")
    serve(theirs, held)
    os._exit(0)


def client() -> list[socket.socket]:
    one = socket.socket(socket.AF_UNIX)
    one.connect(PATH)
    one.send(b"hello")
    return [one]


def server() -> list[socket.socket]:
    one = socket.socket(socket.AF_UNIX)
    one.bind("\0served")
    one.listen(3)
    return [one]


listener = socket.socket(socket.AF_UNIX)
listener.bind(PATH)
os.chmod(PATH, 0o666)
listener.listen(5)
first, first_orders = child(client)
user, user_orders = child(client, USER)
accepted = [listener.accept()[0] for _ in range(2)]
waiting, waiting_orders = child(client, USER)
# Of one that listens in another process.
serving, serving_orders = child(server, USER)
calling = socket.socket(socket.AF_UNIX)
calling.connect("\0served")
# A pair that a child has made, and who has sent something into it; one that has ended.
pair = socket.socketpair()
pair[1].setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
sending, sending_orders = child(lambda: [pair[0].send(b"sent") and pair[0]], USER)
if not (ended := os.fork()):
    pair[0].send(b"last")
    os._exit(0)
os.waitpid(ended, 0)
made_by_child = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def pass_pair() -> list[socket.socket]:
    one, other = socket.socketpair()
    socket.send_fds(made_by_child[1], [b"p"], [one.fileno()])
    return [other]


making, making_orders = child(pass_pair, USER)
_, files, _, _ = socket.recv_fds(made_by_child[0], 9, 9)
passed = socket.socket(fileno=files[0])
shared = socket.socketpair()
sharing, sharing_orders = child(lambda: [shared[1]])
shared[0].send(b"shared")
watch = select.epoll()
for end in (*accepted, shared[1], listener):
    watch.register(end, select.EPOLLIN)
# And a client that has sent nothing.
quiet_at = socket.socket(socket.AF_UNIX)
quiet_at.bind("\0quiet")
quiet_at.listen(3)


def quietly() -> list[socket.socket]:
    one = socket.socket(socket.AF_UNIX)
    one.connect("\0quiet")
    return [one]


quiet, quiet_orders = child(quietly, USER)
ORDERS = (first_orders, user_orders, sharing_orders, making_orders, waiting_orders)


def tell(orders: socket.socket, order: bytes) -> bytes:
    orders.send(order)
    return orders.recv(99)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


CHANGES: dict[str, Callable[[], object]] = {
    "read": lambda: [one.recv(2) for one in accepted],
    "let write": lambda: [tell(one, b"w") for one in ORDERS],
    "let close": lambda: [tell(one, b"c") for one in ORDERS],
    "close": lambda: [one.close() for one in (*accepted, calling, passed, *shared)],
    "close the listener": lambda: listener.close(),
    "accept": lambda: listener.accept()[0].recv(1),
    "accept the quiet": lambda: quiet_at.accept(),
    "read who": lambda: pair[1].recv(99),
    "let the server close": lambda: tell(serving_orders, b"c"),
    "hang up": lambda: calling.close(),
    "kill a client": lambda: kill(first),
    "kill all": lambda: [kill(one) for one in (first, sharing)],
}


def told(pid: int, user: int) -> bytes:
    return b"%d %d %d" % (pid, user, user)


def check_who() -> None:
    me = os.getpid()
    assert [who(one) for one in accepted] == [(first, 0, 0), (user, USER, USER)]
    assert who(calling) == (serving, USER, USER)
    assert who(passed) == (making, USER, USER)
    for orders in (first_orders, user_orders, sharing_orders):
        assert tell(orders, b"?") == told(me, 0)
    assert tell(making_orders, b"?") == told(making, USER)
    groups = accepted[1].getsockopt(socket.SOL_SOCKET, 59, 8)
    assert struct.unpack("2i", groups) == (7, 8)


def check_senders() -> None:
    found, beside, _, _ = pair[1].recvmsg(99, 999)
    assert (found, struct.unpack("3i", beside[0][2])) == (b"sent", (sending, USER, USER))
    found, beside, _, _ = pair[1].recvmsg(99, 999)
    pid, *rest = struct.unpack("3i", beside[0][2])
    assert (found, rest) == (b"last", [0, 0])
    assert not os.path.exists(f"/proc/{pid}")  # whoever that was has ended


def check() -> None:
    """Raise AssertionError unless all is as it was, and works."""
    ready = {one.fileno() for one in (*accepted, shared[1], listener)}
    assert {fd for fd, _ in watch.poll(0)} == ready
    check_who()
    check_senders()
    assert tell(sharing_orders, b"r") == b"shared"
    for one, orders in zip(accepted, (first_orders, user_orders), strict=True):
        assert one.recv(99) == b"hello"
        one.send(b"answer")
        assert tell(orders, b"r") == b"answer"
        tell(orders, b"w")
        assert one.recv(99) == b"xxxxx"
    late = listener.accept()[0]
    assert who(late) == (waiting, USER, USER)
    assert late.recv(99) == b"hello"
    late.send(b"at last")
    assert tell(waiting_orders, b"r") == b"at last"
    tell(waiting_orders, b"c")
    assert late.recv(99) == b""
    assert who(quiet_at.accept()[0]) == (quiet, USER, USER)


if __name__ == "__main__":
    obey(CHANGES, check)
