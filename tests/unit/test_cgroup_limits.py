"""What linux.resources and linux.cgroupsPath come to, as data; no cgroup is touched."""

import pytest

from woodfrog.errors import SpecError, WoodfrogError
from woodfrog.runtime import cgroups
from woodfrog.runtime.cgroups import limits_v1, limits_v2, places

HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
UNIFIED = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
WITHIN = "32 31 0:29 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"

RESOURCES = {
    "memory": {"limit": 64 << 20, "swap": 80 << 20, "reservation": 32 << 20},
    "cpu": {"shares": 1024, "quota": 50000, "period": 100000, "cpus": "0"},
    "pids": {"limit": 50},
    "blockIO": {
        "weight": 500,
        "weightDevice": [{"major": 8, "minor": 0, "weight": 100}],
        "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1000}],
        "throttleWriteIOPSDevice": [{"major": 8, "minor": 16}],
    },
    "hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}],
    "rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 9}},
}


def has_all(controller: str, name: str) -> bool:
    """Say that every file is there."""
    return True


def has_none(controller: str, name: str) -> bool:
    """Say that no file is there."""
    return False


def v1(resources: dict[str, object]) -> list[tuple[str, str]]:
    """Return v1's (file, value) pairs; a warning fails the test."""
    settings = limits_v1.settings(resources, has_all, pytest.fail)
    return [(name, value) for _, name, value in settings]


def v2(resources: dict[str, object]) -> dict[str, str]:
    """Return v2's values by file; a warning fails the test."""
    settings = limits_v2.settings(resources, has_all, pytest.fail)
    return {name: value for _, name, value in settings}


def test_v1_wins_in_a_hybrid_and_the_v2_tree_is_joined() -> None:
    assert places.mounted(HYBRID) == {
        "cpu": "/sys/fs/cgroup/cpu,cpuacct",
        "cpuacct": "/sys/fs/cgroup/cpu,cpuacct",
        "memory": "/sys/fs/cgroup/memory",
        "name=systemd": "/sys/fs/cgroup/systemd",
        "": "/sys/fs/cgroup/unified",
    }
    groups = places.plan("", "web", HYBRID)
    assert groups["version"] == 1
    assert groups["paths"]["cpu"] == "/sys/fs/cgroup/cpu,cpuacct/woodfrog/web"
    assert groups["paths"][""] == "/sys/fs/cgroup/unified/woodfrog/web"
    assert len(cgroups.directories(groups)) == 4


def test_the_unified_tree_alone() -> None:
    groups = places.plan("/system.slice/web", "web", UNIFIED)
    assert groups == {"version": 2, "paths": {"": "/sys/fs/cgroup/system.slice/web"}}
    with pytest.raises(WoodfrogError, match="no cgroup file system"):
        places.plan("", "web", "")


def test_a_relative_path_starts_at_our_own_groups() -> None:
    own = "4:memory:/user/us\n3:cpu,cpuacct:/\n1:name=systemd:/user\n0::/user/us\n"
    assert places.plan("jobs/web", "web", HYBRID, own)["paths"] == {
        "memory": "/sys/fs/cgroup/memory/user/us/jobs/web",
        "cpu": "/sys/fs/cgroup/cpu,cpuacct/jobs/web",
        "cpuacct": "/sys/fs/cgroup/cpu,cpuacct/jobs/web",
        "name=systemd": "/sys/fs/cgroup/systemd/user/jobs/web",
        # Groups with processes have no controllers for others: v2 goes one up.
        "": "/sys/fs/cgroup/unified/user/jobs/web",
    }
    # In a container without a cgroup namespace, the host's path is shown, and only ours mounted.
    within = places.plan("web", "web", WITHIN, "4:memory:/docker/abc/inner\n")
    assert within["paths"] == {"memory": "/sys/fs/cgroup/memory/inner/web"}


@pytest.mark.parametrize("path", ["../web", "/a/../../b", "system.slice:docker:web"])
def test_paths_that_lead_elsewhere_are_refused(path: str) -> None:
    with pytest.raises(SpecError, match="cgroupsPath"):
        places.plan(path, "web", UNIFIED)


def test_buffers_of_tcp_have_a_limit_of_their_own_in_v1_alone() -> None:
    limit = {"memory": {"kernelTCP": 5 << 20}}
    assert v1(limit) == [("memory.kmem.tcp.limit_in_bytes", str(5 << 20))]


def test_v1_has_a_file_for_each_limit() -> None:
    assert v1(RESOURCES) == [
        ("cpuset.cpus", "0"),
        ("memory.limit_in_bytes", str(64 << 20)),
        ("memory.memsw.limit_in_bytes", str(80 << 20)),
        ("memory.soft_limit_in_bytes", str(32 << 20)),
        ("cpu.shares", "1024"),
        ("cpu.cfs_period_us", "100000"),
        ("cpu.cfs_quota_us", "50000"),
        ("pids.max", "50"),
        ("blkio.weight", "500"),
        ("blkio.weight_device", "8:0 100"),
        ("blkio.throttle.read_bps_device", "8:0 1000"),
        ("blkio.throttle.write_iops_device", "8:16 0"),
        ("hugetlb.2MB.limit_in_bytes", str(4 << 20)),
        ("hugetlb.2MB.rsvd.limit_in_bytes", str(4 << 20)),
        ("rdma.max", "mlx5_1 hca_handle=3 hca_object=9"),
    ]
    network = {"classID": 1048577, "priorities": [{"name": "eth0", "priority": 5}, {"name": "lo"}]}
    assert v1({"network": network}) == [
        ("net_cls.classid", "1048577"),
        ("net_prio.ifpriomap", "eth0 5"),
        ("net_prio.ifpriomap", "lo 0"),
    ]
    settings = limits_v1.settings({"blockIO": {"weight": 5}}, has_none, pytest.fail)
    assert settings == [("blkio", "blkio.bfq.weight", "5")]


