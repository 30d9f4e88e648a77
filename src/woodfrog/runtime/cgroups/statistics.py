"""What a container uses, as `events` shows it: v1's and v2's numbers in one form.

The form is that of runc's `events`, which engines and their scripts read. As there, most numbers
that are zero are left out.
"""

from __future__ import annotations

import os

from woodfrog.runtime import cgroups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from woodfrog.runtime.cgroups import Groups

UNLIMITED = (1 << 64) - 1

# What only v1's cpusets tell; for v2 these are zeros.
CPUSET = (
    "cpu_exclusive",
    "mem_hardwall",
    "mem_exclusive",
    "memory_migrate",
    "memory_spread_page",
    "memory_spread_slab",
    "memory_pressure",
    "sched_load_balance",
    "sched_relax_domain_level",
)


def collect(groups: Groups) -> dict[str, Any]:
    """Return what the container uses now."""
    paths = groups["paths"]
    if groups["version"] == 2:
        from woodfrog.runtime.cgroups.statistics_v2 import parts

        found = parts(paths[""])
    else:
        from woodfrog.runtime.cgroups.statistics_v1 import parts as parts_v1

        found = parts_v1(paths)
        if "hugetlb" not in paths and "" in paths:
            from woodfrog.runtime.cgroups.statistics_v2 import hugetlb

            found["hugetlb"] = hugetlb(paths[""])
    return found | {"intel_rdt": {}, "network_interfaces": None}


def pids(directory: str) -> dict[str, int]:
    """Return how many tasks there are and may be."""
    limit = number(directory, "pids.max")
    return shown(
        current=number(directory, "pids.current"), limit=limit if limit != UNLIMITED else 0
    )


def shown(**values: Any) -> dict[str, Any]:
    """Return the values that are not zero or empty."""
    return {name: value for name, value in values.items() if value}


def text(directory: str, name: str) -> str:
    """Return what a file says; nothing if it isn't there."""
    try:
        return cgroups.read(directory, name)
    except OSError:
        return ""


def number(directory: str, name: str) -> int:
    """Return a file's number; 0 if it isn't there."""
    found = text(directory, name)
    if found == "max":
        return UNLIMITED
    return int(found) if found.lstrip("-").isdigit() else 0


def table(directory: str, name: str) -> dict[str, int]:
    """Return the numbers of a file that has a name and one on each line."""
    found = {}
    for line in text(directory, name).splitlines():
        key, _, value = line.partition(" ")
        if value.isdigit():
            found[key] = int(value)
    return found


def processors(ranges: str) -> list[int]:
    """Return the numbers in a list such as 0-2,5."""
    found: list[int] = []
    for part in filter(None, ranges.split(",")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def page_sizes(directory: str) -> list[str]:
    """Return the sizes of huge pages that a group counts, such as 2MB."""
    try:
        names = os.listdir(directory)
    except OSError:
        return []
    ends = (".usage_in_bytes", ".current")
    return sorted(
        name.split(".")[1]
        for name in names
        if name.startswith("hugetlb.") and name.count(".") == 2 and name.endswith(ends)
    )
