"""redis-server with 200 MB of keys, under a client that reconnects."""

import contextlib
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from real_programs import MOMENTS, program, thaw_again

from containers import Container, Woodfrog, eventually
from needs import needs

KEYS = 2000
SIZE = 100_000


def value(key: int) -> bytes:
    """Return the value of a key, which nobody can guess from another's."""
    return random.Random(key).randbytes(SIZE)


class Client:
    """A redis client of forty lines."""

    def __init__(self, work: Path) -> None:
        # A path through a descriptor: sun_path is short, and a test's directory is long.
        self.directory = os.open(work, os.O_PATH)
        self.connect()

    def connect(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(f"/proc/self/fd/{self.directory}/redis.sock")
        self.file = self.socket.makefile("rb")

    def ask(self, *words: bytes) -> bytes:
        """Send one command and return its answer; ConnectionError if the server has gone."""
        parts = [b"$%d\r\n%b\r\n" % (len(word), word) for word in words]
        self.socket.sendall(b"*%d\r\n" % len(words) + b"".join(parts))
        line = self.file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the server closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            raise AssertionError(rest.decode())
        if kind != b"$" or rest == b"-1":
            return rest
        answer = self.file.read(int(rest) + 2)
        if len(answer) < int(rest) + 2:
            raise ConnectionError("the server closed the connection")
        return answer[:-2]

    def close(self) -> None:
        """Close the connection."""
        self.file.close()
        self.socket.close()


@contextlib.contextmanager
def a_client_that_goes_on(work: Path) -> Iterator[list[str]]:
    """Count in another thread, reconnecting when needed; yields what it has to complain about."""
    wrong: list[str] = []
    leave = threading.Event()

    def count() -> None:
        client = Client(work)
        known = 0
        unsure = False  # whether the last command was done before the connection broke
        while not leave.is_set():
            try:
                got = int(client.ask(b"INCR", b"counter"))
            except OSError:
                client.close()
                unsure = True
                time.sleep(0.01)
                with contextlib.suppress(OSError):
                    client.connect()
                continue
            if got not in (known + 1, known + 1 + unsure):
                wrong.append(f"counted {known}, then {got}")
            known, unsure = got, False
        client.close()
        os.close(client.directory)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        yield wrong
    finally:
        leave.set()
        thread.join()


def started(woodfrog: Woodfrog) -> Container:
    """Run a redis-server that has all its keys, which it also listens for."""
    command = ["/usr/bin/redis-server", "--port", "0", "--unixsocket", "/work/redis.sock"]
    command += ["--unixsocketperm", "777", "--save", "", "--appendonly", "no", "--dir", "/work"]
    bundle = program(woodfrog, command)
    container = woodfrog.run(bundle)
    container.wait_for("redis.sock")
    client = Client(bundle.work)
    for key in range(KEYS):
        assert client.ask(b"SET", b"key:%d" % key, value(key)) == b"OK"
    client.close()
    os.close(client.directory)
    return container


@needs("root", "command redis-server")
def test_no_command_fails_while_redis_is_copied(woodfrog: Woodfrog) -> None:
    container = started(woodfrog)
    image = woodfrog.directory / "image"
    client = Client(container.bundle.work)
    answered: list[int] = []
    leave = threading.Event()

    def ask() -> None:
        while not leave.is_set():
            answered.append(int(client.ask(b"INCR", b"counter")))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        eventually(lambda: len(answered) > 100, "the client counts")
        container.checkpoint(image, "--leave-running", "--ext-unix-close")
        counted = len(answered)
        eventually(lambda: len(answered) > counted + 100, "the client counts on")
    finally:
        leave.set()
        thread.join()
    assert answered == list(range(1, len(answered) + 1))
    client.close()
    container.delete()

    # The copy has what there was at one moment, whole.
    (container.bundle.work / "redis.sock").unlink(missing_ok=True)
    woodfrog.restore(container.bundle, image)
    client.connect()
    for key in range(KEYS):
        assert client.ask(b"GET", b"key:%d" % key) == value(key), f"key {key} has changed"
    assert 100 < int(client.ask(b"GET", b"counter")) <= counted
    client.close()
    os.close(client.directory)


@needs("root", "command redis-server")
def test_redis_keeps_all_its_keys_and_its_client_through_two_freezes(
    woodfrog: Woodfrog, chance: random.Random
) -> None:
    container = started(woodfrog)
    bundle = container.bundle
    client = Client(bundle.work)
    client.close()

    with a_client_that_goes_on(bundle.work) as wrong:
        for number in range(max(2, MOMENTS - 1)):
            time.sleep(chance.uniform(0, 0.3))
            container = thaw_again(container, number, "--ext-unix-close")
            client.connect()
            for key in range(KEYS):
                assert client.ask(b"GET", b"key:%d" % key) == value(key), f"key {key} has changed"
            counted = int(client.ask(b"GET", b"counter"))
            eventually(
                lambda counted=counted: int(client.ask(b"GET", b"counter")) > counted,
                "the other client goes on",
            )
            assert client.ask(b"DBSIZE") == b"%d" % (KEYS + 1)
            client.close()
    assert wrong == []
    os.close(client.directory)
