"""The pause that redis's own snapshot makes (BGSAVE), and that of a checkpoint beside it."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path

from measuring import MiB, Runtime, Times, report

SETTINGS = {
    "port": "0",
    "unixsocket": "/data/redis.sock",
    "dir": "/data",
    "save": "",
    "appendonly": "no",
    "enable-debug-command": "yes",
}
VALUE = 1024  # bytes


class Client:
    """One connection; of redis's protocol as much as its inline commands need."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        self._socket.connect(str(path))
        self._answers = self._socket.makefile("rb")

    def ask(self, command: str) -> str:
        """Return the answer to a command, of a line or of many."""
        self._socket.sendall(command.encode() + b"\r\n")
        line = self._answers.readline()
        if line.startswith(b"$"):
            return self._answers.read(int(line[1:]) + 2).decode()
        if not line.startswith((b"+", b":")):
            sys.exit(f"redis: {command}: {line.decode()}")
        return line[1:].decode().strip()

    def close(self) -> None:
        self._answers.close()
        self._socket.close()


class Waiting:
    """A client that asks without a pause, in a thread, and knows how long it has waited."""

    def __init__(self, path: Path) -> None:
        self.longest = 0.0
        self._client = Client(path)
        self._leave = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        while not self._leave.is_set():
            began = time.perf_counter()
            self._client.ask("PING")
            self.longest = max(self.longest, time.perf_counter() - began)

    def __enter__(self) -> "Waiting":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leave.set()
        self._thread.join()
        self._client.close()


def begun(runtime: Runtime, name: str, data: Path, size: int) -> subprocess.Popen[bytes]:
    """Run a redis-server that holds so many MiB of values in a sandbox."""
    settings = [word for key, value in SETTINGS.items() for word in (f"--{key}", value)]
    command = ["do", "--id", name, "--volume", f"{data}:/data", "--", "redis-server", *settings]
    server = runtime.begin(*command)
    while not (data / "redis.sock").is_socket():
        if server.poll() is not None:
            sys.exit(f"redis-server ended: {runtime.output.read_text(errors='replace')}")
        time.sleep(0.01)
    client = Client(data / "redis.sock")
    client.ask(f"DEBUG POPULATE {size * MiB // VALUE} key {VALUE}")
    client.close()
    return server


def measure_bgsave(data: Path, standing: Times, waited: Times) -> None:
    """Let redis write its own snapshot; it tells how long its fork(2) took."""
    client = Client(data / "redis.sock")
    with Waiting(data / "redis.sock") as waiting:
        client.ask("BGSAVE")
        while "rdb_bgsave_in_progress:1" in client.ask("INFO persistence"):
            time.sleep(0.01)
    told = dict(line.split(":", 1) for line in client.ask("INFO stats").split() if ":" in line)
    client.close()
    standing["redis's BGSAVE"].append(int(told["latest_fork_usec"]) / 1e6)
    waited["redis's BGSAVE"].append(waiting.longest)


def measure_checkpoint(
    runtime: Runtime, name: str, data: Path, image: Path, standing: Times, waited: Times
) -> None:
    runtime.output.write_text("")
    save = ["--leave-running", "--ext-unix-close", "--sync=none", "--stats"]
    with Waiting(data / "redis.sock") as waiting:
        runtime("checkpoint", f"--image-path={image}", *save, name)
    told = runtime.output.read_text()
    found = json.JSONDecoder().raw_decode(told[told.index("{") :])[0]
    standing[runtime.name].append(found["frozen_us"] / 1e6)
    waited[runtime.name].append(waiting.longest)
    shutil.rmtree(image)


def compare_redis(sizes: list[int], rounds: int, work: Path, woodfrog: Runtime) -> None:
    """How long a redis-server stands still for its own snapshot, and for a checkpoint."""
    if not shutil.which("redis-server"):
        print("(redis left out: it is not installed)")
        return
    for size in sizes:
        standing: Times = defaultdict(list)
        waited: Times = defaultdict(list)
        for number in range(rounds):
            name = f"bench-{os.getpid()}-{number}-redis"
            data = work / f"redis-{size}-{number}"
            data.mkdir()
            server = begun(woodfrog, name, data, size)
            try:
                measure_checkpoint(woodfrog, name, data, work / "image", standing, waited)
                measure_bgsave(data, standing, waited)
            finally:
                woodfrog.remove(name)
                server.wait()
        report(f"redis-server with {size} MiB stands still for a snapshot", standing)
        report("and the longest that a client waits meanwhile", waited)
