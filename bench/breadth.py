"""Many things of every kind."""

import json
import os
import shutil
import statistics
import subprocess
from collections import defaultdict
from pathlib import Path

from measuring import HERE, Runtime, Times, bundle

# Descriptors, processes, mappings, threads: together, and each by itself.
MIXED = (1000, 100, 10000, 2000)
ALONE = ((5000, 1, 0, 1), (0, 500, 0, 500), (0, 1, 60000, 1), (0, 1, 0, 5000))


def measure_breadth(
    runtime: Runtime, where: Path, image: Path, times: dict[str, Times], number: int
) -> None:
    """Freeze and thaw once what is many things; the parts of the engine, and whole commands."""
    name = f"bench-{os.getpid()}-{number}-broad"
    what = where.name
    runtime.output.write_text("")
    runtime("run", "--detach", "--bundle", str(where), name)
    try:
        runtime.wait_for("ready")
        runtime.output.write_text("")
        took = runtime("checkpoint", f"--image-path={image}", *runtime.flags, "--stats", name)
        told = runtime.output.read_text()
        frozen = json.loads(told[told.index("{") : told.rindex("}") + 1])["frozen_us"] / 1e6
        runtime.remove(name)
        name += "-thawed"
        flags = ("--detach", f"--image-path={image}", "--bundle", str(where))
        thawed = runtime("restore", *flags, name)
        runtime("kill", name, "USR1")
        runtime.wait_for("intact")
    finally:
        runtime.remove(name)
        shutil.rmtree(image, ignore_errors=True)
    for column, seconds in (("frozen", frozen), ("checkpoint", took), ("restore", thawed)):
        times[what][column].append(seconds)


def compare_breadth(rounds: int, work: Path, woodfrog: Runtime) -> None:
    """Many things of every kind: how long they take, and that twice as many take twice as long."""
    holder = work / "breadth"
    flags = ["-O2", "-static", "-pthread"]
    subprocess.run(["gcc", *flags, "-o", str(holder), str(HERE / "breadth.c")], check=True)
    times: dict[str, Times] = defaultdict(lambda: defaultdict(list))
    bundles = []
    for most, parts in ((MIXED, (4, 2, 1)), *((alone, (2, 1)) for alone in ALONE)):
        for part in parts:
            counts = [str(-(-count // part)) for count in most]
            where = work / " ".join(counts)
            bundles.append(bundle(where, ["/bin/breadth", *counts], holder))
    for number in range(rounds):
        for where in bundles:
            measure_breadth(woodfrog, where, work / "image", times, number)
    print("\ndescriptors, processes, mappings, threads: time in the engine, whole commands")
    for what, columns in times.items():
        shown = (
            f"{name} {statistics.median(took) * 1000:8.1f} ms" for name, took in columns.items()
        )
        print(f"  {what:22}  {'   '.join(shown)}")
