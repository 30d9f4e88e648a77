"""linux.resources as files of v1 hierarchies."""

from __future__ import annotations

from woodfrog.errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from woodfrog.runtime.cgroups.limits import Has, Resources, Settings, Warn

MOST_SHARES = 1 << 18

_THROTTLES = {
    "throttleReadBpsDevice": "read_bps",
    "throttleWriteBpsDevice": "write_bps",
    "throttleReadIOPSDevice": "read_iops",
    "throttleWriteIOPSDevice": "write_iops",
}


def settings(resources: Resources, has: Has, warn: Warn) -> Settings:
    """Return what is to be written into which file, in this order; zeros ask for nothing."""
    found = [
        *_cpuset(resources.get("cpu") or {}),
        *_memory(resources.get("memory") or {}, warn),
        *_cpu(resources.get("cpu") or {}),
    ]
    if limit := (resources.get("pids") or {}).get("limit"):
        found.append(("pids", "pids.max", "max" if limit < 0 else str(limit)))
    found += _blkio(resources.get("blockIO") or {}, has)
    for page in resources.get("hugepageLimits") or ():
        for kind in ("", "rsvd."):
            name = f"hugetlb.{page.get('pageSize')}.{kind}limit_in_bytes"
            found.append(("hugetlb", name, str(page.get("limit") or 0)))
    network = resources.get("network") or {}
    if class_id := network.get("classID"):
        found.append(("net_cls", "net_cls.classid", str(class_id)))
    for entry in network.get("priorities") or ():
        value = f"{entry.get('name')} {entry.get('priority') or 0}"
        found.append(("net_prio", "net_prio.ifpriomap", value))
    found += rdma(resources)
    return found


def _cpuset(cpu: dict[str, Any]) -> Settings:
    return [("cpuset", f"cpuset.{name}", cpu[name]) for name in ("cpus", "mems") if cpu.get(name)]


def _memory(memory: dict[str, Any], warn: Warn) -> Settings:
    warn_of_kernel_memory(memory, ("kernel",), warn)
    limit, swap = memory.get("limit"), memory.get("swap")
    if limit == -1 and not swap:
        swap = -1  # here a limit of memory and swap together: it would still limit memory
    found = [
        ("memory", f"memory.{name}_in_bytes", str(value))
        for name, value in (
            ("limit", limit),
            ("memsw.limit", swap),
            ("soft_limit", memory.get("reservation")),
            ("kmem.tcp.limit", memory.get("kernelTCP")),
        )
        if value
    ]
    if memory.get("disableOOMKiller"):
        found.append(("memory", "memory.oom_control", "1"))
    swappiness = memory.get("swappiness")
    if swappiness is not None and swappiness != -1:
        if not 0 <= swappiness <= 100:
            raise SpecError(f"invalid memory swappiness value: {swappiness} (valid range is 0-100)")
        found.append(("memory", "memory.swappiness", str(swappiness)))
    return found


def warn_of_kernel_memory(memory: dict[str, Any], names: tuple[str, ...], warn: Warn) -> None:
    """Tell that limits which newer kernels don't have are left out."""
    for name in names:
        if memory.get(name):
            warn(f"linux.resources.memory.{name} is ignored: kernel memory counts as memory")


def _cpu(cpu: dict[str, Any]) -> Settings:
    shares = cpu.get("shares")
    if shares and not 2 <= shares <= MOST_SHARES:
        # The kernel would take another value, and say nothing.
        which, bound = ("minimum", 2) if shares < 2 else ("maximum", MOST_SHARES)
        raise SpecError(f"the {which} allowed cpu-shares is {bound}")
    found = [
        ("cpu", f"cpu.{name}", str(value))
        for name, value in (
            ("shares", shares),
            ("rt_period_us", cpu.get("realtimePeriod")),
            ("rt_runtime_us", cpu.get("realtimeRuntime")),
            ("cfs_period_us", cpu.get("period")),
            ("cfs_quota_us", cpu.get("quota")),
        )
        if value
    ]
    # Here a zero says something.
    for key, name in (("burst", "cfs_burst_us"), ("idle", "idle")):
        if cpu.get(key) is not None:
            found.append(("cpu", f"cpu.{name}", str(cpu[key])))
    return found


def _blkio(io: dict[str, Any], has: Has) -> Settings:
    # With the BFQ scheduler, which is the only one left with weights, they have its name.
    prefix = "blkio" if has("blkio", "blkio.weight") else "blkio.bfq"
    found: Settings = []
    if io.get("weight"):
        found.append(("blkio", f"{prefix}.weight", str(io["weight"])))
    if io.get("leafWeight"):
        found.append(("blkio", f"{prefix}.leaf_weight", str(io["leafWeight"])))
    for entry in io.get("weightDevice") or ():
        for key, name in (("weight", "weight_device"), ("leafWeight", "leaf_weight_device")):
            if entry.get(key):
                found.append(("blkio", f"{prefix}.{name}", f"{device(entry)} {entry[key]}"))
    for key, name in _THROTTLES.items():
        for entry in io.get(key) or ():
            value = f"{device(entry)} {entry.get('rate') or 0}"
            found.append(("blkio", f"blkio.throttle.{name}_device", value))
    return found


def device(entry: dict[str, Any]) -> str:
    """Return a block device's numbers, as the kernel writes them."""
    return f"{entry.get('major') or 0}:{entry.get('minor') or 0}"


def rdma(resources: Resources) -> Settings:
    """Return the limits of RDMA devices, which are the same in both versions."""
    found: Settings = []
    for name, limits in (resources.get("rdma") or {}).items():
        pairs = [
            f"{key}={limits[field]}"
            for field, key in (("hcaHandles", "hca_handle"), ("hcaObjects", "hca_object"))
            if limits.get(field) is not None
        ]
        if pairs:
            found.append(("rdma", "rdma.max", f"{name} {' '.join(pairs)}"))
    return found
