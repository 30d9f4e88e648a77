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
    """Descriptors by which a child gets into groups: v1's `tasks`, with their paths, and v2's.

    `left` are the directories of those that it must be moved to.
    """

    def __init__(self, tasks: list[tuple[int, str]], group: int, left: list[str]) -> None:
        self.tasks = tasks
        self.group = group
        self.left = left

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
        for descriptor, _ in self.tasks:
            os.close(descriptor)
        if self.group >= 0:
            os.close(self.group)

    def fork(self) -> int:
        """Fork with the child in the v2 group, if there is one; raises OSError if it can't be."""
        if self.group < 0:
            return os.fork()
        from woodfrog.kernel.fork import fork_into_cgroup

        pid = fork_into_cgroup(self.group)
        self.left = []
        return pid

    def enter(self) -> None:
        """In the child, of one thread: move to the v1 groups."""
        for descriptor, path in self.tasks:
            try:
                os.write(descriptor, b"0")
            except OSError as error:
                error.filename = path
                raise


def doors_of(groups: Groups) -> Doors:
    """Open the ways into groups that are there."""
    if "unit" in groups:
        return Doors([], -1, cgroups.directories(groups))  # systemd makes them for a process
    doors = Doors([], -1, [])
    for directory in cgroups.directories(groups):
        path = os.path.join(directory, "tasks")
        try:
            doors.tasks.append((os.open(path, os.O_WRONLY | os.O_CLOEXEC), path))
        except FileNotFoundError:
            doors.group = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            doors.left = [directory]
    return doors
