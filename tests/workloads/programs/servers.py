"""Runs servers that others know, with clients at their unix sockets, and knows what they say."""

import asyncio
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.managers import BaseManager, SyncManager

from told import obey

Ask = Callable[[str], str]
Case = tuple[dict[str, Callable[[], object]], Callable[[], None]]


def started(*command: str) -> subprocess.Popen[str]:
    """Start a program that is talked to line by line."""
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        bufsize=1,
    )


def asking(one: subprocess.Popen[str]) -> Ask:
    """Return what says a line to a program and hears one."""

    def ask(line: str) -> str:
        assert one.stdin
        assert one.stdout
        one.stdin.write(line + "\n")
        one.stdin.flush()
        return one.stdout.readline().strip()

    return ask


def there(path: str) -> None:
    """Wait until somebody listens at a path."""
    while True:
        with socket.socket(socket.AF_UNIX) as one:
            try:
                one.connect(path)
                return
            except OSError:
                time.sleep(0.02)


def dbus() -> Case:
    """A message bus, and a client that owns a name and answers."""
    bus = "unix:path=/tmp/bus"
    os.environ["DBUS_SESSION_BUS_ADDRESS"] = bus
    subprocess.Popen(["dbus-daemon", "--session", "--nofork", f"--address={bus}"])
    there("/tmp/bus")
    monitor = subprocess.Popen(
        ["dbus-monitor", "--profile"], stdout=open("/tmp/seen", "w"), stderr=subprocess.DEVNULL
    )

    def call(member: str, *arguments: str) -> str:
        command = ["dbus-send", "--print-reply", "--dest=org.freedesktop.DBus"]
        command += ["/", f"org.freedesktop.DBus.{member}", *arguments]
        return subprocess.run(command, check=True, text=True, capture_output=True).stdout

    while os.path.getsize("/tmp/seen") < 100:
        call("GetId")
        time.sleep(0.02)
    names = call("ListNames").count('string "')

    def check() -> None:
        before = os.path.getsize("/tmp/seen")
        assert call("ListNames").count('string "') == names
        while os.path.getsize("/tmp/seen") == before:
            time.sleep(0.02)

    return {
        "call": lambda: [call("ListNames") for _ in range(3)],
        "end the client": lambda: (monitor.kill(), monitor.wait(), call("ListNames")),
    }, check


def managed() -> Case:
    """Objects of a server of multiprocessing's, one of them shared by a child."""
    multiprocessing.set_start_method("fork")
    manager = SyncManager(address="/tmp/managed", authkey=b"key")
    manager.start()
    counts = manager.dict(n=1)
    jobs = manager.Queue()
    jobs.put("first")
    answers = multiprocessing.Queue()

    def work() -> None:
        while True:
            answers.put(jobs.get() + "!")

    worker = multiprocessing.Process(target=work, daemon=True)
    worker.start()
    assert answers.get() == "first!"

    def check() -> None:
        assert counts["n"] == 1
        jobs.put("again")
        assert answers.get() == "again!"
        other = BaseManager(address="/tmp/managed", authkey=b"key")
        other.connect()

    return {
        "count": lambda: counts.update(n=2),
        "work": lambda: (jobs.put("more"), answers.get()),
        "from a thread": lambda: _in_thread(lambda: counts.update(n=3)),
        "end the worker": lambda: (worker.kill(), worker.join()),
    }, check


def _in_thread(work: Callable[[], object]) -> None:
    one = threading.Thread(target=work)
    one.start()
    one.join()


def served_by_asyncio() -> Case:
    """A server of asyncio's, with clients in other processes."""
    if not os.fork():
        asyncio.run(_serve())
    there("/tmp/lines")
    clients = [started("python3", "-c", _TALK) for _ in range(3)]
    asks = [asking(one) for one in clients]
    assert [ask("a") for ask in asks] == ["1 a"] * 3

    def check() -> None:
        assert [ask("b") for ask in asks] == ["2 b"] * 3
        with socket.socket(socket.AF_UNIX) as fresh:
            fresh.connect("/tmp/lines")
            fresh.send(b"z\n")
            assert fresh.recv(99) == b"1 z\n"

    return {
        "talk": lambda: [ask("x") for ask in asks],
        "end a client": lambda: (clients[0].kill(), clients[0].wait()),
        "connect": lambda: started("python3", "-c", _TALK).stdin,
    }, check


_TALK = """
import socket, sys
one = socket.socket(socket.AF_UNIX)
one.connect("/tmp/lines")
file = one.makefile("rw")
for line in sys.stdin:
    file.write(line)
    file.flush()
    print(file.readline().strip(), flush=True)
"""


async def _serve() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        count = 0
        while line := await reader.readline():
            count += 1
            writer.write(b"%d %s" % (count, line))
        writer.close()

    server = await asyncio.start_unix_server(talk, "/tmp/lines")
    await server.serve_forever()


def redis() -> Case:
    """A redis-server with a client in a transaction."""
    subprocess.Popen(
        ["redis-server", "--port", "0", "--unixsocket", "/tmp/redis", "--save", ""],
        stdout=subprocess.DEVNULL,
    )
    there("/tmp/redis")
    command = ["redis-cli", "-s", "/tmp/redis"]
    client = started(*command)
    ask = asking(client)
    assert ask("set key 1") == "OK"
    assert ask("multi") == "OK"
    assert ask("incr key") == "QUEUED"

    def check() -> None:
        assert ask("exec") == "2"
        assert ask("get key") == "2"

    def once(*words: str) -> None:
        subprocess.run([*command, *words], check=True, stdout=subprocess.DEVNULL)

    return {
        "run it": lambda: (ask("exec"), ask("incr key")),
        "be others": lambda: (once("set", "key", "5"), once("client", "kill", "type", "normal")),
        "end the client": lambda: (client.kill(), client.wait()),
    }, check


CASES = {
    "dbus": dbus,
    "multiprocessing": managed,
    "asyncio": served_by_asyncio,
    "redis": redis,
}

if __name__ == "__main__":
    obey(*CASES[sys.argv[1]]())
