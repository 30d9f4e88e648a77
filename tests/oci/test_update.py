"""update: the limits of a running container change, and nothing else does."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundles import Bundle
from containers import CGROUPS, Container, Woodfrog

Make = Callable[[str], Bundle]

if not (CGROUPS / "memory").exists():
    pytest.skip("this machine has no v1 controllers", allow_module_level=True)


@pytest.fixture
def container(woodfrog: Woodfrog, make_bundle: Make) -> Container:
    """A container with some limits."""
    bundle = make_bundle("exec sleep 1000")
    bundle.config["linux"]["resources"] = {
        "memory": {"limit": 64 << 20, "reservation": 32 << 20},
        "cpu": {"shares": 100, "quota": 500000, "period": 1000000},
        "pids": {"limit": 20},
    }
    return woodfrog.run(bundle)


def value(container: Container, file: str) -> str:
    """Return what a file of the container's group says."""
    controller = file.partition(".")[0]
    return (CGROUPS / controller / container.name / file).read_text().strip()


def update_with(container: Container, resources: dict[str, Any]) -> str:
    """Update from stdin, as docker does; returns what was said."""
    done = subprocess.run(
        container.woodfrog.command("update", "--resources", "-", container.name),
        input=json.dumps(resources),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_each_flag_sets_its_limit(container: Container) -> None:
    def update(*flags: str) -> None:
        container.woodfrog("update", container.name, *flags)

    update("--memory", "0.125g", "--memory-swap=256MiB", "--memory-reservation", "48M")
    assert value(container, "memory.limit_in_bytes") == str(128 << 20)
    assert value(container, "memory.memsw.limit_in_bytes") == str(256 << 20)
    assert value(container, "memory.soft_limit_in_bytes") == str(48 << 20)
    update("--memory", "32M", "--memory-swap", "40M")  # now the other must come first
    assert value(container, "memory.limit_in_bytes") == str(32 << 20)
    assert value(container, "memory.memsw.limit_in_bytes") == str(40 << 20)
    unlimited = (CGROUPS / "memory" / "memory.limit_in_bytes").read_text().strip()
    update("--memory=-1")
    assert value(container, "memory.limit_in_bytes") == unlimited
    assert value(container, "memory.memsw.limit_in_bytes") == unlimited
    update("--cpu-share=200", "--cpuset-cpus", "0", "--cpuset-mems=0", "--pids-limit", "30")
    assert value(container, "cpu.shares") == "200"
    assert value(container, "cpuset.cpus") == "0"
    assert value(container, "pids.max") == "30"
    update("--cpu-idle=1")
    assert value(container, "cpu.idle") == "1"
    update("--cpu-quota=20000", "--cpu-period=50000", "--cpu-burst=1000")
    assert value(container, "cpu.cfs_period_us") == "50000"
    assert value(container, "cpu.cfs_quota_us") == "20000"
    assert value(container, "cpu.cfs_burst_us") == "1000"
    update("--pids-limit=-1", "--cpu-quota", "-1", "--cpu-burst", "0")
    assert value(container, "pids.max") == "max"
    assert value(container, "cpu.cfs_quota_us") == "-1"
    assert value(container, "cpu.cfs_burst_us") == "0"
    done = container.woodfrog("update", "--kernel-memory=1m", container.name)
    assert "kernel memory counts as memory" in done.stderr


def test_what_is_not_named_stays(container: Container) -> None:
    files = [
        "memory.limit_in_bytes",
        "memory.soft_limit_in_bytes",
        "cpu.shares",
        "cpu.cfs_quota_us",
    ]
    group = CGROUPS / "memory" / container.name
    (group / "memory.soft_limit_in_bytes").write_text(str(16 << 20))  # by somebody else
    before = [value(container, file) for file in files]
    container.woodfrog("update", container.name, "--pids-limit", "25")
    assert value(container, "pids.max") == "25"
    assert [value(container, file) for file in files] == before


def test_a_file_of_resources_sets_limits(container: Container, tmp_path: Path) -> None:
    assert update_with(container, {"CPU": {"Shares": 300}, "pids": {"limit": 21}}) == ""
    assert value(container, "cpu.shares") == "300"
    assert value(container, "pids.max") == "21"
    file = tmp_path / "resources.json"
    file.write_text(json.dumps({"memory": {"limit": 100 << 20}, "cpu": None}))
    container.woodfrog("update", f"--resources={file}", container.name)
    assert value(container, "memory.limit_in_bytes") == str(100 << 20)
    together = container.woodfrog(
        "update", "-r", str(file), "--memory=1m", container.name, status=1
    )
    assert "can't be given together" in together.stderr


def test_a_paused_container_stays_paused(container: Container) -> None:
    container.woodfrog("pause", container.name)
    container.woodfrog("update", "--pids-limit", "30", container.name)
    assert container.state()["status"] == "paused"
    container.woodfrog("resume", container.name)


def test_devices_change_without_a_gap(woodfrog: Woodfrog, make_bundle: Make) -> None:
    devices = [{"allow": False, "access": "rwm"}, {"allow": True, "type": "c", "major": 1,
               "minor": 11, "access": "rw"}]  # fmt: skip
    bundle = make_bundle("while :; do echo > /dev/null || exit 9; done")
    bundle.config["linux"]["resources"] = {"devices": devices}
    container = woodfrog.run(bundle)

    def allowed() -> list[str]:
        return value(container, "devices.list").splitlines()

    def file(name: str) -> Path:
        return CGROUPS / "devices" / container.name / name

    assert "c 1:11 rw" in allowed()
    # What others have added stays when an engine gives back what it knows.
    file("devices.allow").write_text("c 1:1 r")
    update_with(container, {"devices": devices})
    assert "c 1:1 r" in allowed()
    devices[1] = {"allow": True, "type": "b", "major": 7, "access": "r"}
    update_with(container, {"devices": devices})
    assert "b 7:* r" in allowed()
    assert "c 1:3 rwm" in allowed()
    assert not {"c 1:11 rw", "c 1:1 r", "a *:* rwm"} & set(allowed())
    assert container.state()["status"] == "running"


def test_block_devices_are_throttled(container: Container) -> None:
    numbers = next(path.read_text().strip() for path in Path("/sys/block").glob("*/dev"))
    major, minor = map(int, numbers.split(":"))

    def entry(rate: int) -> list[dict[str, int]]:
        return [{"major": major, "minor": minor, "rate": rate}]

    update_with(container, {"blockIO": {"throttleReadBpsDevice": entry(1 << 20)}})
    update_with(container, {"blockIO": {"throttleWriteIOPSDevice": entry(900)}})
    assert value(container, "blkio.throttle.read_bps_device") == f"{numbers} {1 << 20}"
    assert value(container, "blkio.throttle.write_iops_device") == f"{numbers} 900"
    update_with(container, {"blockIO": {"throttleReadBpsDevice": entry(0)}})
    assert value(container, "blkio.throttle.read_bps_device") == ""


def test_limits_above_those_of_a_pod(woodfrog: Woodfrog, make_bundle: Make) -> None:
    pod = CGROUPS / "cpu" / f"wf-pod-{os.getpid()}"
    pod.mkdir()
    (pod / "cpu.cfs_quota_us").write_text("50000")
    bundle = make_bundle("exec sleep 1000")
    name = f"{pod.name}/inner"
    bundle.config["linux"]["cgroupsPath"] = f"/{name}"
    bundle.save()
    try:
        woodfrog("run", "--detach", "-b", str(bundle.directory), "in-pod")
        too_much = woodfrog("update", "--cpu-quota=60000", "in-pod", status=1)
        assert "cannot set cpu.cfs_quota_us to 60000" in too_much.stderr
        woodfrog("update", "--cpu-period=10000", "--cpu-quota=3000", "in-pod")
        assert (CGROUPS / "cpu" / name / "cpu.cfs_quota_us").read_text() == "3000\n"
        assert (CGROUPS / "cpu" / name / "cpu.cfs_period_us").read_text() == "10000\n"
    finally:
        woodfrog("delete", "--force", "in-pod")
        for path in CGROUPS.glob(f"*/{pod.name}"):
            path.rmdir()


def test_an_ended_container_has_no_limits(woodfrog: Woodfrog, container: Container) -> None:
    container.kill()
    done = woodfrog("update", "--pids-limit=9", container.name, status=1)
    assert f"container {container.name} is not running" in done.stderr