def test_v1_takes_rarer_settings() -> None:
    memory = {"swappiness": 0, "disableOOMKiller": True, "limit": -1}
    assert v1({"memory": memory}) == [
        ("memory.limit_in_bytes", "-1"),
        ("memory.memsw.limit_in_bytes", "-1"),  # it would go on limiting memory
        ("memory.oom_control", "1"),
        ("memory.swappiness", "0"),
    ]
    cpu = {"realtimePeriod": 9, "realtimeRuntime": 8, "burst": 0, "idle": 1, "mems": "0-1"}
    assert v1({"cpu": cpu, "pids": {"limit": -1}}) == [
        ("cpuset.mems", "0-1"),
        ("cpu.rt_period_us", "9"),
        ("cpu.rt_runtime_us", "8"),
        ("cpu.cfs_burst_us", "0"),
        ("cpu.idle", "1"),
        ("pids.max", "max"),
    ]
    nothing = {
        "memory": {"limit": 0, "swap": 0, "swappiness": -1},
        "cpu": {"shares": 0},
        "pids": {},
    }
    assert v1(nothing) == []


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"memory": {"swappiness": 101}}, "invalid memory swappiness value: 101"),
        ({"cpu": {"shares": 1}}, "minimum allowed cpu-shares is 2"),
        ({"cpu": {"shares": 262145}}, "maximum allowed cpu-shares is 262144"),
    ],
)
def test_v1_refuses_what_the_kernel_would_change(
    resources: dict[str, object], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        v1(resources)


def test_v2_settings_are_converted() -> None:
    assert v2(RESOURCES) == {
        "pids.max": "50",
        "memory.max": str(64 << 20),
        "memory.swap.max": str(16 << 20),
        "memory.low": str(32 << 20),
        "io.bfq.weight": "8:0 100",
        "io.max": "8:16 wiops=max",
        "cpu.weight": "100",
        "cpu.max": "50000 100000",
        "cpuset.cpus": "0",
        "hugetlb.2MB.max": str(4 << 20),
        "hugetlb.2MB.rsvd.max": str(4 << 20),
        "rdma.max": "mlx5_1 hca_handle=3 hca_object=9",
    }
    assert v2({"memory": {"limit": -1}, "pids": {"limit": -1}}) == {
        "memory.max": "max",
        "memory.swap.max": "max",
        "pids.max": "max",
    }
    assert v2({"cpu": {"quota": -1, "idle": 0, "burst": 7}}) == {
        "cpu.max": "max 100000",
        "cpu.idle": "0",
        "cpu.max.burst": "7",
    }
    io = {"weight": 500, "weightDevice": [{"major": 8, "minor": 0, "weight": 1000}]}
    assert limits_v2.settings({"blockIO": io}, has_none, pytest.fail) == [
        ("io", "io.weight", "4950"),
        ("io", "io.weight", "8:0 10000"),
    ]


@pytest.mark.parametrize(("shares", "weight"), [(2, 1), (100, 17), (1024, 100), (262144, 10000)])
def test_shares_become_weights(shares: int, weight: int) -> None:
    assert limits_v2.cpu_weight(shares) == weight


@pytest.mark.parametrize(
    ("memory", "swap"),
    [
        ({"limit": 10, "swap": 10}, 0),
        ({"limit": 10, "swap": -1}, -1),
        ({"limit": -1}, -1),
        ({"limit": 10}, None),
        ({"limit": -1, "swap": -1}, -1),
    ],
)
def test_v2_counts_swap_without_memory(memory: dict[str, int], swap: int | None) -> None:
    assert limits_v2.swap_alone(memory) == swap


def test_v2_refuses_a_swap_limit_that_means_nothing() -> None:
    with pytest.raises(SpecError, match="without memory limit"):
        v2({"memory": {"swap": 10}})
    with pytest.raises(SpecError, match=r"memory\+swap limit should be >="):
        v2({"memory": {"limit": 11, "swap": 10}})


def test_what_v2_lacks_is_told() -> None:
    warnings: list[str] = []
    resources = {
        "memory": {"swappiness": 5, "disableOOMKiller": True, "kernel": 1},
        "cpu": {"realtimePeriod": 9},
        "network": {"classID": 1},
    }
    assert limits_v2.settings(resources, has_all, warnings.append) == []
    assert [warning.partition(" ")[0].rpartition(".")[2] for warning in warnings] == [
        "kernel",
        "swappiness",
        "disableOOMKiller",
        "realtimePeriod",
        "classID",
    ]
