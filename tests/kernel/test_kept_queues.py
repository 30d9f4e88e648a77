"""POSIX message queues are read through a mount that was made before, and stays."""

import os
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from needs import needs
from started import line, started
from woodfrog.resources import posix_queues
from woodfrog.resources.queue_notices import Notices

pytestmark = needs("root", "command nsenter")

SCRIPT = "echo first; read word; exec unshare --ipc sh -c 'echo second; read word'"


class NoNotices(Notices):
    """Nobody waits for a notification."""


def make_queue(init: int, name: str, place: Path) -> None:
    """Make a queue in the ipc namespace of a process."""
    script = f"mount -t mqueue none {place} && touch {place}/{name}"
    enter = ("nsenter", f"--target={init}", "--ipc", "unshare", "--mount")
    subprocess.run([*enter, "sh", "-c", script], check=True, timeout=60)


def names_in(init: int, afterwards: ExitStack) -> list[bytes]:
    """Return the names of the queues where a process is."""
    found = posix_queues.Found()
    namespace = os.open(f"/proc/{init}/ns/ipc", os.O_RDONLY)
    try:
        posix_queues.collect(namespace, found, NoNotices(), afterwards)
    finally:
        os.close(namespace)
    return [one.name for one in found.queues]


def test_queues_are_those_of_now_and_of_where_the_process_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posix_queues, "_kept", {})
    with started("unshare", "--ipc", "sh", "-c", SCRIPT) as program, ExitStack() as afterwards:
        assert line(program) == "first"
        posix_queues.keep_open(program.pid)
        [mount] = posix_queues._kept.values()
        afterwards.callback(os.close, mount)
        assert names_in(program.pid, ExitStack()) == []
        make_queue(program.pid, "one", tmp_path)
        had = len(os.listdir("/proc/self/fd"))
        assert names_in(program.pid, afterwards) == [b"one"]
        assert len(os.listdir("/proc/self/fd")) == had  # nothing is left to be unmounted
        assert program.stdin
        program.stdin.write(b"\n")
        program.stdin.flush()
        assert line(program) == "second"
        make_queue(program.pid, "two", tmp_path)
        assert names_in(program.pid, afterwards) == [b"two"]
        assert len(os.listdir("/proc/self/fd")) == had + 1
