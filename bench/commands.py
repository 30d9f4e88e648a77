"""The commands that engines give all day, and docker run."""

import os
import shutil
import sys
import time
from collections import defaultdict
from pathlib import Path

from measuring import HERE, WOODFROG, Runtime, Times, bundle, report, timed


def measure_run(runtime: Runtime, where: Path, times: Times, number: int) -> None:
    name = f"bench-{os.getpid()}-{number}"
    took = runtime("run", "--bundle", str(where), name)
    times[runtime.name].append(took)


def measure_life(runtime: Runtime, where: Path, times: dict[str, Times], number: int) -> None:
    """Time each command of a container's life; what engines do most."""
    name = f"bench-{os.getpid()}-{number}"
    took = {}
    began = time.perf_counter()
    runtime("create", "--bundle", str(where), name)
    runtime("start", name)
    took["create + start + kill + delete"] = time.perf_counter() - began
    for what, words in (("state", ("state", name)), ("list", ("list",)), ("kill", ("kill", name))):
        took[what] = runtime(*words, *(["0"] if what == "kill" else []))
    began = time.perf_counter()
    runtime("kill", name, "KILL")
    runtime.remove(name)
    took["create + start + kill + delete"] += time.perf_counter() - began
    for what, seconds in took.items():
        times[what][runtime.name].append(seconds)


def compare_commands(rounds: int, work: Path, runners: list[Runtime]) -> None:
    """The commands that engines give all day."""
    output = work / "python.out"
    starting: Times = defaultdict(list)
    python = os.path.realpath(HERE.parent / ".venv" / "bin" / "python")
    for _ in range(rounds * 3):
        starting["woodfrog"].append(timed([WOODFROG, "--version"], output))
        starting["python3 -I -c pass"].append(timed([python, "-I", "-c", "pass"], output))
    report("woodfrog --version", starting)
    busybox = Path(shutil.which("busybox") or "/bin/busybox")
    true = bundle(work / "true", ["/bin/true"], busybox)
    sleep = bundle(work / "sleep", ["/bin/sleep", "1000"], busybox)
    running: Times = defaultdict(list)
    living: dict[str, Times] = defaultdict(lambda: defaultdict(list))
    for number in range(rounds * 3):
        for runtime in runners:
            measure_run(runtime, true, running, number)
            measure_life(runtime, sleep, living, number)
    report("run /bin/true", running)
    for what, times in living.items():
        report(what, times)


def measure_docker(rounds: int, work: Path) -> None:
    """Compare `docker run` under a daemon of our own, with the engine that the tests start."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    try:
        from docker_engine import IMAGE, Docker
    except ImportError as error:
        print(f"(docker left out: {error}; .venv/bin/python has what the tests need)")
        return
    times: Times = defaultdict(list)
    (work / "docker").mkdir()
    docker = Docker(work / "docker")
    try:
        for _ in range(rounds):
            for name in ("woodfrog", "runc"):
                began = time.perf_counter()
                docker("run", "--rm", "--network=none", f"--runtime={name}", IMAGE, "true")
                times[name].append(time.perf_counter() - began)
    finally:
        docker.close()
    report("docker run --rm --network=none … true", times)
