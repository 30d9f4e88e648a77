"""The time namespace: its clocks run ahead of the host's, or behind, by linux.timeOffsets."""

from __future__ import annotations

import os

from woodfrog.kernel import namespaces as ns
from woodfrog.kernel.caller import HERE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def write(pid: int | str, config: dict[str, Any]) -> None:
    """Set the clocks of the time namespace that a process has made and not entered yet."""
    offsets = (config.get("linux") or {}).get("timeOffsets") or {}
    lines = [
        f"{clock} {offset.get('secs') or 0} {offset.get('nanosecs') or 0}\n"
        for clock, offset in offsets.items()
    ]
    with open(f"/proc/{pid}/timens_offsets", "w") as file:
        file.write("".join(lines))


def enter() -> None:
    """Enter the time namespace that we have made."""
    descriptor = os.open("/proc/self/ns/time_for_children", os.O_RDONLY | os.O_CLOEXEC)
    ns.setns(HERE, descriptor, ns.CLONE_NEWTIME)
    os.close(descriptor)
