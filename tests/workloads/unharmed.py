"""What a container must have in common with itself before a woodfrog was killed at work on it."""

import contextlib
import os
import struct
import time
from pathlib import Path

from real_programs import changes

from containers import CGROUPS, Container, Woodfrog, eventually

_OF_TASKS = (
    *("Name", "TracerPid", "Uid", "Gid", "Groups", "SigBlk", "SigIgn", "SigCgt", "CapInh"),
    *("CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters"),
    *("Cpus_allowed", "Mems_allowed"),
)
_OF_STOPPED = ("SigPnd", "ShdPnd")
_OF_PROCESSES = ("limits", "oom_score_adj", "cgroup", "mountinfo", "personality", "setgroups")


def processes(init: int) -> list[int]:
    """Return who is in the container, without those who are about to end."""
    pids = [init]
    for pid in pids:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                pids += [int(word) for word in (task / "children").read_text().split()]
    return pids


def lasting(container: Container) -> list[int]:
    """Return who is in the container and stays there, as far as that can be seen."""
    seen = set(processes(container.init))
    for _ in range(5):
        time.sleep(0.02)
        seen &= set(processes(container.init))
    return sorted(seen)


def condition(pids: list[int]) -> dict[int, object]:
    """Return what nobody may find changed of processes: all that doesn't change by itself."""
    found: dict[int, object] = {}
    for pid in pids:
        proc = Path(f"/proc/{pid}")
        tasks = {int(task.name): _task(task) for task in sorted((proc / "task").iterdir())}
        maps = [line.split() for line in (proc / "maps").read_text().splitlines()]
        files = {name: (proc / name).read_text().splitlines() for name in _OF_PROCESSES}
        found[pid] = files | {
            "tasks": tasks,
            "mappings": [" ".join(line) for line in maps if line[-1] != "[stack]"],
            "flags": _flags(proc),
            "descriptors": {fd.name: os.readlink(fd) for fd in (proc / "fd").iterdir()},
        }
    return found


def _task(task: Path) -> dict[str, object]:
    lines = (task / "status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    names = [name for name in _OF_TASKS if name in status]
    is_stopped = status["State"].split()[0] in "Tt"
    if is_stopped:
        names += _OF_STOPPED
    slack = Path(f"/proc/{task.name}/timerslack_ns").read_text()
    return {name: status[name] for name in names} | {"stopped": is_stopped, "slack": slack}


def _flags(proc: Path) -> list[str]:
    """Return flags of mappings, but for whether a keeper has what is written to noted."""
    lines = (proc / "smaps").read_text().splitlines()
    return [line.replace(" uw", "") for line in lines if line.startswith("VmFlags:")]


def beats(container: Container) -> list[int]:
    """Return how far each part of the program has come."""
    return list(struct.unpack("8q", (container.bundle.work / "beats").read_bytes()[:64]))


def goes_on(container: Container) -> None:
    """Assert that every part of the program that works goes on."""
    before = beats(container)

    def all_beat() -> bool:
        moved = [new > old for new, old in zip(beats(container), before, strict=True) if old]
        return container.has_ended() or all(moved)

    eventually(all_beat, f"{before} goes on, but {beats(container)}: {container.told()}")
    assert not container.has_ended(), container.told()
    assert not (container.bundle.work / "out").exists(), container.told()


def is_as_before(before: dict[int, object], where: str) -> None:
    """Assert that processes are, or soon will be, as they were: stops take a moment."""
    found: list[str] = []

    def same() -> bool:
        nonlocal found
        try:
            found = changes(before, condition(list(before)))
        except OSError as error:
            found = [str(error)]
        return not found

    with contextlib.suppress(BaseException):
        eventually(same, "", 2)
    assert not found, (where, found)


def ours(woodfrog: Woodfrog) -> list[str]:
    """Return which processes of woodfrog's work for these containers, but for keepers."""
    found = []
    for proc in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (proc / "cmdline").read_bytes()
            if str(woodfrog.root).encode() not in words or _is_zombie(proc):
                continue
            parent = (proc / "stat").read_text().rpartition(")")[2].split()[1]
            names = [_name(proc), _name(Path("/proc", parent))]
            if "woodfrog-keeper" not in names:
                found.append(f"{proc.name} {names[0]}")
    return sorted(found)


def _name(proc: Path) -> str:
    return (proc / "comm").read_text().strip()


def _is_zombie(proc: Path) -> bool:
    return (proc / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"


def _is_passing(path: Path) -> bool:
    return path.suffix == ".new" or path.name.startswith(("keeper", "tracking"))


def around(woodfrog: Woodfrog) -> dict[str, object]:
    """Return what is there for containers outside them: files, mounts and cgroups.

    But for what a state directory has of a keeper, and what its next use replaces.
    """
    names = dict.fromkeys(woodfrog.names)
    groups = [
        group for name in names for group in (*CGROUPS.glob(name), *CGROUPS.glob(f"*/{name}"))
    ]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    state = woodfrog.root
    return {
        "files": sorted(
            str(path.relative_to(state)) for path in state.rglob("*") if not _is_passing(path)
        ),
        "cgroups": sorted(
            str(path) for group in groups for path in (group, *group.rglob("*/")) if path.is_dir()
        ),
        "mounts": sorted(line.split()[4] for line in mounts if str(woodfrog.directory) in line),
    }
