"""What a container uses, from the files of v1 hierarchies."""

from __future__ import annotations

import os

from woodfrog.runtime.cgroups.statistics import (
    CPUSET,
    number,
    page_sizes,
    pids,
    processors,
    shown,
    table,
    text,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_NANOSECONDS = 10**9

_BLKIO = {
    "ioServiceBytesRecursive": "io_service_bytes_recursive",
    "ioServicedRecursive": "io_serviced_recursive",
    "ioQueueRecursive": "io_queued_recursive",
    "ioServiceTimeRecursive": "io_service_time_recursive",
    "ioWaitTimeRecursive": "io_wait_time_recursive",
    "ioMergedRecursive": "io_merged_recursive",
    "ioTimeRecursive": "time_recursive",
    "sectorsRecursive": "sectors_recursive",
}


def parts(paths: dict[str, str]) -> dict[str, Any]:
    """Return the numbers of each controller that is there."""
    cpuset = paths.get("cpuset", "")
    return {
        "cpu": {"usage": _usage(paths.get("cpuacct", "")), "throttling": _throttling(paths)},
        "cpuset": shown(
            cpus=processors(text(cpuset, "cpuset.cpus")),
            mems=processors(text(cpuset, "cpuset.mems")),
        )
        | {name: number(cpuset, f"cpuset.{name}") for name in CPUSET},
        "memory": _memory(paths.get("memory", "")),
        "pids": pids(paths.get("pids", "")),
        "blkio": _blkio(paths.get("blkio", "")),
        "hugetlb": _hugetlb(paths.get("hugetlb", "")),
    }


def _usage(directory: str) -> dict[str, Any]:
    by_mode = table(directory, "cpuacct.stat")
    tick = _NANOSECONDS // os.sysconf("SC_CLK_TCK")
    rows = [line.split() for line in text(directory, "cpuacct.usage_all").splitlines()[1:]]
    user, kernel = ([int(row[column]) for row in rows] for column in (1, 2))
    return shown(
        total=number(directory, "cpuacct.usage"),
        percpu=[int(word) for word in text(directory, "cpuacct.usage_percpu").split()],
        percpu_kernel=kernel,
        percpu_user=user,
    ) | {"kernel": by_mode.get("system", 0) * tick, "user": by_mode.get("user", 0) * tick}


def _throttling(paths: dict[str, str]) -> dict[str, int]:
    found = table(paths.get("cpu", ""), "cpu.stat")
    return shown(
        periods=found.get("nr_periods"),
        throttledPeriods=found.get("nr_throttled"),
        throttledTime=found.get("throttled_time"),
    )


def _memory(directory: str) -> dict[str, Any]:
    raw = table(directory, "memory.stat")
    kinds = {"usage": "", "swap": "memsw.", "kernel": "kmem.", "kernelTCP": "kmem.tcp."}
    found: dict[str, Any] = shown(cache=raw.get("cache"))
    for name, part in kinds.items():
        prefix = f"memory.{part}"
        found[name] = {
            "limit": number(directory, f"{prefix}limit_in_bytes"),
            **shown(
                usage=number(directory, f"{prefix}usage_in_bytes"),
                max=number(directory, f"{prefix}max_usage_in_bytes"),
            ),
            "failcnt": number(directory, f"{prefix}failcnt"),
        }
    return found | shown(raw=raw)


def _blkio(directory: str) -> dict[str, Any]:
    # Only BFQ counts all of these; without it, what the throttling layer sees is the truth.
    bfq = text(directory, "blkio.bfq.io_serviced_recursive").count("\n") > 0
    found = {}
    for name, file in _BLKIO.items():
        prefix = "blkio.bfq." if bfq else "blkio.throttle."
        found[name] = _entries(text(directory, prefix + file))
    return shown(**found)


def _entries(lines: str) -> list[dict[str, Any]]:
    found = []
    for line in lines.splitlines():
        numbers, *operation, value = line.split()
        major, colon, minor = numbers.partition(":")
        if colon:
            op = operation[0] if operation else ""
            found.append(shown(major=int(major), minor=int(minor), op=op, value=int(value)))
    return found


def _hugetlb(directory: str) -> dict[str, Any]:
    return {
        size: shown(
            usage=number(directory, f"hugetlb.{size}.usage_in_bytes"),
            max=number(directory, f"hugetlb.{size}.max_usage_in_bytes"),
        )
        | {"failcnt": number(directory, f"hugetlb.{size}.failcnt")}
        for size in page_sizes(directory)
    }
