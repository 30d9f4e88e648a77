"""Following a running container: what it uses every so often, and when its memory runs out."""

from __future__ import annotations

import os
import select
import time

from woodfrog.kernel.caller import HERE
from woodfrog.kernel.process import pidfd_open
from woodfrog.runtime import cgroups
from woodfrog.runtime.cgroups import statistics

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from woodfrog.runtime.cgroups import Groups
    from woodfrog.runtime.state import Container


def follow(container: Container, interval: float) -> Iterator[dict[str, Any] | None]:
    """Yield statistics every `interval` seconds, and None when the OOM killer comes, to the end."""
    groups: Groups = container.state["cgroup"]
    try:
        pidfd = pidfd_open(HERE, container.pid)
    except ProcessLookupError:
        return
    memory = _memory(groups)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if memory:
            poll.register(memory.descriptor, memory.event)
        due = time.monotonic() + interval
        while container.is_alive():
            ready = dict(poll.poll(max(0, due - time.monotonic()) * 1000))
            if memory and memory.descriptor in ready and memory.has_run_out():
                yield None
            elif pidfd in ready:
                return
            elif time.monotonic() >= due:
                due += interval
                yield statistics.collect(groups)
    finally:
        os.close(pidfd)
        if memory:
            memory.close()


def _memory(groups: Groups) -> _MemoryV1 | _MemoryV2 | None:
    if "memory" in groups["paths"]:
        return _MemoryV1(groups["paths"]["memory"])
    if os.path.exists(f"{groups['paths'].get('', '')}/memory.events"):
        return _MemoryV2(groups["paths"][""])
    return None


class _MemoryV1:
    """An event counter that the kernel raises when the group's memory has run out."""

    event = select.POLLIN

    def __init__(self, directory: str) -> None:
        self._control = f"{directory}/cgroup.event_control"
        self.descriptor = os.eventfd(0)
        oom = os.open(f"{directory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        try:
            cgroups.write(directory, "cgroup.event_control", f"{self.descriptor} {oom}")
        except BaseException:
            os.close(self.descriptor)
            raise
        finally:
            os.close(oom)

    def has_run_out(self) -> bool:
        """Tell whether that was it: the end of the group raises the counter, too."""
        os.eventfd_read(self.descriptor)
        return os.path.exists(self._control)

    def close(self) -> None:
        """Stop watching."""
        os.close(self.descriptor)


class _MemoryV2:
    """The file that counts; poll tells of a change."""

    event = select.POLLPRI

    def __init__(self, directory: str) -> None:
        self.descriptor = os.open(f"{directory}/memory.events", os.O_RDONLY | os.O_CLOEXEC)
        self._kills = self._read()

    def _read(self) -> int:
        for line in os.pread(self.descriptor, 4096, 0).splitlines():
            name, _, count = line.partition(b" ")
            if name == b"oom_kill":
                return int(count)
        return 0

    def has_run_out(self) -> bool:
        """Tell whether a process was killed since we were asked last."""
        try:
            before, self._kills = self._kills, self._read()
        except OSError:  # the group is gone
            return False
        return self._kills > before

    def close(self) -> None:
        """Stop watching."""
        os.close(self.descriptor)
