#!/usr/bin/env python3
"""Draw pause, restore and clone time against memory.

    bench/plot.py docs/speed.svg               16 MiB to 4 GiB, 5 rounds; needs matplotlib

Medians of whole commands (the pause: as the command tells it), from one interleaved run.
"""

import argparse
import json
import os
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from clones import image_of, measure_background, measure_clone
from measuring import WOODFROG, MiB, Runtime, Times, built_holder, bundle, work_directory
from memory import fresh_random, measure_cycle, measure_pause, plain_preadv, plain_pwrite

SIZES = [16, 64, 256, 1024, 4096]
LINES = (
    "plain preadv of as much",
    "restore",
    "restore --background, until it runs",
    "restore --template",
    "pause for checkpoint --leave-running",
)


def measure(rounds: int, work: Path) -> dict[str, list[float]]:
    """Return the medians of each line, in seconds, by size."""
    woodfrog = Runtime("woodfrog", work, WOODFROG, "--sync=none")
    holder = built_holder(work)
    found: dict[str, list[float]] = defaultdict(list)
    for size in SIZES:
        where = bundle(work / f"hold-{size}", ["/bin/holder", str(size)], holder)
        pauses: Times = defaultdict(list)
        frozen: Times = defaultdict(list)
        thawed: Times = defaultdict(list)
        cloned: Times = defaultdict(list)
        later: dict[str, Times] = defaultdict(lambda: defaultdict(list))
        memory = fresh_random(size * MiB)
        plain_pwrite(memory, work / "plain")
        memory.close()
        with image_of(woodfrog, where, work / "image"):
            woodfrog("warm", f"--image-path={work / 'image'}", "bench")
            try:
                for number in range(rounds):
                    measure_pause(woodfrog, where, work / "other", pauses, number)
                    measure_cycle(woodfrog, where, work / "other", frozen, thawed, number)
                    measure_background(woodfrog, where, work / "image", later, number)
                    measure_clone(woodfrog, where, cloned, number)
                    thawed["plain"].append(plain_preadv(work / "plain", size * MiB))
            finally:
                woodfrog("warm", "--drop", "bench")
        (work / "plain").unlink()
        took = (
            thawed["plain"],
            thawed["woodfrog"],
            later["until it runs"]["woodfrog"],
            cloned["woodfrog"],
            pauses["woodfrog"],
        )
        for line, seconds in zip(LINES, took, strict=True):
            found[line].append(statistics.median(seconds))
        print(size, {line: round(values[-1] * 1000, 1) for line, values in found.items()})
    return found


def draw(found: dict[str, list[float]], target: Path) -> None:
    """Write the plot."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "woodfrog"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    for line, seconds in found.items():
        style = "--" if line.startswith("plain") else "-"
        axes.plot(SIZES, [1000 * one for one in seconds], style, marker="o", label=line)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(
        SIZES, [f"{size} MiB" if size < 1024 else f"{size >> 10} GiB" for size in SIZES]
    )
    axes.set_xlabel("memory of one process")
    axes.set_ylabel("milliseconds")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", type=Path, help="the file to write, .svg")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, help="medians of an earlier run, or where they go")
    options = parser.parse_args()
    if os.geteuid():
        sys.exit("bench/plot.py needs root and gcc")
    if options.data and options.data.exists():
        found = json.loads(options.data.read_text())
    else:
        with work_directory(None) as work:
            found = measure(options.rounds, work)
        if options.data:
            options.data.write_text(json.dumps(found))
    draw(found, options.target)


if __name__ == "__main__":
    main()
