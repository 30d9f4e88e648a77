"""Fixtures of the tests that look at the kernel itself."""

import subprocess
from collections.abc import Iterator

import pytest

from entering import Entered, entered


@pytest.fixture
def sleeper() -> Iterator[int]:
    """A process that does nothing for as long as the test runs."""
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            yield process.pid
        finally:
            process.kill()


@pytest.fixture
def guest(sleeper: int) -> Iterator[Entered]:
    """The sleeper, held, and entered: it runs programs."""
    with entered(sleeper) as inside:
        yield inside
