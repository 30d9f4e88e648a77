"""Programs without a container, started from a test: what they say, and what is sent to them."""

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from containers import eventually
from woodfrog.kernel.procfs.maps import read_maps

Process = subprocess.Popen[bytes]

SIGQUEUE = ctypes.CDLL(None).sigqueue

# unshare's child is the first process of a pid namespace, which ends with it.
UNSHARE = ["unshare", "--pid", "--fork", "--kill-child"]


@contextmanager
def started(*command: str | Path) -> Iterator[Process]:
    """Run a program that says something when it is ready, and end it."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, bufsize=0) as process:
        try:
            yield process
        finally:
            if "--fork" not in command:
                process.kill()
            # Of unshare, end the child, so that it takes the news: PID 1 may not reap.
            while process.poll() is None:
                for pid in children_of(process.pid):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                time.sleep(0.001)


def line(process: Process) -> str:
    """Return the next line that a program says."""
    assert process.stdout is not None
    return process.stdout.readline().decode().rstrip()


def children_of(pid: int) -> list[int]:
    """Return the children of a process."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]


def child_of(pid: int) -> int:
    """Return the only child of a process, as soon as it has one."""
    (child,) = eventually(lambda: children_of(pid), f"process {pid} has a child")
    return int(child)


def areas(pid: int) -> set[tuple[int, int, int, bytes]]:
    """Return what the address space of a process looks like."""
    return {
        (start, end, protection, name)
        for start, end, protection, _, _, _, _, name in read_maps(pid)
    }


def numbers_sent(pid: int, count: int) -> int:
    """Fork a process that sends that many numbered signals; returns its id."""
    sender = os.fork()
    if sender == 0:
        for number in range(count):
            send_number(pid, number)
            time.sleep(0.0005)
        os._exit(0)
    return sender


def send_number(pid: int, number: int) -> None:
    """Send a numbered signal."""
    SIGQUEUE(pid, signal.SIGRTMIN, ctypes.c_void_p(number))
