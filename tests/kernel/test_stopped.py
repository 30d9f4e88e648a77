"""Processes that are stopped when a tracer dies: what waits for SIGCONT waits on, then comes."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from containers import eventually
from entering import VDSO, vdso_start
from needs import needs
from started import UNSHARE, Process, areas, child_of, line, started
from woodfrog.engine.tidying import tidy
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.procfs.status import read_stat, read_status
from woodfrog.remote.hold import held
from woodfrog.remote.scratch import Scratch

PROGRAMS = Path(__file__).parent / "programs"
Build = Callable[..., Path]
KILLS = int(os.environ.get("WOODFROG_KILLS", "10")) // 3

pytestmark = needs("root")


@contextmanager
def stopped(build: Build, waiting: int) -> Iterator[tuple[Process, int, int]]:
    """Have a child that is stopped, and a signal wait for it; yields (unshare, init, child)."""
    with started(*UNSHARE, build(PROGRAMS / "stopped_waiting.c")) as unshare:
        assert line(unshare) == "ready"
        init = child_of(unshare.pid)
        child = child_of(init)
        eventually(lambda: read_stat(f"/proc/{child}").state == "S", "it waits")
        os.kill(child, signal.SIGSTOP)
        eventually(lambda: is_stopped(child), "it stops")
        os.kill(child, waiting)
        yield unshare, init, child


def is_stopped(pid: int) -> bool:
    return read_stat(f"/proc/{pid}").state == "T"


def condition(pid: int) -> tuple[object, ...]:
    status = read_status(f"/proc/{pid}")
    call = Path(f"/proc/{pid}/syscall").read_text()
    return *(status[name] for name in ("SigBlk", "SigPnd", "ShdPnd")), areas(pid), call.split()[0]


def comes_to_be(pid: int, wanted: tuple[object, ...]) -> None:
    """Wait until the process is like that, or for the part of it that is given."""
    eventually(lambda: condition(pid)[: len(wanted)] == wanted, f"it is {wanted}", 2)


def _use_until_killed(init: int, child: int, pauses: float) -> int:
    """Fork a tracer that never stops running programs in a process; returns its id."""
    tracer = os.fork()
    if tracer:
        return tracer
    try:
        with held(init) as tree:
            [process] = [one for one in tree.processes if one.pid == child]
            while True:
                vdso = vdso_start(process.pid)
                leader = process.leader.tracee
                with Scratch(leader, process.memory, vdso, VDSO, 65536) as scratch:
                    for _ in range(5):
                        program = scratch.program()
                        for _ in range(30):
                            program.call(SYS.GETPID)
                        lender = scratch.by(leader)
                        lender.start(program)
                        time.sleep(pauses)
                        lender.finish(program)
    finally:
        os._exit(1)


def _killed(init: int, child: int, chance: random.Random) -> None:
    tracer = _use_until_killed(init, child, chance.choice([0, 0.01]))
    time.sleep(chance.uniform(0.1, 0.2))
    os.kill(tracer, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(tracer, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("waiting", "end"), [(signal.SIGTERM, 15), (signal.SIGUSR1, 7 << 8), (signal.SIGHUP, 0)]
)
def test_the_next_command_sets_a_stopped_process_right(
    waiting: int, end: int, build: Build, chance: random.Random
) -> None:
    with stopped(build, waiting) as (unshare, init, child):
        before = condition(child)
        for _ in range(KILLS):
            _killed(init, child, chance)
            tidy(init)
            eventually(lambda: is_stopped(child), "it is stopped again", 2)
            assert condition(child) == before
        os.kill(child, signal.SIGCONT)
        if not end:
            eventually(lambda: read_stat(f"/proc/{child}").state == "S", "it waits on")
            os.kill(child, signal.SIGUSR1)
            end = 7 << 8
        assert line(unshare) == f"{end:#x}"


def test_a_stopped_process_that_goes_on_gets_what_has_waited(
    build: Build, chance: random.Random
) -> None:
    for _ in range(KILLS):
        with stopped(build, signal.SIGTERM) as (unshare, init, child):
            _killed(init, child, chance)
            os.kill(child, signal.SIGCONT)
            assert line(unshare) == "0xf"


def test_a_stopped_process_that_goes_on_has_its_own_mask(
    build: Build, chance: random.Random
) -> None:
    for _ in range(KILLS):
        with stopped(build, signal.SIGHUP) as (unshare, init, child):
            before = condition(child)
            _killed(init, child, chance)
            os.kill(child, signal.SIGCONT)
            comes_to_be(child, before[:3])
            tidy(init)
            comes_to_be(child, before)
            os.kill(child, signal.SIGUSR1)
            assert line(unshare) == "0x700"
