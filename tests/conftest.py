"""Fixtures that every kind of test shares."""

import contextlib
import ctypes
import hashlib
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from containers import Woodfrog
from needs import require
from sharing import run_shared

PR_SET_CHILD_SUBREAPER = 36
SEED = int(os.environ.get("WOODFROG_SEED", "1"))


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker that `needs` is."""
    config.addinivalue_line("markers", "needs(what, …): skip, or fail in CI, without these")
    config.addinivalue_line("markers", "alone: no other test may run at the same time")


def pytest_report_header() -> str:
    """Show the seed, so that a failure can be had again."""
    return f"woodfrog: WOODFROG_SEED={SEED}"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose needs aren't met."""
    for mark in item.iter_markers("needs"):
        for need in mark.args:
            require(need)


def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Share the tests with other runs, if there are any."""
    return run_shared(session)


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Randomness that is the same in each run of this test."""
    return random.Random(f"{SEED} {request.node.nodeid}")


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Compile a C program statically, once per set of flags.

    WOODFROG_BUILT is where, for runs that share the programs.
    """
    place = os.environ.get("WOODFROG_BUILT")
    directory = Path(place) if place else tmp_path_factory.mktemp("built")

    def compile_program(source: Path, *flags: str) -> Path:
        key = hashlib.sha256(f"{source} {flags}".encode()).hexdigest()[:16]
        target = directory / key / source.stem
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            # Another run may be at it, too, and what it has made may be running.
            ours = directory / f"{key}.{os.getpid()}"
            command = ["gcc", "-O1", "-g0", "-Wall", "-Wextra", "-Werror", "-static", "-pthread"]
            command += [*flags, "-o", str(ours), str(source), "-lm"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            with contextlib.suppress(FileExistsError):
                target.hardlink_to(ours)
            ours.unlink()
        return target

    return compile_program


@pytest.fixture(scope="session")
def subreaper() -> None:
    """Make this process the parent of containers whose runtime has gone: PID 1 may not reap."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@pytest.fixture
def woodfrog(tmp_path: Path, subreaper: None) -> Iterator[Woodfrog]:
    """The command with a --root of its own; at the end nothing may be left of its containers."""
    runner = Woodfrog(tmp_path)
    try:
        yield runner
    finally:
        leftovers = runner.close()
    assert leftovers == []
