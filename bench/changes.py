"""What a checkpoint or a rollback costs when little has changed."""

import json
import os
import shutil
import statistics
from collections import defaultdict
from pathlib import Path

from measuring import Runtime, Times, built_holder, bundle, report


def measure_chain(
    runtime: Runtime, where: Path, images: Path, times: dict[str, Times], number: int
) -> None:
    """Freeze a holder twice: all of it, then what has changed, by noting it or by comparing."""
    name = f"bench-{os.getpid()}-{number}-chain"
    first, second, third = (images / number for number in ("first", "second", "third"))
    runtime.output.write_text("")
    runtime("run", "--detach", "--bundle", str(where), name)
    try:
        runtime.wait_for("ready")
        for way, flags in (("noted", ["--track-changes"]), ("compared", [])):
            runtime.output.write_text("")
            save = ("checkpoint", "--leave-running", "--sync=none")
            whole = runtime(*save, *flags, f"--image-path={first}", name)
            runtime("kill", name, "USR2")
            runtime.wait_for("changed")
            without = () if flags else ("--track-changes",)
            part = runtime(*save, *without, f"--image-path={second}", f"--parent={first}", name)
            sizes = [(image / "checkpoint.img").stat().st_size for image in (first, second)]
            times["the whole"][way].append(whole)
            times["what changed"][way].append(part)
            times["size ratio"][way].append(sizes[1] / sizes[0])
            if flags:
                # By now the keeper has all of its code.
                runtime.output.write_text("")
                runtime("kill", name, "USR2")
                runtime.wait_for("changed")
                part = runtime(*save, f"--image-path={third}", f"--parent={second}", name)
                times["the whole"]["noted, again"].append(whole)
                times["what changed"]["noted, again"].append(part)
                size = (third / "checkpoint.img").stat().st_size
                times["size ratio"]["noted, again"].append(size / sizes[0])
            shutil.rmtree(images)
    finally:
        runtime.remove(name)
        shutil.rmtree(images, ignore_errors=True)


def measure_rollback(
    runtime: Runtime, where: Path, image: Path, times: dict[str, Times], number: int
) -> None:
    """Set a holder back in which a page in a hundred has changed, noted or not; check it.

    Of those that are noted the second time: by then the keeper has all of its code.
    """
    name = f"bench-{os.getpid()}-{number}-back"
    runtime.output.write_text("")
    runtime("run", "--detach", "--bundle", str(where), name)
    try:
        runtime.wait_for("ready")
        for way, flags in (("compared", []), ("noted", ["--track-changes"])):
            save = ("checkpoint", "--leave-running", "--sync=none", *flags)
            runtime(*save, f"--image-path={image}", name)
            for again in ("", ", again") if flags else ("",):
                runtime.output.write_text("")
                runtime("kill", name, "USR2")
                runtime.wait_for("changed")
                took = runtime("rollback", f"--image-path={image}", "--stats", name)
                told = runtime.output.read_text()
                found = json.loads(told[told.index("{") :])
                times["whole command"][way + again].append(took)
                times["standing still"][way + again].append(found["frozen_us"] / 1e6)
                runtime("kill", name, "USR1")
                runtime.wait_for("intact")
            shutil.rmtree(image)
    finally:
        runtime.remove(name)
        shutil.rmtree(image, ignore_errors=True)


def compare_changes(sizes: list[int], rounds: int, work: Path, woodfrog: Runtime) -> None:
    """What a checkpoint costs when there is one already, and a page in a hundred has changed."""
    holder = built_holder(work)
    for size in sizes:
        where = bundle(work / f"chain-{size}", ["/bin/holder", str(size)], holder)
        times: dict[str, Times] = defaultdict(lambda: defaultdict(list))
        for number in range(rounds):
            measure_chain(woodfrog, where, work / "images", times, number)
        print(f"\ncheckpoint --leave-running of {size} MiB, then --parent with 1 % changed")
        for way in ("noted", "noted, again", "compared"):
            whole, part = (
                statistics.median(times[what][way]) for what in ("the whole", "what changed")
            )
            ratio = statistics.median(times["size ratio"][way])
            print(
                f"  {way:12} {whole * 1000:8.1f} ms, then {part * 1000:8.1f} ms"
                f"   {part / whole:6.1%} of the time, {ratio:6.1%} of the size"
            )


def compare_rollbacks(sizes: list[int], rounds: int, work: Path, woodfrog: Runtime) -> None:
    """What it takes to set back a process in which a page in a hundred has changed."""
    holder = built_holder(work)
    for size in sizes:
        where = bundle(work / f"back-{size}", ["/bin/holder", str(size)], holder)
        times: dict[str, Times] = defaultdict(lambda: defaultdict(list))
        for number in range(rounds):
            measure_rollback(woodfrog, where, work / "image", times, number)
        for what, by_way in times.items():
            report(f"rollback of {size} MiB with 1 % changed, {what}", by_way)
