"""Has files of many kinds open, does to them what it is told, and knows how they were."""

import os
import select
import socket
import threading

from told import obey

HOME = ("127.0.0.1", 7000)
TRIGGER = b"some 500000 10000000\0"

file = open("/work/log", "w")
file.write("x" * 10)
file.flush()
reader, writer = os.pipe()
os.write(writer, b"abc")
listener = socket.create_server(HOME)
watch = select.epoll()
watch.register(listener, select.EPOLLIN)
watch.register(reader, select.EPOLLIN)
near = socket.create_connection(HOME)
far = listener.accept()[0]
watch.register(far, select.EPOLLIN)
near.send(b"hello")
counter = os.eventfd(5, os.EFD_NONBLOCK)
pressed, unpressed = (os.open("/proc/pressure/cpu", os.O_RDWR) for _ in range(2))
os.write(pressed, TRIGGER)

CHANGES = {
    "read": lambda: (os.read(reader, 1), far.recv(3), os.eventfd_read(counter)),
    "write": lambda: (os.write(writer, b"more"), near.send(b"y" * 100_000), far.send(b"answer")),
    "close one end": lambda: (os.close(writer), near.close(), file.close(), os.close(counter)),
    "close the other": lambda: (os.close(reader), far.close(), listener.close(), watch.close()),
    "close all": lambda: [os.closerange(3, 100)],
    "be others": lambda: [os.dup2(0, fd) for fd in (reader, far.fileno(), listener.fileno())],
    "press": lambda: (os.close(pressed), os.write(unpressed, TRIGGER)),
    "call": lambda: [socket.create_connection(HOME).detach() for _ in range(3)],
    "move": lambda: os.rename("/work/log", "/work/moved"),
    "remove": lambda: os.unlink("/work/log"),
    "in a thread": lambda: threading.Thread(target=far.recv, args=[5]).start(),
}


def has_trigger(descriptor: int) -> bool:
    """Tell whether a file of pressure has one: else a poll of it is an error."""
    poll = select.poll()
    poll.register(descriptor, select.POLLPRI)
    return not any(events & select.POLLERR for _, events in poll.poll(0))


def check() -> None:
    """Raise AssertionError unless all is as it was, and works."""
    assert file.tell() == 10
    assert os.path.samestat(os.fstat(file.fileno()), os.stat("/work/log"))
    assert dict(watch.poll(0)) == {reader: select.EPOLLIN, far.fileno(): select.EPOLLIN}
    assert os.read(reader, 99) == b"abc"
    assert far.recv(99, socket.MSG_DONTWAIT) == b"hello"
    assert os.eventfd_read(counter) == 5
    assert has_trigger(pressed)
    assert not has_trigger(unpressed)
    assert watch.poll(0) == []
    os.write(writer, b"z")
    far.send(b"back")
    assert (os.read(reader, 99), near.recv(99)) == (b"z", b"back")
    with socket.create_connection(HOME):
        assert watch.poll(30) == [(listener.fileno(), select.EPOLLIN)]
        listener.accept()[0].close()
    near.close()
    assert far.recv(99) == b""


obey(CHANGES, check)
