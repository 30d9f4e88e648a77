"""How soon a container runs whose memory comes later, or is shared with a template."""

# The figures of a process whose memory is another's depend on how cold the machine's free memory
# is: a hypervisor that takes back what lies free brings it again page by page. So each comparison
# begins with memory that has just been touched.

import json
import mmap
import os
import re
import shutil
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from measuring import HERE, Runtime, Times, built_holder, bundle, report

MANY = 100
_WARMED_BYTES = 2 << 30


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
    """Time one clone."""
    name = f"bench-{os.getpid()}-{number}-clone"
    flags = ("--detach", "--template=bench", "--bundle", str(where))
    try:
        times["woodfrog"].append(runtime("restore", *flags, name))
    finally:
        runtime.remove(name)


def measure_engine(runtime: Runtime, where: Path, times: Times, number: int) -> None:
    """Note how long the engine takes for one clone, which it tells itself."""
    name = f"bench-{os.getpid()}-{number}-inside"
    flags = ("--detach", "--template=bench", "--bundle", str(where))
    runtime.output.write_text("")
    try:
        runtime("--debug", "restore", *flags, name)
        told = re.search(r"engine: restored in (\d+) us", runtime.output.read_text())
        assert told
        times["woodfrog"].append(int(told[1]) / 1e6)
    finally:
        runtime.remove(name)


def warm_memory() -> None:
    """Touch much memory and let it go again."""
    with mmap.mmap(-1, _WARMED_BYTES) as memory:
        for at in range(0, _WARMED_BYTES, mmap.PAGESIZE):
            memory[at] = 1


def bundle_of_cpython(directory: Path) -> Path:
    """Make a bundle of this machine's CPython, and of a program that warms it."""
    where = bundle(directory, ["/bench/warmed.py"], HERE / "warmed.py")
    config = json.loads((where / "config.json").read_text())
    config["process"]["args"] = ["/usr/bin/python3", "/bench/warmed.py"]
    for name in ("usr", "bin", "lib", "lib64"):
        source = Path("/", name)
        if source.is_symlink():
            (where / "rootfs" / name).symlink_to(source.readlink())
        elif source.exists():
            (where / "rootfs" / name).mkdir()
            config["mounts"].append(
                {
                    "destination": f"/{name}",
                    "type": "bind",
                    "source": str(source),
                    "options": ["rbind", "ro"],
                }
            )
    (where / "config.json").write_text(json.dumps(config))
    return where


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
    """`restore --template`, by size, and of a real program; the time shouldn't grow."""
    holder = built_holder(work)
    for size in sizes:
        where = bundle(work / f"clone-{size}", ["/bin/holder", str(size)], holder)
        _compare(f"{size} MiB", size, where, rounds, work, woodfrog)
    if Path("/usr/bin/python3").exists():
        where = bundle_of_cpython(work / "clone-cpython")
        _compare("a warmed CPython of 100 MiB", 100, where, rounds, work, woodfrog)


def _compare(what: str, size: int, where: Path, rounds: int, work: Path, woodfrog: Runtime) -> None:
    config = json.loads((where / "config.json").read_text())
    one, inside, many, loading = Times(), Times(), Times(), Times()
    for times in (one, inside, many, loading):
        times["woodfrog"] = []
    with image_of(woodfrog, where, work / "image"):
        del config["linux"]["cgroupsPath"]  # each clone has its own
        (where / "config.json").write_text(json.dumps(config))
        warm_memory()
        loading["woodfrog"].append(woodfrog("warm", f"--image-path={work / 'image'}", "bench"))
        try:
            for number in range(rounds):
                measure_clone(woodfrog, where, one, number)
                measure_engine(woodfrog, where, inside, number)
            own = measure_many(woodfrog, where, many)
        finally:
            woodfrog("warm", "--drop", "bench")
    report(f"warm, {what}", loading, size)
    report(f"restore --template, {what}", one)
    report(f"restore --template, {what}, in the engine", inside)
    report(f"restore --template --count={MANY}, {what}, {own} KiB own memory each", many)
