"""Fixtures of the tests that look at the kernel itself."""

import subprocess
import time
from collections.abc import Iterator

import pytest

from entering import Entered, entered
from woodfrog.kernel.abi.x86_64 import SYS


def await_sleep(pid: int) -> None:
    """Wait until a process sleeps: before, not even its vDSO need be there."""
    deadline = time.monotonic() + 10
    while True:
        with open(f"/proc/{pid}/syscall") as file:
            if file.read().split()[0] in (str(SYS.CLOCK_NANOSLEEP), str(SYS.NANOSLEEP)):
                return
        assert time.monotonic() < deadline
        time.sleep(0.001)


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
