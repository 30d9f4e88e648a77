"""SIGKILL of the runtime amid `checkpoint --leave-running`: the container does not notice."""

import random
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from real_programs import KILLS, changes, compiled

from containers import Container, Woodfrog, eventually, verdict
from needs import needs

pytestmark = needs("root", "command gcc")


def condition(container: Container) -> dict[int, dict[str, object]]:
    """Return mappings, descriptors, masks and tracer of every process in the container."""
    found = {}
    pids = [container.init]
    for pid in pids:
        proc = Path(f"/proc/{pid}")
        tasks = {}
        for task in sorted((proc / "task").iterdir()):
            pids += [int(word) for word in (task / "children").read_text().split()]
            lines = (task / "status").read_text().splitlines()
            status = dict(line.split(":\t", 1) for line in lines)
            names = "TracerPid SigBlk SigIgn SigCgt Seccomp Seccomp_filters CapEff NoNewPrivs"
            tasks[int(task.name)] = {name: status.get(name) for name in names.split()}
        maps = (proc / "maps").read_text().splitlines()
        found[pid] = {
            "tasks": tasks,
            "mappings": [" ".join(line.split()[:5]) for line in maps if "[heap]" not in line],
            "descriptors": sorted(int(path.name) for path in (proc / "fd").iterdir()),
        }
    return found


def beats(container: Container) -> tuple[int, ...]:
    """Return how far each part of the program has come."""
    return struct.unpack("4q", (container.bundle.work / "beats").read_bytes()[:32])


def is_alive(container: Container) -> None:
    """Assert that every part of the program that works goes on."""
    before = beats(container)

    def all_beat() -> bool:
        now = beats(container)
        moved = [new > old for new, old in zip(now, before, strict=True) if old]
        return container.has_ended() or all(moved)

    eventually(all_beat, f"{before} goes on, but {beats(container)}")
    assert not container.has_ended(), container.told()


@pytest.mark.parametrize("under", ["threads", "profile", "tight", "strict"])
def test_a_program_never_notices_that_the_runtime_was_killed(
    under: str, woodfrog: Woodfrog, chance: random.Random, build: Callable[..., Path]
) -> None:
    container = woodfrog.run(compiled(woodfrog, build, "unnoticing.c", under))
    container.wait_for("ready")
    eventually(lambda: sum(map(bool, beats(container))) >= 2, "it works")
    time.sleep(0.1)
    before = condition(container)
    image = woodfrog.directory / "image"
    begun = time.monotonic()
    container.checkpoint(image, "--leave-running")
    takes = time.monotonic() - begun
    assert changes(before, condition(container)) == []
    shutil.rmtree(image)

    for number in range(KILLS):
        moment = chance.uniform(0, takes * 1.1)
        command = woodfrog.command(
            "checkpoint", f"--image-path={image}", "--leave-running", container.name
        )
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as runtime:
            time.sleep(moment)
            runtime.send_signal(signal.SIGKILL)
        where = f"kill {number} after {moment:.4f} s of {takes:.4f}"
        is_alive(container)
        # The next command on the container takes away what the killed one left.
        assert container.state()["status"] == "running", where
        assert changes(before, condition(container)) == [], where
        shutil.rmtree(image, ignore_errors=True)

    # And it can be frozen as if nothing had happened.
    container.checkpoint(image, "--leave-running")
    assert changes(before, condition(container)) == []
    assert verdict(container) == "ok\n"
