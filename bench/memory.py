"""Freezing, thawing, and the pause for a snapshot, by the memory of one process."""

import json
import mmap
import os
import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from measuring import WOODFROG, MiB, Runtime, Times, built_holder, bundle, report


def measure_pause(runtime: Runtime, where: Path, image: Path, times: Times, number: int) -> None:
    """Note how long a holder stands still for a checkpoint that leaves it running."""
    name = f"bench-{os.getpid()}-{number}-left"
    runtime.output.write_text("")
    runtime("run", "--detach", "--bundle", str(where), name)
    try:
        runtime.wait_for("ready")
        runtime.output.write_text("")
        runtime("checkpoint", f"--image-path={image}", "--leave-running", "--stats", name)
        told = runtime.output.read_text()
        found = json.loads(told[told.index("{") :])
        times[runtime.name].append(found["frozen_us"] / 1e6)
    finally:
        runtime.remove(name)
        shutil.rmtree(image, ignore_errors=True)


def measure_cycle(
    runtime: Runtime, where: Path, image: Path, frozen: Times, thawed: Times, number: int
) -> None:
    """Freeze and thaw a holder once, into the page cache; check that it holds the same bytes."""
    name = f"bench-{os.getpid()}-{number}"
    runtime.output.write_text("")
    runtime("run", "--detach", "--bundle", str(where), name)
    try:
        runtime.wait_for("ready")
        image.mkdir()
        frozen[runtime.name].append(
            runtime("checkpoint", f"--image-path={image}", *runtime.flags, name)
        )
        runtime.remove(name)
        name += "-thawed"
        thawed[runtime.name].append(
            runtime("restore", "--detach", f"--image-path={image}", "--bundle", str(where), name)
        )
        runtime("kill", name, "USR1")
        runtime.wait_for("intact")
    finally:
        runtime.remove(name)
        shutil.rmtree(image, ignore_errors=True)


def plain_pwrite(memory: mmap.mmap, path: Path) -> float:
    """Return the seconds that writing memory to a new file takes, MiB by MiB."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    with memoryview(memory) as view:
        began = time.perf_counter()
        for at in range(0, len(view), MiB):
            os.pwrite(fd, view[at : at + MiB], at)
        took = time.perf_counter() - began
    os.close(fd)
    return took


def plain_preadv(path: Path, length: int) -> float:
    """Return the seconds that reading a cached file into fresh anonymous memory takes."""
    fd = os.open(path, os.O_RDONLY)
    with mmap.mmap(-1, length) as memory, memoryview(memory) as view:
        began = time.perf_counter()
        for at in range(0, length, MiB):
            os.preadv(fd, [view[at : at + MiB]], at)
        took = time.perf_counter() - began
    os.close(fd)
    return took


def fresh_random(length: int) -> mmap.mmap:
    memory = mmap.mmap(-1, length)
    for at in range(0, length, MiB):
        memory[at : at + MiB] = os.urandom(MiB)
    return memory


def checkpointing_peers(work: Path, where: Path) -> Iterator[Runtime]:
    """Give those peers that manage one cycle here."""
    for name, needed in (("runsc", "runsc"), ("runc", "criu")):
        if not (shutil.which(name) and shutil.which(needed)):
            continue
        peer = Runtime(name if name == needed else "runc with criu", work, name)
        container = f"bench-{os.getpid()}-try"
        image = work / "try"
        peer.output.write_text("")
        try:
            if not peer.works(
                "run",
                "--detach",
                "--bundle",
                str(where),
                container,
            ):
                continue
            if peer.works("checkpoint", f"--image-path={image}", container):
                yield peer
        except subprocess.TimeoutExpired:
            print(f"({peer.name} left out: it hangs)")
        finally:
            peer.remove(container)
            shutil.rmtree(image, ignore_errors=True)


def compare_memory(sizes: list[int], rounds: int, work: Path, woodfrog: Runtime) -> None:
    """Freezing, thawing, and the pause for a snapshot, by the memory of one process."""
    holder = built_holder(work)
    syncing = Runtime("woodfrog, synced", work, WOODFROG, "--sync=full")
    peers: list[Runtime] | None = None
    for size in sizes:
        where = bundle(work / f"hold-{size}", ["/bin/holder", str(size)], holder)
        if peers is None:
            peers = list(checkpointing_peers(work, where))
        frozen: Times = defaultdict(list)
        thawed: Times = defaultdict(list)
        pauses: Times = defaultdict(list)
        for number in range(rounds):
            measure_pause(woodfrog, where, work / "image", pauses, number)
            for runtime in (woodfrog, syncing, *peers):
                measure_cycle(runtime, where, work / "image", frozen, thawed, number)
            memory = fresh_random(size * MiB)
            frozen["plain pwrite"].append(plain_pwrite(memory, work / "plain"))
            memory.close()
            thawed["plain preadv"].append(plain_preadv(work / "plain", size * MiB))
            (work / "plain").unlink()
        report(f"checkpoint of {size} MiB, whole command", frozen, size)
        report(f"restore of {size} MiB, whole command", thawed, size)
        report(f"pause of {size} MiB for checkpoint --leave-running", pauses)
