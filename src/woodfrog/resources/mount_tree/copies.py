"""Mounts of a container by themselves: what is in one, also below others that cover it.

If something does, they are copied in a copy of its mount namespace, from which that is taken away.
"""

import errno
import os
import threading
from collections.abc import Callable, Collection
from typing import TypeVar

from woodfrog.errors import UnsupportedResource
from woodfrog.kernel import mounts as m
from woodfrog.kernel import namespaces, own_modules
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.procfs.mountinfo import Mount, parse_mount
from woodfrog.resources.mount_tree import table

_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC

Result = TypeVar("Result")


def copy(
    init: int, wanted: Collection[int], mounts: list[Mount], *, locked: bool
) -> dict[int, int]:
    """Return descriptors of copies of mounts, by their ids, with nothing mounted in them.

    But where mounts are `locked`, as those of a user namespace are: those may cover others. Those
    that are not seen at all are missing then.
    """

    looked_at = [mount for mount in mounts if mount.mnt_id in wanted]
    covers = set() if locked else table.covering(mounts, looked_at)
    # In a copied namespace they can be made ordinary.
    unbindable = not locked and any("unbindable" in mount.tags.split() for mount in looked_at)

    def work(proc: int) -> dict[int, int]:
        ids = {mount.mnt_id: mount.mnt_id for mount in mounts}
        if covers or unbindable:
            namespaces.unshare(HERE, namespaces.CLONE_NEWNS)
            m.mount(HERE, None, "/", None, m.MS_REC | m.MS_PRIVATE)
            ids = _ids(mounts, mounts_seen(proc))
        found: dict[int, int] = {}
        try:
            for mount in table.uncovered_first(mounts):
                if mount.mnt_id in wanted:
                    copied = _copy(proc, mount.point, ids[mount.mnt_id], locked=locked)
                    if copied >= 0:
                        found[mount.mnt_id] = copied
                if mount.mnt_id in covers:
                    m.umount(HERE, mount.point, m.MNT_DETACH | m.UMOUNT_NOFOLLOW)
        except BaseException:
            for fd in found.values():
                os.close(fd)
            raise
        return found

    return inside(init, work)


def _copy(proc: int, point: bytes, expected: int, *, locked: bool) -> int:
    place = os.open(point, _PATH)
    try:
        if mount_of(proc, place) != expected:
            if locked:
                return -1
            raise UnsupportedResource(f"cannot look into the mount at {os.fsdecode(point)}")
        try:
            return m.clone_mount(HERE, place)
        except OSError as error:
            if error.errno != errno.EINVAL or not locked:
                raise
            # What covers it can't be taken away by anybody there; it is looked at as it is.
            return os.dup(place)
    finally:
        os.close(place)


def mount_of(proc: int, descriptor: int) -> int:
    """Return the id of the mount that a descriptor of ours is in, where /proc is another."""
    file = os.open(f"thread-self/fdinfo/{descriptor}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    # As bytes: for an encoding Python could import code, and that from the container.
    with open(file, "rb") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(b"mnt_id:"))


def _ids(mounts: list[Mount], copied: list[Mount]) -> dict[int, int]:
    """Tell which id each mount has in the copied namespace."""
    theirs = {place: mnt_id for mnt_id, place in _places(copied).items()}
    return {mnt_id: theirs[place] for mnt_id, place in _places(mounts).items()}


def _places(mounts: list[Mount]) -> dict[int, tuple[bytes, ...]]:
    """Return the mount points on the way to each mount, which no two have in common."""
    by_id = {mount.mnt_id: mount for mount in mounts}
    found = {}
    for mount in mounts:
        way = []
        up: Mount | None = mount
        while up is not None:
            way.append(up.point)
            up = by_id.get(up.parent)
        found[mount.mnt_id] = tuple(way)
    return found


def mounts_seen(proc: int) -> list[Mount]:
    """Read the mounts that this thread sees, likewise."""
    file = os.open("thread-self/mountinfo", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    with open(file, "rb") as lines:
        return [parse_mount(line.rstrip(b"\n")) for line in lines]


def inside(pid: int, work: Callable[[int], Result]) -> Result:
    """Do something in the mount namespace of a process; `work` gets a descriptor of our /proc.

    It is done in a thread that ends then, as there is no way back for its directories.
    """
    found: list[Result] = []
    failed: list[BaseException] = []
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def call() -> None:
        try:
            namespace = os.open(f"{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
            own_modules.load_no_more()
            try:
                # Only who shares its directories with no other thread may change its mounts.
                namespaces.unshare(HERE, namespaces.CLONE_FS)
                namespaces.setns(HERE, namespace, namespaces.CLONE_NEWNS)
            finally:
                os.close(namespace)
            found.append(work(proc))
        except BaseException as error:
            failed.append(error)
        finally:
            own_modules.load_again()

    try:
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
    finally:
        os.close(proc)
    if failed:
        raise failed[0]
    return found[0]
