#!/usr/bin/env python3
"""woodfrog against its peers on this machine: medians and ratios, in one interleaved run.

    bench/compare.py                         16, 256 and 1024 MiB, 7 rounds
    bench/compare.py --sizes 16 --rounds 3
    bench/compare.py --only commands         alone (or: memory, incremental, rollback …)

Peers are measured when they are installed: runc and crun for the short commands; runsc, and runc
with a working criu, for checkpoint and restore; runc for `docker run`. Needs root and gcc. Every
round runs everything once, so
that a noisy moment strikes all alike. Peers don't sync their images: compare with `sync none`.
"""

import argparse
import json
import mmap
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
WOODFROG = os.environ.get("WOODFROG_COMMAND") or str(HERE.parent / "woodfrog")
UNIFIED = Path("/sys/fs/cgroup/unified")
MiB = 1 << 20

Times = dict[str, list[float]]


def timed(command: list[str], output: Path, *, must: bool = True) -> float:
    """Run a command to its end and return the seconds it took."""
    with output.open("ab") as out:
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, out.fileno(), 1),
            (os.POSIX_SPAWN_DUP2, out.fileno(), 2),
        ]
        began = time.perf_counter()
        pid = os.posix_spawnp(command[0], command, os.environ, file_actions=actions)
        _, status = os.waitpid(pid, 0)
        took = time.perf_counter() - began
    if status and must:
        sys.exit(f"{' '.join(command)}\nfailed:\n{output.read_text(errors='replace')}")
    return took


def bundle(directory: Path, arguments: list[str], binary: Path) -> Path:
    """Make a bundle whose root holds one static binary under the name of the first argument."""
    root = directory / "rootfs"
    target = root / arguments[0].lstrip("/")
    target.parent.mkdir(parents=True)
    shutil.copy2(binary, target)
    for name in ("proc", "dev", "sys", "tmp"):
        (root / name).mkdir()
    config = {
        "ociVersion": "1.0.2",
        "process": {
            "args": arguments,
            "env": ["PATH=/bin"],
            "cwd": "/",
            "user": {"uid": 0, "gid": 0},
            "capabilities": {},
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "bench",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {
                "destination": "/dev",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "mode=755"],
            },
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")],
            "cgroupsPath": f"/woodfrog-bench-{os.getpid()}",
        },
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory


