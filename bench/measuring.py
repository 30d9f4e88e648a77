"""What all comparisons share: runtimes, bundles, the program that holds memory, reports."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
WOODFROG = os.environ.get("WOODFROG_COMMAND") or str(HERE.parent / "woodfrog")
MiB = 1 << 20

Times = dict[str, list[float]]

_PREFIX = "woodfrog-bench."


@contextmanager
def work_directory(where: str | None) -> Iterator[Path]:
    """Make a directory for images, in which `states` leads to memory, as /run/woodfrog does."""
    with (
        tempfile.TemporaryDirectory(prefix=_PREFIX, dir=where) as work,
        tempfile.TemporaryDirectory(prefix=_PREFIX, dir="/dev/shm") as states,
    ):
        (Path(work) / "states").symlink_to(states)
        yield Path(work)


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
        self._start = [binary, "--root", str(work / "states" / Path(binary).name)]
        if Path(binary).name == "runsc":
            self._start += ["--network=none", "--ignore-cgroups"]

    def __call__(self, *arguments: str, must: bool = True) -> float:
        return timed([*self._start, *arguments], self.output, must=must)

    def begin(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a command that goes on until its container ends."""
        with self.output.open("ab") as out:
            return subprocess.Popen(
                [*self._start, *arguments], stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )

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


def built_holder(work: Path) -> Path:
    """Compile the program that holds memory."""
    holder = work / "holder"
    subprocess.run(["gcc", "-O2", "-static", "-o", str(holder), str(HERE / "holder.c")], check=True)
    return holder


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
