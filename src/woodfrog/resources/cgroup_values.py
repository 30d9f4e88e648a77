"""What is set in the files of control groups (kernel: cgroup-v1/*.rst, cgroup-v2.rst)."""

import re
from collections.abc import Iterable, Iterator

from woodfrog.image.record import Part

_OOM, DEVICES = "memory.oom_control", "devices.list"
# What is kept of each group, in the order in which it is set; all others count, tell, or act at
# once.
_VALUES = (
    *("notify_on_release", "cgroup.clone_children"),
    *("cgroup.max.depth", "cgroup.max.descendants", "cgroup.pressure"),
    *("cpuset.cpus", "cpuset.mems", "cpuset.cpus.exclusive", "cpuset.cpus.partition"),
    *("cpuset.cpu_exclusive", "cpuset.mem_exclusive", "cpuset.mem_hardwall"),
    *("cpuset.memory_migrate", "cpuset.memory_spread_page", "cpuset.memory_spread_slab"),
    *("cpuset.sched_load_balance", "cpuset.sched_relax_domain_level"),
    *("cpu.idle", "cpu.weight", "cpu.max", "cpu.max.burst", "cpu.uclamp.min", "cpu.uclamp.max"),
    *("cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us", "cpu.cfs_burst_us"),
    *("cpu.rt_period_us", "cpu.rt_runtime_us"),
    *("memory.min", "memory.low", "memory.high", "memory.max", "memory.oom.group"),
    *("memory.swap.high", "memory.swap.max", "memory.zswap.max", "memory.zswap.writeback"),
    *("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.soft_limit_in_bytes"),
    *("memory.kmem.tcp.limit_in_bytes", "memory.swappiness", "memory.oom_control"),
    *("pids.max", "misc.max", "rdma.max"),
    *("io.weight", "io.bfq.weight", "io.max", "io.latency"),
    *("blkio.weight", "blkio.weight_device", "blkio.bfq.weight", "blkio.bfq.weight_device"),
    *(f"blkio.throttle.{way}_device" for way in ("read_bps", "write_bps", "read_iops")),
    "blkio.throttle.write_iops_device",
    *("net_cls.classid", "net_prio.ifpriomap", DEVICES),
)
# Of which one writes each line by itself.
_BY_LINES = {
    *("misc.max", "rdma.max", "io.weight", "io.bfq.weight", "io.max", "io.latency"),
    *(name for name in _VALUES if name.endswith("_device")),
    *("net_prio.ifpriomap", DEVICES),
}
_HUGE = re.compile(r"hugetlb\.\d+[KMGT]B\.(rsvd\.)?(max|limit_in_bytes)")


class Value(Part, frozen=True, array_like=True):
    """What is in a file of a group."""

    name: str
    text: bytes

    @property
    def is_place(self) -> bool:
        """Tell whether a group takes nobody without this (cpusets of version 1)."""
        return self.name in ("cpuset.cpus", "cpuset.mems")

    def written(self, now: bytes) -> Iterator[tuple[str, bytes]]:
        """Yield what is written to which files, to have a value that isn't there now."""
        if self.name == _OOM:
            words = dict(line.split() for line in self.text.splitlines() if line.count(b" ") == 1)
            is_now = dict(line.split() for line in now.splitlines() if line.count(b" ") == 1)
            if (text := words.get(b"oom_kill_disable")) and text != is_now.get(b"oom_kill_disable"):
                yield self.name, text
        elif self.name == DEVICES:
            yield "devices.deny", b"a"
            for line in self.text.splitlines():
                yield "devices.allow", line
        elif self.name in _BY_LINES:
            there = set(now.splitlines())
            for line in self.text.splitlines():
                if line not in there:
                    yield self.name, line
        elif self.name == "cpuset.cpus.partition":
            yield self.name, self.text.partition(b" ")[0]  # it may tell that it is invalid
        else:
            yield self.name, self.text


def is_kept(name: str) -> bool:
    """Tell whether the value in a file of this name is kept."""
    return name in _VALUES or bool(_HUGE.fullmatch(name))


def values_among(names: Iterable[str]) -> list[str]:
    """Return the names of files with values that are kept, in the order in which they are set."""
    there = set(names)
    return [*(one for one in _VALUES if one in there), *sorted(filter(_HUGE.fullmatch, there))]
