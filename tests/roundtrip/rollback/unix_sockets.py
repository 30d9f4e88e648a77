"""Has unix sockets of all kinds, does to them what it is told, and knows how they were."""

import array
import fcntl
import os
import select
import signal
import socket
import struct
from collections.abc import Callable

from told import obey

PATH, ABSTRACT, MAIL, TMP = "/work/listening", "\0listening", "/work/mail", "/tmp/other"
RIGHTS, CREDENTIALS = socket.SCM_RIGHTS, socket.SCM_CREDENTIALS


def served(kind: int, name: str) -> tuple[socket.socket, socket.socket, socket.socket]:
    """Return a listener, and both ends of a connection: the client's and the other."""
    listener = socket.socket(socket.AF_UNIX, kind)
    listener.bind(name)
    listener.listen(7)
    client = socket.socket(socket.AF_UNIX, kind)
    client.connect(name)
    return listener, client, listener.accept()[0]


def who(one: socket.socket) -> tuple[int, ...]:
    """Return the process, user and group that its peer is said to be."""
    return struct.unpack("3i", one.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))


def received(one: socket.socket, length: int = 99) -> tuple[bytes, list[int], object]:
    """Return what comes first: data, files, and the sender."""
    data, beside, _, sender = one.recvmsg(length, 999, socket.MSG_DONTWAIT)
    files = array.array("i")
    for _, kind, content in beside:
        if kind == RIGHTS:
            files.frombytes(content)
    return data, list(files), sender


def send_file(one: socket.socket, data: bytes, file: int) -> None:
    one.sendmsg([data], [(socket.SOL_SOCKET, RIGHTS, array.array("i", [file]))])


stream = socket.socketpair()
stream[0].send(b"hello")
packets = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
for message in (b"one", b"two"):
    packets[0].send(message)
datagrams = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
datagrams[1].send(b"datagram")
# A file that only is in flight, and one that is also open.
carrying = socket.socketpair()
inner = socket.socketpair()
flying = os.pipe()
os.write(flying[1], b"flying")
send_file(carrying[0], b"a", flying[0])
send_file(carrying[0], b"b", inner[0].fileno())
os.close(flying[0])
# And one that could not be made again, but stays in flight.
holding = socket.socketpair()
memory = os.memfd_create("held")
os.write(memory, b"memory")
send_file(holding[0], b"m", memory)
os.close(memory)
# Named.
by_path, near, far = served(socket.SOCK_STREAM, PATH)
far.settimeout(None)
near.send(b"to the server")
_, second_near, second_far = by_path, socket.socket(socket.AF_UNIX), None
second_near.connect(PATH)
second_far = by_path.accept()[0]
by_name, packet_near, packet_far = served(socket.SOCK_SEQPACKET, ABSTRACT)
mail = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
mail.bind(MAIL)
os.chmod(MAIL, 0o640)
sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sender.bind("\0sender")
sender.connect(MAIL)
sender.send(b"letter")
in_tmp, tmp_near, tmp_far = served(socket.SOCK_STREAM, TMP)
# Whose news are told by signals.
signalling = socket.socketpair()
signal.signal(signal.SIGIO, lambda *_: signals.append(1))
signals: list[int] = []
fcntl.fcntl(signalling[0], fcntl.F_SETOWN, os.getpid())
fcntl.fcntl(signalling[0], fcntl.F_SETFL, os.O_RDWR | os.O_ASYNC)
# Half closed, and closed.
shut = socket.socketpair()
shut[0].send(b"last words")
shut[0].shutdown(socket.SHUT_WR)
left, gone = socket.socketpair()
gone.send(b"farewell")
gone.close()
# Who has sent something is told.
told = socket.socketpair()
told[1].setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
told[0].send(b"me")
# Not accepted yet.
waited_at = socket.socket(socket.AF_UNIX)
waited_at.bind("\0waited")
waited_at.listen(5)
waiting = [socket.socket(socket.AF_UNIX) for _ in range(2)]
for number, one in enumerate(waiting):
    one.connect("\0waited")
    one.send(b"%d waits" % number)
shared = os.dup(stream[1].fileno())
watch = select.epoll()
for end in (stream[1], far, by_path, waited_at, inner[1]):
    watch.register(end, select.EPOLLIN)
counter = os.eventfd(0)
watch.register(counter, select.EPOLLIN | select.EPOLLET)


def bind_anew() -> None:
    by_path.close()
    os.unlink(PATH)
    other = socket.socket(socket.AF_UNIX)
    other.bind(PATH)
    other.listen(1)
    other.detach()


def replace() -> None:
    """Have the same again, but for the time of the path."""
    global in_tmp, tmp_near, tmp_far
    at = [one.fileno() for one in (in_tmp, tmp_near, tmp_far)]
    for one in (in_tmp, tmp_near, tmp_far):
        one.close()
    os.unlink(TMP)
    in_tmp, tmp_near, tmp_far = served(socket.SOCK_STREAM, TMP)
    assert [one.fileno() for one in (in_tmp, tmp_near, tmp_far)] == at


def fresh(name: str) -> socket.socket:
    one = socket.socket(socket.AF_UNIX)
    one.connect(name)
    return one


