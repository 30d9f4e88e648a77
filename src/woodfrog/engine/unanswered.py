"""File systems that a program of the container serves (FUSE), found before anything is asked there.

It is held, and would never answer: we would wait for it, and it for us. So nothing may be looked at
below, and no file there may be had by us, whose close asks once more.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress

from woodfrog.errors import UnsupportedResource
from woodfrog.kernel import fuse
from woodfrog.kernel.procfs.maps import read_maps
from woodfrog.kernel.procfs.mountinfo import Mount, read_mounts
from woodfrog.remote.held import Held, HeldTask

_HINT = "unmount it, and close its files, first"


class Unanswered:
    """Those that weren't there when the container was created, by their devices."""

    def __init__(self, given: Sequence[Mount] | None) -> None:
        """`given` are the container's mounts as `create` made them; None: that isn't known."""
        self._served = fuse.served()
        self._theirs = self._served - {mount.device for mount in given or ()}
        self._is_known = given is not None

    def refuse(self, tree: Held) -> None:
        """Refuse a held container that has such a file system, or serves one."""
        if not self._theirs:
            return
        seen = set()
        for process in tree.processes:
            link = os.readlink(f"/proc/{process.pid}/ns/mnt")
            for mount in read_mounts(process.pid) if link not in seen else ():
                if self._is_theirs(mount.device):
                    raise UnsupportedResource(
                        f"{process.name} sees a FUSE file system at {os.fsdecode(mount.point)},"
                        " mounted since the container was created, which cannot be saved",
                        hint=_HINT,
                    )
            seen.add(link)
            self._refuse_descriptors(process.pid, process.name)
            for mapping in read_maps(process.pid):
                if self._is_theirs(mapping[5]):
                    raise UnsupportedResource(
                        f"{process.name} has {os.fsdecode(mapping[7])} mapped, of a FUSE file"
                        " system, which cannot be saved",
                        hint=_HINT,
                    )
        for task in tree.tasks():
            self._refuse_links(f"/proc/{task.pid}", ("cwd", "root", "exe"), "a thread")

    def refuse_own_descriptors(self, tasks: Iterator[HeldTask]) -> None:
        """Refuse the same in threads that have tables of descriptors of their own."""
        for task in tasks if self._theirs else ():
            if task.has_own_descriptors:
                self._refuse_descriptors(task.pid, "a thread")

    def _is_theirs(self, device: tuple[int, int]) -> bool:
        return self._is_known and device in self._theirs

    def _refuse_descriptors(self, pid: int, name: str) -> None:
        place = f"/proc/{pid}/fd"
        self._refuse_links(place, os.listdir(place), name)

    def _refuse_links(self, place: str, links: Sequence[str], name: str) -> None:
        for link in links:
            with suppress(FileNotFoundError):  # kernel threads of a task have no program
                found = fuse.look(f"{place}/{link}")
                if stat.S_ISCHR(found.mode) and found.special == fuse.DEVICE:
                    what = "is /dev/fuse, by which it serves a file system"
                elif self._is_theirs(found.device):
                    what = "is of a FUSE file system, mounted since the container was created"
                else:
                    continue
                which = link if link in ("cwd", "root", "exe") else f"descriptor {link}"
                raise UnsupportedResource(
                    f"{which} of {name} {what}, which cannot be saved", hint=_HINT
                )
