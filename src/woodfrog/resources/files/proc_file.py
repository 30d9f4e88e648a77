"""Files and directories of a process in proc(5)."""

import os
from typing import ClassVar, Self

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.kernel import syscalls
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.capability import CAP_SYS_PTRACE
from woodfrog.resources.files.base import FileRecord, Row, set_flags
from woodfrog.resources.files.making import Late
from woodfrog.resources.files.open_file import CREATION_FLAGS, O_PATH, OpenFile
from woodfrog.resources.files.world import World

# What every process may open of every other; all else the kernel opens only for the process
# itself, or by CAP_SYS_PTRACE and the like.
_OPEN_TO_ALL = frozenset(
    b"cgroup children cmdline comm cpuset gid_map limits loginuid mountinfo mounts mountstats net"
    b" oom_adj oom_score oom_score_adj projid_map sched schedstat sessionid setgroups stat statm"
    b" status task uid_map".split()
)


_DELETED = b" (deleted)"


class ProcFile(FileRecord, frozen=True, tag="proc-file"):
    """A file of the process with this id, which may have ended; `point` is where proc is."""

    row: ClassVar[Row] = Row(
        called="/proc, and the files of processes in it",
        kept=("those of ended processes, too",),
        refused=("of ended threads",),
    )
    point: bytes
    pid: int
    name: bytes
    position: int
    ended: bool
    late: ClassVar[bool] = True

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        mount = world.mounts.get(file.mnt_id)
        return (
            mount is not None
            and mount.type == "proc"
            and _split(mount.point, file.target.removesuffix(_DELETED))[0].isdigit()
        )

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        point = world.mounts[file.mnt_id].point
        pid, name = _split(point, file.target.removesuffix(_DELETED))
        ended = not world.is_process(int(pid))
        # Whoever looks for a file of the network again has its old name forgotten, as if deleted.
        target = os.path.join(point, pid, name) if _is_of_network(name) else file.target
        if not ended and not os.path.lexists(world.root + os.fsdecode(target)):
            raise UnsupportedResource(
                f"{os.fsdecode(file.target)} is a file of a thread that has ended,"
                " which cannot be saved yet"
            )
        return cls(
            id=number,
            flags=file.flags,
            point=point,
            pid=int(pid),
            name=name,
            position=file.position,
            ended=ended,
        )

    @property
    def path(self) -> bytes:
        return os.path.join(self.point, b"%d" % self.pid, self.name).rstrip(b"/")

    def refuse_holders(self, holders: set[int], bounding: int) -> None:
        """Refuse what no process of the new container that has the file could open."""
        words = self.name.split(b"/")
        if self.pid <= 0 or (self.name and {b"", b".", b".."} & {*words}):
            raise ImageError("the image has a file of an impossible process")
        if words[0] == b"task":
            words = words[2:] or [b""]
        is_open = not self.flags & O_PATH and words[0] not in (b"", *_OPEN_TO_ALL)
        if is_open and self.pid not in holders and not bounding >> CAP_SYS_PTRACE & 1:
            raise UnsupportedResource(
                f"the image has {os.fsdecode(self.path)} open for another process than {self.pid},"
                " for which the new container lacks CAP_SYS_PTRACE"
            )

    def is_of_ended(self) -> bool:
        return self.ended

    def restore_late(self, late: Late) -> int:
        flags = self.flags & ~CREATION_FLAGS
        if not self.flags & O_PATH:
            flags |= os.O_NONBLOCK | os.O_NOCTTY
        name = self.name or b"."
        fd = late.open_in_proc(self.point, self.pid, name, flags, ended=self.ended)
        if not self.flags & O_PATH:
            if self.position:
                syscalls.lseek(HERE, fd, self.position)
            set_flags(HERE, fd, self.flags)
        return fd


def _is_of_network(name: bytes) -> bool:
    words = name.split(b"/")
    return b"net" in (words[0], *words[2:3])


def _split(point: bytes, path: bytes) -> tuple[bytes, bytes]:
    """Split a path below a mount of proc into the process's id and the rest."""
    inside = path.removeprefix(point.rstrip(b"/")).lstrip(b"/")
    pid, _, name = inside.partition(b"/")
    return pid, name
