"""What a container uses, from the files of the v2 tree, in v1's units and under v1's names."""

from __future__ import annotations

from woodfrog.runtime.cgroups.statistics import (
    CPUSET,
    UNLIMITED,
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

_NANOSECONDS = 1000  # in a microsecond

# io.stat's fields: (v1's table, operation).
_IO = {
    "rbytes": ("ioServiceBytesRecursive", "Read"),
    "wbytes": ("ioServiceBytesRecursive", "Write"),
    "rios": ("ioServicedRecursive", "Read"),
    "wios": ("ioServicedRecursive", "Write"),
}


def parts(directory: str) -> dict[str, Any]:
    """Return the numbers of each controller that is there."""
    return {
        "cpu": _cpu(directory),
        "cpuset": shown(
            cpus=processors(text(directory, "cpuset.cpus.effective")),
            mems=processors(text(directory, "cpuset.mems.effective")),
        )
        | dict.fromkeys(CPUSET, 0),
        "memory": _memory(directory),
        "pids": pids(directory),
        "blkio": _io(directory),
        "hugetlb": hugetlb(directory),
    }


def _cpu(directory: str) -> dict[str, Any]:
    stat = table(directory, "cpu.stat")
    return {
        "usage": shown(total=stat.get("usage_usec", 0) * _NANOSECONDS)
        | {
            "kernel": stat.get("system_usec", 0) * _NANOSECONDS,
            "user": stat.get("user_usec", 0) * _NANOSECONDS,
        },
        "throttling": shown(
            periods=stat.get("nr_periods"),
            throttledPeriods=stat.get("nr_throttled"),
            throttledTime=stat.get("throttled_usec", 0) * _NANOSECONDS,
        ),
        **shown(psi=_pressure(directory, "cpu.pressure")),
    }


def _memory(directory: str) -> dict[str, Any]:
    raw = table(directory, "memory.stat")
    memory, swap = _used(directory, "memory"), _used(directory, "memory.swap")
    # v1 counts both together; their peaks need not have been at the same time.
    together = {
        "limit": swap["limit"]
        if UNLIMITED in (swap["limit"], memory["limit"])
        else swap["limit"] + memory["limit"],
        **shown(usage=swap.get("usage", 0) + memory.get("usage", 0)),
        "failcnt": 0,
    }
    nothing = {"limit": 0, "failcnt": 0}
    return {
        **shown(cache=raw.get("file")),
        "usage": memory,
        "swap": together,
        "kernel": nothing,
        "kernelTCP": nothing,
        **shown(raw=raw, psi=_pressure(directory, "memory.pressure")),
    }


def _used(directory: str, prefix: str) -> dict[str, int]:
    return {
        "limit": number(directory, f"{prefix}.max"),
        **shown(
            usage=number(directory, f"{prefix}.current"), max=number(directory, f"{prefix}.peak")
        ),
        "failcnt": 0,
    }


def _io(directory: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for line in text(directory, "io.stat").splitlines():
        numbers, *fields = line.split()
        major, _, minor = numbers.partition(":")
        for field in fields:
            key, _, value = field.partition("=")
            if key in _IO:
                name, op = _IO[key]
                entry = shown(major=int(major), minor=int(minor), op=op, value=int(value))
                found.setdefault(name, []).append(entry)
    return found | shown(psi=_pressure(directory, "io.pressure"))


def hugetlb(directory: str) -> dict[str, Any]:
    """Return the numbers of each size of huge pages."""
    return {
        size: shown(usage=number(directory, f"hugetlb.{size}.current"))
        | {"failcnt": table(directory, f"hugetlb.{size}.events").get("max", 0)}
        for size in page_sizes(directory)
    }


def _pressure(directory: str, name: str) -> dict[str, Any]:
    """Return how much work was delayed: averages in percent, the total in microseconds."""
    found = {}
    for line in text(directory, name).splitlines():
        kind, *fields = line.split()
        pairs = [field.partition("=")[::2] for field in fields]
        found[kind] = {key: int(value) if key == "total" else float(value) for key, value in pairs}
    return found
