"""Control groups: on this machine, and the file logic of both versions on recorded trees."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundles import Bundle
from containers import CGROUPS, Woodfrog
from woodfrog.errors import StateError, WoodfrogError
from woodfrog.runtime import cgroup_limits, cgroups

Make = Callable[[str], Bundle]

HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
UNIFIED = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"

RESOURCES = {
    "memory": {"limit": 64 << 20, "swap": 80 << 20, "reservation": 32 << 20},
    "cpu": {"shares": 1024, "quota": 50000, "period": 100000, "cpus": "0"},
    "pids": {"limit": 50},
}


def test_limits_are_set_and_the_groups_go_with_the_container(
    woodfrog: Woodfrog, make_bundle: Make
) -> None:
    if not (CGROUPS / "memory").exists():
        pytest.skip("this machine has no v1 memory controller")
    bundle = make_bundle("exec sleep 1000")
    bundle.config["linux"]["resources"] = {
        "memory": {"limit": 64 << 20},
        "cpu": {"shares": 512, "quota": 50000, "period": 100000},
        "pids": {"limit": 50},
    }
    container = woodfrog.run(bundle)

    def value(controller: str, file: str) -> str:
        return (CGROUPS / controller / container.name / file).read_text().strip()

    assert value("memory", "memory.limit_in_bytes") == str(64 << 20)
    assert value("cpu", "cpu.shares") == "512"
    assert value("cpu", "cpu.cfs_quota_us") == "50000"
    assert value("pids", "pids.max") == "50"
    assert str(container.init) in value("freezer", "cgroup.procs").split()
    container.delete()
    assert not list(CGROUPS.glob(f"*/{container.name}"))


def test_groups_made_inside_go_too(woodfrog: Woodfrog, make_bundle: Make) -> None:
    container = woodfrog.run(make_bundle("exec sleep 1000"))
    (directory, *_) = CGROUPS.glob(f"*/{container.name}")
    (directory / "inner" / "more").mkdir(parents=True)
    container.delete()
    assert not directory.exists()


def test_without_a_path_the_groups_are_under_our_own(woodfrog: Woodfrog, make_bundle: Make) -> None:
    bundle = make_bundle("cat /proc/self/cgroup")
    bundle.config["linux"]["namespaces"].remove({"type": "cgroup"})
    bundle.save()
    done = woodfrog("run", "-b", str(bundle.directory), "oci-default-path")
    assert "/woodfrog/oci-default-path\n" in done.stdout
    assert not list(CGROUPS.glob("*/woodfrog/oci-default-path"))


def test_v1_wins_in_a_hybrid() -> None:
    mounts = cgroups.mounted(HYBRID)
    assert mounts == {
        "cpu": "/sys/fs/cgroup/cpu,cpuacct",
        "cpuacct": "/sys/fs/cgroup/cpu,cpuacct",
        "memory": "/sys/fs/cgroup/memory",
        "name=systemd": "/sys/fs/cgroup/systemd",
        "": "/sys/fs/cgroup/unified",
    }
    groups = cgroups.plan("", "web", mounts)
    assert groups["version"] == 1
    assert groups["paths"]["cpu"] == "/sys/fs/cgroup/cpu,cpuacct/woodfrog/web"
    assert len(cgroups.directories(groups)) == 3


def test_the_unified_tree_alone() -> None:
    groups = cgroups.plan("/system.slice/web", "web", cgroups.mounted(UNIFIED))
    assert groups == {"version": 2, "paths": {"": "/sys/fs/cgroup/system.slice/web"}}
    with pytest.raises(WoodfrogError, match="no cgroup file system"):
        cgroups.plan("", "web", {})


def test_v1_settings_come_in_a_possible_order() -> None:
    warnings: list[str] = []
    settings = cgroup_limits.v1(RESOURCES | {"unified": {"memory.high": "1"}}, warnings)
    names = [name for _, name, _ in settings]
    assert names.index("memory.limit_in_bytes") < names.index("memory.memsw.limit_in_bytes")
    assert names.index("cpu.cfs_period_us") < names.index("cpu.cfs_quota_us")
    assert warnings == ["linux.resources.unified[memory.high] needs cgroup v2 and has no effect"]


def test_v2_settings_are_converted() -> None:
    warnings: list[str] = []
    settings = cgroup_limits.v2(RESOURCES | {"unified": {"memory.high": "9"}}, warnings)
    assert {name: value for _, name, value in settings} == {
        "memory.max": str(64 << 20),
        "memory.swap.max": str(16 << 20),
        "memory.low": str(32 << 20),
        "cpu.weight": "39",
        "cpu.max": "50000 100000",
        "cpuset.cpus": "0",
        "pids.max": "50",
        "memory.high": "9",
    }
    assert warnings == []
    unlimited = cgroup_limits.v2({"memory": {"limit": -1}, "pids": {"limit": -1}}, warnings)
    assert [value for _, _, value in unlimited] == ["max", "max"]


@pytest.fixture
def v2(tmp_path: Path) -> dict[str, Any]:
    """A v2 tree of plain files."""
    top = tmp_path / "web"
    (top / "inner").mkdir(parents=True)
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    (tmp_path / "cgroup.subtree_control").write_text("")
    for file, text in {
        "cgroup.procs": "12\n7\n",
        "cgroup.events": "populated 1\nfrozen 0\n",
        "cgroup.freeze": "0\n",
        "memory.max": "max\n",
    }.items():
        (top / file).write_text(text)
    (top / "inner" / "cgroup.procs").write_text("99\n")
    return {"version": 2, "paths": {"": str(top)}}


def test_v2_files_are_read_and_written(v2: dict[str, Any]) -> None:
    top = Path(v2["paths"][""])
    assert cgroups.processes(v2) == [7, 12, 99]
    assert not cgroups.is_frozen(v2)
    (top / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    assert cgroups.is_frozen(v2)
    cgroups.freeze(v2, True)
    assert (top / "cgroup.freeze").read_text().startswith("1")
    cgroups.apply(v2, {"memory": {"limit": 4096}})
    assert (top / "memory.max").read_text().startswith("4096")
    with pytest.raises(WoodfrogError, match=r"pids\.max: this kernel's pids cgroup"):
        cgroups.apply(v2, {"pids": {"limit": 3}})


def test_what_does_not_freeze_is_let_go_again(v2: dict[str, Any]) -> None:
    with pytest.raises(StateError, match="doesn't stop"):
        cgroups.freeze(v2, True, patience=0.01)
    assert (Path(v2["paths"][""]) / "cgroup.freeze").read_text().startswith("0")


def test_v2_devices_are_limited_by_a_program() -> None:
    unified = next(iter([p for p in (CGROUPS / "unified", CGROUPS) if _is_v2(p)]), None)
    if unified is None:
        pytest.skip("this machine has no v2 tree")
    group = unified / f"oci-devices-{os.getpid()}"
    group.mkdir()
    try:
        rules = [
            {"allow": False, "access": "rwm"},
            {"allow": True, "type": "c", "major": 1, "minor": 11, "access": "w"},
        ]
        cgroups.apply({"version": 2, "paths": {"": str(group)}}, {"devices": rules})
        script = (
            f"echo 0 > {group}/cgroup.procs;"
            "for d in null kmsg; do for m in '<' '>'; do"
            ' if eval "(: $m /dev/$d) 2>/dev/null"; then echo $d $m; fi; done; done'
        )
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines() == ["null <", "null >", "kmsg >"]
    finally:
        group.rmdir()


def _is_v2(path: Path) -> bool:
    return (path / "cgroup.controllers").exists()
