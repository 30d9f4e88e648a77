"""Freezing and thawing again and again leaves nothing behind, in the container or around it."""

import os
from pathlib import Path

import pytest
from real_programs import CYCLES, changes, program, thaw_again

from containers import CGROUPS, Container, Woodfrog, eventually
from needs import needs


def around(woodfrog: Woodfrog) -> dict[str, object]:
    """Return what a leak would change on this machine, where others may be at work."""
    return {
        "mounts": len(Path("/proc/self/mountinfo").read_text().splitlines()),
        "cgroups": sum(1 for path in CGROUPS.glob(f"*/wf-{os.getpid()}-*")),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "runtimes": [
            path
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if os.fsencode(woodfrog.root) in read(path)
        ],
        "shared memory": sorted(os.listdir("/dev/shm")),
        "namespaces": sorted(path.name for path in Path("/run/netns").glob("*")),
    }


def read(path: Path) -> bytes:
    """Read a file of a process that may be gone."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def inside(container: Container) -> dict[str, object]:
    """Return what a leak would change in the container's first process."""
    proc = Path(f"/proc/{container.init}")
    maps = (proc / "maps").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines())
    return {
        "mappings": [" ".join(line.split()[:3] + line.split()[5:]) for line in maps],
        "descriptors": sorted(int(path.name) for path in (proc / "fd").iterdir()),
        "signals": [status[name] for name in ("SigBlk", "SigIgn", "SigCgt")],
        "tracer": status["TracerPid"],
        "seccomp": status["Seccomp"],
        "mounts": len((proc / "mountinfo").read_text().splitlines()),
        "children": len((proc / f"task/{container.init}/children").read_text().split()),
        "threads": status["Threads"],
    }


@needs("root")
@pytest.mark.alone
def test_cycles_of_freeze_and_thaw_leave_nothing_behind(woodfrog: Woodfrog) -> None:
    # The file stays open: what is looked at in between must not change by itself.
    command = "import time\nfile = open('/work/n', 'w')\nn = 0\nwhile True:\n  file.seek(0)\n"
    command += "  file.write(str(n))\n  file.flush()\n  n += 1\n  time.sleep(0.01)\n"
    bundle = program(woodfrog, ["/usr/bin/python3", "-c", command])
    container = woodfrog.run(bundle)
    container.wait_for("n")
    eventually(lambda: (bundle.work / "n").read_text() > "2", "it counts")
    # The first thaw may join neighbouring mappings into one, which the kernel shows as it likes.
    container = thaw_again(container)
    before, before_inside = around(woodfrog), inside(container)

    for cycle in range(CYCLES):
        if cycle % 3 == 2:
            image = woodfrog.directory / "left running"
            container.checkpoint(image, "--leave-running")
            (image / "checkpoint.img").unlink()
        else:
            container = thaw_again(container)
        assert changes(before_inside, inside(container)) == [], f"after {cycle + 1} cycles"
        assert changes(before, around(woodfrog)) == [], f"after {cycle + 1} cycles"

    last = (bundle.work / "n").read_text()
    eventually(lambda: (bundle.work / "n").read_text() not in ("", last), "it still counts")
    container.delete()
    assert [path.name for path in woodfrog.root.iterdir()] == []