EVERY = [*stream, *packets, *datagrams, *carrying, *inner, by_path, near, far, second_near]
EVERY += [second_far, by_name, packet_near, packet_far, mail, sender, *shut, left, *told]
CHANGES: dict[str, Callable[[], object]] = {
    "read a stream": lambda: stream[1].recv(2),
    "read packets": lambda: (packets[1].recv(9), datagrams[0].recv(9)),
    "write": lambda: (stream[1].send(b"x" * 100_000), packets[0].send(b""), sender.send(b"more")),
    "be reset": lambda: (packets[1].send(b"lost"), packets[1].close()),
    "be signalled": lambda: signalling[1].send(b"news"),
    "own": lambda: fcntl.fcntl(signalling[0], fcntl.F_SETOWN, 0),
    "close the owned": lambda: signalling[0].close(),
    "take files": lambda: (received(carrying[1], 1), received(carrying[1])),
    "send behind a file": lambda: holding[0].send(b"more"),
    "close the carried": lambda: (inner[0].close(), inner[1].close()),
    "read from a client": lambda: far.recv(5),
    "close a client": lambda: near.close(),
    "close the accepted": lambda: (far.close(), packet_far.close()),
    "close both ends": lambda: (near.close(), far.close(), left.close()),
    "close the listeners": lambda: (by_path.close(), by_name.close()),
    "unlink": lambda: os.unlink(PATH),
    "bind anew": bind_anew,
    "replace": replace,
    "change a path": lambda: (os.chmod(MAIL, 0o600), os.chmod(PATH, 0o600)),
    "read mail": lambda: mail.recv(99),
    "connect": lambda: [fresh(PATH).detach() for _ in range(2)],
    "connect and serve": lambda: (fresh(PATH).detach(), by_path.accept()[0].detach()),
    "set": lambda: (
        stream[0].setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1),
        by_name.listen(3),
    ),
    "shut down": lambda: (stream[0].shutdown(socket.SHUT_RDWR), by_name.shutdown(socket.SHUT_RD)),
    "accept": lambda: waited_at.accept()[0].recv(99),
    "wait more": lambda: (fresh("\0waited").detach(), waiting[0].send(b"more")),
    "leave the queue": lambda: waiting[1].close(),
    "read who": lambda: told[1].recv(9),
    "close all": lambda: [one.close() for one in EVERY],
}


def check_names() -> None:
    assert by_path.getsockname() == near.getpeername() == far.getsockname() == PATH
    assert second_far.getsockname() == PATH
    assert by_name.getsockname() == packet_near.getpeername() == ABSTRACT.encode()
    assert sender.getpeername() == MAIL
    assert os.stat(MAIL).st_mode & 0o777 == 0o640
    me = os.getpid(), os.getuid(), os.getgid()
    for one in (*stream, *packets, *datagrams, near, far, by_path, packet_near, packet_far, left):
        assert who(one) == me, (one, who(one), me)


def check_queues() -> None:
    assert os.read(shared, 2) == b"he"
    assert stream[1].recv(99) == b"llo"
    assert [packets[1].recv(99), packets[1].recv(99)] == [b"one", b"two"]
    assert datagrams[0].recv(99) == b"datagram"
    assert far.recv(99) == b"to the server"
    assert received(mail) == (b"letter", [], b"\0sender")
    assert [shut[1].recv(99), shut[1].recv(99)] == [b"last words", b""]
    assert [left.recv(99), left.recv(99)] == [b"farewell", b""]
    data, beside, _, _ = told[1].recvmsg(99, 999)
    credentials = struct.unpack("3i", beside[0][2])
    assert (data, credentials) == (b"me", (os.getpid(), os.getuid(), os.getgid()))


def check_carried() -> None:
    data, (pipe,), _ = received(carrying[1], 1)
    assert (data, os.read(pipe, 99)) == (b"a", b"flying")
    data, (file,), _ = received(carrying[1])
    with socket.socket(fileno=file) as one:
        one.send(b"through")
    assert (data, inner[1].recv(99)) == (b"b", b"through")
    data, (held,), _ = received(holding[1])
    assert (data, os.pread(held, 99, 0)) == (b"m", b"memory")


def check() -> None:
    """Raise AssertionError unless all is as it was, and works."""
    ready = {stream[1].fileno(), far.fileno(), waited_at.fileno()}
    assert {fd for fd, _ in watch.poll(0)} == ready, watch.poll(0)
    assert not signals
    signalling[1].send(b"news")
    assert signals
    check_names()
    check_queues()
    check_carried()
    for one, other in (stream, packets, datagrams, inner, (near, far), (packet_near, packet_far)):
        one.send(b"there")
        assert other.recv(99) == b"there"
        other.send(b"back")
        assert one.recv(99) == b"back"
    assert packet_far.gettimeout() is None
    for number in range(2):
        one = waited_at.accept()[0]
        assert who(one) == (os.getpid(), os.getuid(), os.getgid())
        assert one.recv(99) == b"%d waits" % number
        one.send(b"served")
        assert waiting[number].recv(99) == b"served"
    waited_at.setblocking(False)
    try:
        waited_at.accept()
        raise AssertionError("more wait")
    except BlockingIOError:
        pass
    with fresh(PATH) as client, by_path.accept()[0] as server:
        client.send(b"new")
        assert server.recv(99) == b"new"
    with fresh(TMP) as client, in_tmp.accept()[0] as server:
        client.send(b"new")
        assert server.recv(99) == b"new"
    by_name.settimeout(0)
    try:
        by_name.accept()
        raise AssertionError("nobody is there")
    except BlockingIOError:
        pass


if __name__ == "__main__":
    obey(CHANGES, check)
