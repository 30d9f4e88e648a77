"""--cuda-checkpoint-path, with a stand-in for NVIDIA's program and for the GPU."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundles import Bundle
from containers import Container, Woodfrog, eventually

Make = Callable[[str], Bundle]

# A device that can't be saved stands for the GPU.
GPU = {"type": "c", "major": 10, "minor": 229}

# A process that uses the GPU, and lets go of it or takes it again whenever it is told to.
PROCESS = r"""
take() { exec 9< /dev/nvidia0; used=1; }
toggle() { if [ $used = 1 ]; then exec 9<&-; used=0; else take; fi; }
trap toggle USR1
sleep 1000 &
take
: > /work/using-$1
while :; do wait; done
"""

# The stand-in: --toggle --pid PID.
TOGGLE = r"""#!/bin/sh
echo "$@" >> DIR/calls
gpus() { ls -l /proc/$3/fd | grep -c nvidia0; }
if [ -e DIR/fail ]; then
    read -r left < DIR/fail
    if [ $left = 0 ]; then rm DIR/fail; echo "out of memory" >&2; exit 7; fi
    echo $((left - 1)) > DIR/fail
fi
before=$(gpus "$@")
kill -USR1 $3
while [ $(gpus "$@") = $before ]; do [ -e /proc/$3 ] || exit 1; sleep 0.01; done
if [ -e DIR/kill ]; then rm DIR/kill; kill -KILL $PPID; fi
"""


class Gpus:
    """A container with two processes that use the GPU, and the stand-in."""

    def __init__(self, woodfrog: Woodfrog, bundle: Bundle, directory: Path) -> None:
        self.woodfrog = woodfrog
        self.bundle = bundle
        self.directory = directory
        self.program = directory / "cuda-checkpoint"
        self.program.write_text(TOGGLE.replace("DIR", str(directory)))
        self.program.chmod(0o755)
        self.flag = f"--cuda-checkpoint-path={self.program}"
        self.container = woodfrog.run(bundle)
        for number in (1, 2):
            self.container.wait_for(f"using-{number}")

    def calls(self) -> list[str]:
        """Return with which arguments the program was run, and forget them."""
        path = self.directory / "calls"
        found = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return found

    def users(self, container: Container | None = None) -> list[int]:
        """Return the host pids of those that have the GPU."""
        name = (container or self.container).name
        pids = self.woodfrog("ps", "--format=json", name).stdout
        return [pid for pid in json.loads(pids) if has_gpu(pid)]


def has_gpu(pid: int) -> bool:
    try:
        return any(
            str(one.readlink()) == "/dev/nvidia0" for one in Path(f"/proc/{pid}/fd").iterdir()
        )
    except OSError:
        return False


@pytest.fixture
def gpus(woodfrog: Woodfrog, make_bundle: Make, tmp_path: Path) -> Gpus:
    bundle = make_bundle("/bin/sh /work/process 1 & exec /bin/sh /work/process 2")
    (bundle.work / "process").write_text(PROCESS)
    linux: dict[str, Any] = bundle.config["linux"]
    linux.setdefault("devices", []).append({"path": "/dev/nvidia0", "fileMode": 0o666, **GPU})
    rules = linux.setdefault("resources", {}).setdefault("devices", [])
    rules.append({"allow": True, "access": "rwm", **GPU})
    return Gpus(woodfrog, bundle, tmp_path)


def test_without_the_program_it_is_refused_by_name(gpus: Gpus, tmp_path: Path) -> None:
    gpus.woodfrog("check", gpus.container.name, status=1)
    gpus.woodfrog("check", gpus.flag, gpus.container.name)
    assert gpus.calls() == []
    done = gpus.container.checkpoint(tmp_path / "image", status=1)
    assert "a GPU of NVIDIA (/dev/nvidia0), which cannot be saved" in done.stderr
    assert "--cuda-checkpoint-path" in done.stderr


@pytest.mark.parametrize("flags", [(), ("--cuda-checkpoint-sequential",)])
def test_gpus_are_given_back_and_taken_again(
    gpus: Gpus, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    pids = gpus.users()
    assert len(pids) == 2
    gpus.container.checkpoint(tmp_path / "one", gpus.flag, "--leave-running", *flags)
    wanted = sorted(f"--toggle --pid {pid}" for pid in pids)
    calls = gpus.calls()
    assert (sorted(calls[:2]), sorted(calls[2:])) == (wanted, wanted)
    assert gpus.users() == pids
    gpus.container.checkpoint(tmp_path / "two", gpus.flag, *flags)
    assert sorted(gpus.calls()) == wanted

    image = f"--image-path={tmp_path}/two"
    bundle = f"--bundle={gpus.bundle.directory}"
    refused = gpus.woodfrog("restore", "--detach", image, bundle, "never", status=1)
    assert "--cuda-checkpoint-path" in refused.stderr
    restored = gpus.woodfrog.restore(gpus.bundle, tmp_path / "two", gpus.flag, *flags)
    found = gpus.users(restored)
    assert len(found) == 2
    assert sorted(gpus.calls()) == sorted(f"--toggle --pid {pid}" for pid in found)


def test_a_paused_container_runs_for_so_long(gpus: Gpus, tmp_path: Path) -> None:
    gpus.woodfrog("pause", gpus.container.name)
    gpus.container.checkpoint(tmp_path / "image", gpus.flag, "--leave-running")
    assert gpus.container.state()["status"] == "paused"
    assert len(gpus.users()) == 2


def test_if_the_program_fails_all_have_their_gpus_again(gpus: Gpus, tmp_path: Path) -> None:
    (gpus.directory / "fail").write_text("1\n")  # the second call
    flags = (gpus.flag, "--cuda-checkpoint-sequential")
    done = gpus.container.checkpoint(tmp_path / "image", *flags, status=1)
    assert "exit status 7: out of memory" in done.stderr
    assert "running as before" in done.stderr
    assert len(gpus.users()) == 2
    assert not (tmp_path / "image/checkpoint.img").exists()


def test_if_the_checkpoint_fails_all_have_their_gpus_again(gpus: Gpus) -> None:
    gpus.container.checkpoint(Path("/proc/none"), gpus.flag, status=1)
    assert len(gpus.calls()) == 4
    assert len(gpus.users()) == 2


def test_the_command_after_a_kill_gives_the_gpus_back(gpus: Gpus, tmp_path: Path) -> None:
    (gpus.directory / "kill").touch()
    flags = (gpus.flag, "--cuda-checkpoint-sequential")
    gpus.container.checkpoint(tmp_path / "image", *flags, status=-9)
    eventually(lambda: len(gpus.users()) == 2, "both have their GPUs")
    assert gpus.container.state()["status"] == "running"
