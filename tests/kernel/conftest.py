"""Fixtures of the tests that look at the kernel itself."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from containers import eventually
from entering import Entered, entered
from woodfrog.kernel.abi.x86_64 import SYS


def await_sleep(pid: int) -> None:
    """Wait until a process sleeps: before, not even its vDSO need be there."""
    path, calls = Path(f"/proc/{pid}/syscall"), (SYS.CLOCK_NANOSLEEP, SYS.NANOSLEEP)
    eventually(lambda: path.read_text().split()[0] in map(str, calls), "it sleeps")


@pytest.fixture
def sleeper() -> Iterator[int]:
    """A process that does nothing for as long as the test runs."""
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            await_sleep(process.pid)
            yield process.pid
        finally:
            process.kill()


@pytest.fixture
def guest(sleeper: int) -> Iterator[Entered]:
    """The sleeper, held, and entered: it runs programs."""
    with entered(sleeper) as inside:
        yield inside