class Runtime:
    """One runtime's command line."""

    def __init__(self, name: str, work: Path, binary: str, *checkpoint_flags: str) -> None:
        self.name = name
        self.output = work / f"{name.replace(' ', '-')}.out"
        self.flags = list(checkpoint_flags)
        self._start = [binary, "--root", str(work / f"{Path(binary).name}.state")]
        if Path(binary).name == "runsc":
            self._start += ["--network=none", "--ignore-cgroups"]

    def __call__(self, *arguments: str, must: bool = True) -> float:
        return timed([*self._start, *arguments], self.output, must=must)

    def works(self, *arguments: str) -> bool:
        """Tell whether a command succeeds."""
        done = subprocess.run(
            [*self._start, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=60,
        )
        if done.returncode:
            print(f"({self.name} left out: {done.stderr.decode(errors='replace').strip()[-200:]})")
        return not done.returncode

    def wait_for(self, word: str) -> None:
        """Wait until the container has written a word."""
        end = time.monotonic() + 120
        while word not in self.output.read_text(errors="replace"):
            if time.monotonic() > end:
                sys.exit(f"{self.name}: no {word!r}: {self.output.read_text(errors='replace')}")
            time.sleep(0.01)

    def remove(self, name: str) -> None:
        """End and delete a container, if it is there."""
        self("delete", "--force", name, must=False)


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


def measure_chain(
    runtime: Runtime, where: Path, images: Path, times: dict[str, Times], number: int
) -> None:
    """Freeze a holder twice: all of it, then what has changed, by noting it or by comparing."""
    name = f"bench-{os.getpid()}-{number}-chain"
    first, second = images / "first", images / "second"
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
            shutil.rmtree(images)
    finally:
        runtime.remove(name)
        shutil.rmtree(images, ignore_errors=True)


def measure_rollback(
    runtime: Runtime, where: Path, image: Path, times: dict[str, Times], number: int
) -> None:
    """Set a holder back in which a page in a hundred has changed, noted or not; check it."""
    name = f"bench-{os.getpid()}-{number}-back"
    runtime.output.write_text("")
    runtime("run", "--detach", "--bundle", str(where), name)
    try:
        runtime.wait_for("ready")
        for way, flags in (("compared", []), ("noted", ["--track-changes"])):
            save = ("checkpoint", "--leave-running", "--sync=none", *flags)
            runtime(*save, f"--image-path={image}", name)
            runtime.output.write_text("")
            runtime("kill", name, "USR2")
            runtime.wait_for("changed")
            took = runtime("rollback", f"--image-path={image}", "--stats", name)
            told = runtime.output.read_text()
            found = json.loads(told[told.index("{") :])
            times["whole command"][way].append(took)
            times["standing still"][way].append(found["frozen_us"] / 1e6)
            runtime("kill", name, "USR1")
            runtime.wait_for("intact")
            shutil.rmtree(image)
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


def report(title: str, times: Times, mebibytes: int = 0) -> None:
    """Print one line for each contestant: median, spread, ratio to woodfrog, rate."""
    print(f"\n{title}")
    reference = statistics.median(times["woodfrog"]) if times.get("woodfrog") else 0.0
    for name, took in times.items():
        middle = statistics.median(took)
        line = (
            f"  {name:28} {middle * 1000:9.1f} ms   ({min(took) * 1000:.1f}–{max(took) * 1000:.1f})"
        )
        if reference:
            line += f"   {middle / reference:6.2f} × woodfrog"
        if mebibytes:
            line += f"   {mebibytes / middle:8.0f} MiB/s"
        print(line)


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


def compare_changes(sizes: list[int], rounds: int, work: Path, woodfrog: Runtime) -> None:
    """What a checkpoint costs when there is one already, and a page in a hundred has changed."""
    holder = built_holder(work)
    for size in sizes:
        where = bundle(work / f"chain-{size}", ["/bin/holder", str(size)], holder)
        times: dict[str, Times] = defaultdict(lambda: defaultdict(list))
        for number in range(rounds):
            measure_chain(woodfrog, where, work / "images", times, number)
        print(f"\ncheckpoint --leave-running of {size} MiB, then --parent with 1 % changed")
        for way in ("noted", "compared"):
            whole, part = (
                statistics.median(times[what][way]) for what in ("the whole", "what changed")
            )
            ratio = statistics.median(times["size ratio"][way])
            print(
                f"  {way:10} {whole * 1000:8.1f} ms, then {part * 1000:8.1f} ms"
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
    most = (1000, 100, 10000, 2000)
    times: dict[str, Times] = defaultdict(lambda: defaultdict(list))
    bundles = []
    for part in (4, 2, 1):
        counts = [str(count // part) for count in most]
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


def built_holder(work: Path) -> Path:
    """Compile the program that holds memory."""
    holder = work / "holder"
    subprocess.run(["gcc", "-O2", "-static", "-o", str(holder), str(HERE / "holder.c")], check=True)
    return holder


def compare(sizes: list[int], rounds: int, work: Path, only: str) -> None:
    print(f"{os.uname().sysname} {os.uname().release}, {os.cpu_count()} CPUs, {rounds} rounds")
    woodfrog = Runtime("woodfrog", work, WOODFROG, "--sync=none")
    runners = [woodfrog]
    true = bundle(work / "try", ["/bin/true"], Path(shutil.which("busybox") or "/bin/busybox"))
    for name in ("runc", "crun"):
        if shutil.which(name):
            peer = Runtime(name, work, name)
            if peer.works("run", "--bundle", str(true), f"bench-{os.getpid()}-try"):
                runners.append(peer)
    if only in ("", "commands"):
        compare_commands(rounds, work, runners)
    if only in ("", "memory"):
        compare_memory(sizes, rounds, work, woodfrog)
    if only in ("", "incremental"):
        compare_changes(sizes, rounds, work, woodfrog)
    if only in ("", "rollback"):
        compare_rollbacks(sizes, rounds, work, woodfrog)
    if only in ("", "breadth"):
        compare_breadth(rounds, work, woodfrog)
    if only in ("", "docker") and shutil.which("dockerd"):
        measure_docker(rounds, work)


def without_unified_tree() -> None:
    """Go on in a mount namespace without the hybrid's v2 tree, which crun refuses."""
    if UNIFIED.is_mount() and shutil.which("crun") and "WOODFROG_BENCH" not in os.environ:
        os.environ["WOODFROG_BENCH"] = "1"
        script = f'umount {UNIFIED}; exec "$@"'
        start = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
        os.execvp(start[0], [*start, sys.executable, *sys.argv])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="16,256,1024", help="MiB, by commas")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--only",
        default="",
        choices=("commands", "memory", "incremental", "rollback", "breadth", "docker"),
    )
    parser.add_argument("--work", help="directory for images (default: a new one in TMPDIR)")
    options = parser.parse_args()
    if os.geteuid() or not shutil.which("gcc"):
        sys.exit("bench/compare.py needs root and gcc")
    without_unified_tree()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="woodfrog-bench.", dir=options.work) as work:
        compare(
            [int(size) for size in options.sizes.split(",")],
            options.rounds,
            Path(work),
            options.only,
        )


if __name__ == "__main__":
    main()
