"""How a process that has yet to be forked gets into a container's groups, without a wait.

Whoever moves another process, or a whole one, has the kernel wait for all processors first
(cgroup_threadgroup_rwsem, an RCU grace period: 5 to 15 ms). It needn't for a thread that moves
itself within v1 (a 0 written to `tasks`, since Linux 5.5), nor for a child that is born in its v2
group (CLONE_INTO_CGROUP, since Linux 5.7).
"""

from __future__ import annotations

import os

from woodfrog.runtime import cgroups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

    from woodfrog.runtime.cgroups import Groups


class Doors:
    """Descriptors by which a child gets into groups; `left` are those that it must be moved to."""

    def __init__(self, groups: Groups) -> None:
        self._group = -1
        self._tasks: list[tuple[int, str]] = []
        if "unit" in groups:
            self.left = cgroups.directories(groups)  # systemd makes them for a process
            return
        self.left = []
        for directory in cgroups.directories(groups):
            path = os.path.join(directory, "tasks")
            try:
                self._tasks.append((os.open(path, os.O_WRONLY | os.O_CLOEXEC), path))
            except FileNotFoundError:
                flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
                self._group = os.open(directory, flags)
                self.left.append(directory)

    def __enter__(self) -> Doors:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptors."""
        for descriptor, _ in self._tasks:
            os.close(descriptor)
        if self._group >= 0:
            os.close(self._group)
        self._tasks, self._group = [], -1

    def fork(self) -> int:
        """Fork with the child in the v2 group, if there is one; raises OSError if it can't be."""
        if self._group < 0:
            return os.fork()
        from woodfrog.kernel.fork import fork_into_cgroup

        pid = fork_into_cgroup(self._group)
        self.left = []
        return pid

    def enter(self) -> None:
        """In the child, of one thread: move to the v1 groups."""
        for descriptor, path in self._tasks:
            try:
                os.write(descriptor, b"0")
            except OSError as error:
                error.filename = path
                raise
