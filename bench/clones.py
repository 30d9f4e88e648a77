"""How soon a container runs whose memory comes later, or is shared with a template."""

import json
import os
import shutil
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from measuring import Runtime, Times, built_holder, bundle, report

MANY = 100


@contextmanager
def image_of(runtime: Runtime, where: Path, image: Path) -> Iterator[None]:
    """Freeze a holder into an image that is there meanwhile."""
    name = f"bench-{os.getpid()}-first"
    runtime.output.write_text("")
    runtime("run", "--detach", "--bundle", str(where), name)
    try:
        runtime.wait_for("ready")
        runtime("checkpoint", f"--image-path={image}", *runtime.flags, name)
        runtime.remove(name)
        yield
    finally:
        runtime.remove(name)
        shutil.rmtree(image, ignore_errors=True)


def measure_background(
    runtime: Runtime, where: Path, image: Path, times: dict[str, Times], number: int
) -> None:
    """Time how long a restore takes until the container runs, and then until all is there."""
    name = f"bench-{os.getpid()}-{number}-later"
    flags = ("--detach", "--background", f"--image-path={image}", "--bundle", str(where))
    try:
        took = runtime("restore", *flags, name)
        began = time.perf_counter()
        runtime("wait", "--restore", name)
        times["until it runs"]["woodfrog"].append(took)
        times["until all is there"]["woodfrog"].append(took + time.perf_counter() - began)
    finally:
        runtime.remove(name)


def compare_background(sizes: list[int], rounds: int, work: Path, woodfrog: Runtime) -> None:
    """`restore --background`, by size; the first column shouldn't grow."""
    holder = built_holder(work)
    for size in sizes:
        where = bundle(work / f"later-{size}", ["/bin/holder", str(size)], holder)
        times: dict[str, Times] = defaultdict(lambda: defaultdict(list))
        with image_of(woodfrog, where, work / "image"):
            for number in range(rounds):
                measure_background(woodfrog, where, work / "image", times, number)
        for what, took in times.items():
            report(f"restore --background of {size} MiB, {what}", took, size)


def measure_clone(runtime: Runtime, where: Path, times: Times, number: int) -> None:
    """Time one clone, and note what memory it has for itself."""
    name = f"bench-{os.getpid()}-{number}-clone"
    flags = ("--detach", "--template=bench", "--bundle", str(where))
    try:
        times["woodfrog"].append(runtime("restore", *flags, name))
    finally:
        runtime.remove(name)


def measure_many(runtime: Runtime, where: Path, times: Times) -> int:
    """Time many clones at once; returns the median of their own anonymous memory, in KiB."""
    name = f"bench-{os.getpid()}-many"
    names = [f"{name}-{number}" for number in range(1, MANY + 1)]
    own = []
    try:
        flags = ("--template=bench", f"--count={MANY}", "--bundle", str(where))
        times["woodfrog"].append(runtime("restore", *flags, name))
        for one in names:
            runtime.output.write_text("")
            runtime("state", one)
            own.append(_own_memory(json.loads(runtime.output.read_text())["pid"]))
    finally:
        for one in names:
            runtime.remove(one)
    return int(statistics.median(own))


def _own_memory(pid: int) -> int:
    found, anonymous = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            anonymous = words[4] == "0"
        elif words[0] == "Private_Dirty:" and anonymous:
            found += int(words[1])
    return found


def compare_clones(sizes: list[int], rounds: int, work: Path, woodfrog: Runtime) -> None:
    """`restore --template`, by size; the time shouldn't grow."""
    holder = built_holder(work)
    for size in sizes:
        where = bundle(work / f"clone-{size}", ["/bin/holder", str(size)], holder)
        config = json.loads((where / "config.json").read_text())
        one, many, loading = Times(), Times(), Times()
        one["woodfrog"], many["woodfrog"], loading["woodfrog"] = [], [], []
        with image_of(woodfrog, where, work / "image"):
            del config["linux"]["cgroupsPath"]  # each clone has its own
            (where / "config.json").write_text(json.dumps(config))
            loading["woodfrog"].append(woodfrog("warm", f"--image-path={work / 'image'}", "bench"))
            try:
                for number in range(rounds):
                    measure_clone(woodfrog, where, one, number)
                own = measure_many(woodfrog, where, many)
            finally:
                woodfrog("warm", "--drop", "bench")
        report(f"warm, {size} MiB", loading, size)
        report(f"restore --template, {size} MiB", one)
        report(f"restore --template --count={MANY}, {size} MiB, {own} KiB own memory each", many)
