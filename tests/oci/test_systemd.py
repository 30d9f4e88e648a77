"""--systemd-cgroup: systemd, or what stands in for it, makes the container's groups."""

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bundles import Bundle
from containers import CGROUPS, Woodfrog, eventually
from needs import needs
from systemd_stand_in import SystemdStandIn

pytestmark = needs("command dbus-daemon")
Make = Callable[[str], Bundle]
_numbers = itertools.count()


@pytest.fixture
def systemd(
    woodfrog: Woodfrog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SystemdStandIn]:
    """A stand-in that woodfrog finds."""
    with SystemdStandIn(tmp_path) as found:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={found.socket}")
        yield found


class Unit:
    """A container in a slice of its own."""

    def __init__(self, woodfrog: Woodfrog, bundle: Bundle) -> None:
        self.woodfrog = woodfrog
        self.bundle = bundle
        self.id = f"sd-{os.getpid()}-{next(_numbers)}"
        self.slice = f"wf{os.getpid()}.slice"
        self.name = f"test-{self.id}.scope"
        self.bundle.config["linux"]["cgroupsPath"] = f"{self.slice}:test:{self.id}"
        woodfrog.names.append(self.id)

    def __call__(self, command: str, *flags: str, status: int = 0) -> str:
        self.bundle.save()
        arguments = ["-b", str(self.bundle.directory), *flags]
        done = self.woodfrog("--systemd-cgroup", command, *arguments, self.id, status=status)
        return done.stdout + done.stderr

    def groups(self) -> list[Path]:
        """Return the unit's groups."""
        places = [*CGROUPS.glob(f"*/{self.slice}/{self.name}"), CGROUPS / self.slice / self.name]
        return [place for place in places if place.exists()]

    def value(self, file: str) -> str:
        """Return what a file of a v1 group says."""
        controller = file.partition(".")[0]
        return (CGROUPS / controller / self.slice / self.name / file).read_text().strip()


@pytest.fixture
def unit(woodfrog: Woodfrog, make_bundle: Make, systemd: SystemdStandIn) -> Iterator[Unit]:
    """A container that sleeps; afterwards its slice goes, as systemd would see to."""
    found = Unit(woodfrog, make_bundle("touch /work/up; exec sleep 1000"))
    yield found
    woodfrog("delete", "--force", found.id)
    left = found.groups()
    for place in [*CGROUPS.glob(f"*/{found.slice}"), *CGROUPS.glob(found.slice)]:
        place.rmdir()
    assert left == []


def test_a_scope_is_started_and_stopped(unit: Unit, systemd: SystemdStandIn) -> None:
    unit.bundle.config["linux"]["resources"] = {
        "memory": {"limit": 64 << 20},
        "pids": {"limit": 50},
        "devices": [{"allow": False, "access": "rwm"}],
    }
    unit.bundle.config["annotations"] = {
        "org.systemd.property.CollectMode": "'inactive-or-failed'",
        "org.systemd.property.TimeoutStopSec": "uint64 5",
    }
    unit("run", "--detach")
    properties = systemd.units[unit.name]
    pid = int(unit.woodfrog("state", unit.id).stdout.partition('"pid": ')[2].partition(",")[0])
    expected = {
        "Slice": unit.slice,
        "PIDs": [pid],
        "Delegate": True,
        "DefaultDependencies": False,
        "TasksMax": 50,
        "TasksAccounting": True,
        "DevicePolicy": "strict",
        "CollectMode": "inactive-or-failed",
        "TimeoutStopUSec": 5_000_000,
    }
    assert {name: properties[name] for name in expected} == expected
    assert 64 << 20 in (properties.get("MemoryLimit"), properties.get("MemoryMax"))
    if (CGROUPS / "pids").exists():
        assert unit.value("pids.max") == "50"
        assert unit.value("memory.limit_in_bytes") == str(64 << 20)
    joined = Path(f"/proc/{pid}/cgroup").read_text()
    assert joined.count(f"/{unit.slice}/{unit.name}\n") == len(unit.groups())
    unit.woodfrog("delete", "--force", unit.id)
    assert systemd.units == {}
    assert systemd.calls[-2:] == [("StopUnit", unit.name), ("ResetFailedUnit", unit.name)]


def test_new_limits_are_told_to_systemd(unit: Unit, systemd: SystemdStandIn) -> None:
    unit.bundle.config["linux"]["resources"] = {
        "cpu": {"quota": 50000, "period": 100000},
        "devices": [{"allow": False, "access": "rwm"}],
    }
    unit("run", "--detach")
    before = dict(systemd.units[unit.name])
    unit.woodfrog("update", "--pids-limit=30", "--cpu-quota", "12345", unit.id)
    assert systemd.units[unit.name] == before | {
        "TasksMax": 30,
        "CPUQuotaPerSecUSec": 130_000,  # whole percent, rounded up
        "CPUQuotaPeriodUSec": 100_000,
    }
    if (CGROUPS / "cpu").exists():
        assert unit.value("cpu.cfs_quota_us") == "13000"
        assert unit.value("pids.max") == "30"
        assert "c 1:3 rwm" in unit.value("devices.list").splitlines()
    assert '"status": "running"' in unit.woodfrog("state", unit.id).stdout


def test_a_unit_that_failed_before_is_forgotten(unit: Unit, systemd: SystemdStandIn) -> None:
    systemd.failed.add(unit.name)
    unit("run", "--detach")
    assert unit.name in systemd.units
    assert [method for method, _ in systemd.calls] == [
        "StartTransientUnit",
        "ResetFailedUnit",
        "StartTransientUnit",
    ]


def test_a_unit_that_does_not_start_leaves_nothing(unit: Unit, systemd: SystemdStandIn) -> None:
    systemd.result = "failed"
    said = unit("run", "--detach", status=1)
    assert f"error creating systemd unit `{unit.name}`: got `failed`" in said
    assert unit.groups() == []
    assert systemd.failed == set()
    assert "does not exist" in unit.woodfrog("state", unit.id, status=1).stderr


def test_a_checkpoint_is_thawed_in_a_unit(
    unit: Unit, systemd: SystemdStandIn, tmp_path: Path
) -> None:
    unit("run", "--detach")
    eventually((unit.bundle.work / "up").exists, "the container is up")
    image = tmp_path / "image"
    unit.woodfrog("pause", unit.id)
    unit.woodfrog("checkpoint", f"--image-path={image}", unit.id)
    unit.woodfrog("delete", "--force", unit.id)
    assert systemd.units == {}
    unit("restore", "--detach", f"--image-path={image}")
    assert '"status": "running"' in unit.woodfrog("state", unit.id).stdout
    assert unit.name in systemd.units


def test_no_systemd_and_a_path_are_refused(unit: Unit, monkeypatch: pytest.MonkeyPatch) -> None:
    right = unit.bundle.config["linux"]["cgroupsPath"]
    unit.bundle.config["linux"]["cgroupsPath"] = "/some/path"
    said = unit("run", "--detach", status=1)
    assert 'of format "slice:prefix:name" for systemd cgroups, got "/some/path" instead' in said
    unit.bundle.config["linux"]["cgroupsPath"] = right
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/no/such/socket")
    assert "systemd not running on this host" in unit("run", "--detach", status=1)
    assert unit.groups() == []
