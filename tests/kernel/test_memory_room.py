"""Limits on memory are raised in a held process for a moment, and put back if we are killed."""

import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from entering import VDSO
from needs import needs
from started import UNSHARE, areas, child_of, line, started
from woodfrog.engine import memory_room
from woodfrog.engine.memory_room import LENT, Room
from woodfrog.engine.tidying import tidy
from woodfrog.remote.hold import held
from woodfrog.resources import limits

PROGRAMS = Path(__file__).parent / "programs"
Build = Callable[..., Path]

pytestmark = needs("root", "command gcc")


@pytest.fixture(params=["0", "4321"], ids=["ours", "another user's"])
def full(request: pytest.FixtureRequest, build: Build) -> Iterator[int]:
    """Start a process that has used up its address space; it goes on in the end."""
    with started(*UNSHARE, build(PROGRAMS / "full.c"), request.param) as unshare:
        assert line(unshare) == "ready"
        init = child_of(unshare.pid)
        before = areas(init)
        yield init
        assert areas(init) == before
        assert unshare.stdin
        unshare.stdin.write(b"\n")
        assert line(unshare) == "went on"


def _raise_and_be_killed(init: int) -> None:
    """Have a tracer die that has just raised the limits of a process."""
    tracer = os.fork()
    if tracer == 0:
        try:
            with held(init) as tree, Room(tree.processes[0], VDSO) as room:
                room.make(LENT)
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(tracer, 0)[1]) == -signal.SIGKILL


def test_a_killed_tracer_leaves_no_limit_raised_for_long(full: int) -> None:
    before = limits.in_force(full)
    _raise_and_be_killed(full)
    soft, hard = limits.in_force(full)[limits.SPACE]
    assert soft == hard

    assert tidy(full) == 1
    assert limits.in_force(full) == before
    assert tidy(full) == 0


@pytest.mark.parametrize("full", ["0"], indirect=True)
def test_what_was_set_since_stays(full: int) -> None:
    _raise_and_be_killed(full)
    resource.prlimit(full, resource.RLIMIT_AS, (1 << 40, resource.RLIM_INFINITY))

    assert tidy(full) == 0
    assert limits.in_force(full)[limits.SPACE] == (1 << 40, limits.NONE)


def test_a_note_of_the_program_s_own_raises_nothing(full: int) -> None:
    before = limits.in_force(full)
    with held(full) as tree:
        (process,) = tree.processes
        now = [before[which] for which in (limits.SPACE, limits.DATA, limits.LOCKED)]
        higher = [(limits.NONE, limits.NONE)] * len(now)
        numbers = [number for limit in (*higher, *now) for number in limit]
        note = memory_room.NOTE.pack(memory_room.MAGIC, full, *numbers)
        os.pwrite(process.memory, note, memory_room.place(process))

    assert tidy(full) == 0
    assert limits.in_force(full) == before
