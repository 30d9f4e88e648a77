"""What a mount table tells of mounts, and in which order they can be made and seen."""

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator

from msgspec.structs import replace

from woodfrog.errors import UnsupportedResource
from woodfrog.kernel.procfs.mountinfo import Mount, read_mounts
from woodfrog.resources.file_entry import ROOT
from woodfrog.resources.mount_tree.records import Given

# What a mount table puts behind the root of a mount that was deleted.
DELETED = b"//deleted"


def givens(mounts: list[Mount]) -> dict[int, Given]:
    """Name the mounts of a container that was just created, by their ids."""
    found: dict[int, Given] = {}
    below: Counter[bytes] = Counter()
    for mount in mounts:
        found[mount.mnt_id] = Given(point=mount.point, nth=below[mount.point])
        below[mount.point] += 1
    return found


def as_copied(mounts: list[Mount], now: list[Mount]) -> list[Mount]:
    """Return mounts under the ids of their copies in another mount namespace.

    A copy shows the same at the same place, in the copy of the same parent. Where there is none any
    more, the id is one that nobody has.
    """
    known = {mount.mnt_id for mount in mounts}
    ids: dict[int, int] = {}
    left = list(now)
    for mount in mounts:
        parent = ids.get(mount.parent, mount.parent)
        for other in left:
            at_root = mount.parent not in known and other.point == mount.point == b"/"
            if (at_root or other.parent == parent) and (
                (other.device, other.root, other.point, other.type)
                == (mount.device, mount.root, mount.point, mount.type)
            ):
                ids[mount.mnt_id] = other.mnt_id
                left.remove(other)
                break
        else:
            ids[mount.mnt_id] = -mount.mnt_id
    return [
        replace(mount, mnt_id=ids[mount.mnt_id], parent=ids.get(mount.parent, mount.parent))
        for mount in mounts
    ]


def as_gone_to(created: list[Mount], now: list[Mount]) -> list[Mount]:
    """Return the mounts of `create` by the ids of their copies, if all that there are now are such.

    So it is when the first process has left for a mount namespace of its own.
    """
    there = {(mount.mnt_id, mount.device, mount.type) for mount in now}
    if any((mount.mnt_id, mount.device, mount.type) in there for mount in created):
        return created
    return as_copied(created, now)


def late(view: int, mounts: list[Mount], created: Iterable[Mount]) -> frozenset[int]:
    """Return the ids of mounts of what comes only with open files, and of those in them.

    They show files of unix sockets, or terminals. `view` is a process that sees them, `created`
    are those that came from outside.
    """
    given = {(mount.device, mount.root) for mount in created}
    found: set[int] = set()
    for mount in making_order(mounts):
        is_late = (mount.device, mount.root) not in given and _shows_late(view, mount)
        if mount.parent in found or is_late:
            found.add(mount.mnt_id)
    return frozenset(found)


def _shows_late(view: int, mount: Mount) -> bool:
    if mount.type == "devpts":
        return mount.root not in (b"/", b"/ptmx")
    if mount.root == b"/" or mount.root.endswith(DELETED) or mount.type == "nsfs":
        return False
    try:
        found = os.lstat(f"/proc/{view}/root{os.fsdecode(mount.point)}")
    except OSError:
        return False
    return stat.S_ISSOCK(found.st_mode)


class Spread:
    """How a mount's changes spread, by the tags of a mount table."""

    def __init__(self, mount: Mount) -> None:
        tags = dict(tag.partition(":")[::2] for tag in mount.tags.split())
        self.group = int(tags.get("shared", 0))
        self.master = int(tags.get("master", 0))
        self.unbindable = "unbindable" in tags


def making_order(mounts: list[Mount]) -> list[Mount]:
    """Put mounts in the order of their making, but each after what it stands in or hides."""
    by_id = {mount.mnt_id: mount for mount in mounts}
    inside: dict[int, list[Mount]] = {}
    for mount in mounts:
        inside.setdefault(mount.parent, []).append(mount)
    found: dict[int, Mount] = {}
    waiting = [(mount, False) for mount in reversed(mounts)]
    while waiting:
        mount, is_next = waiting.pop()
        if mount.mnt_id in found:
            continue
        if is_next:
            found[mount.mnt_id] = mount
            continue
        waiting.append((mount, True))
        hidden = mount.point.rstrip(b"/") + b"/"
        if mount.parent in by_id:
            waiting += [
                (one, False) for one in inside[mount.parent] if one.point.startswith(hidden)
            ]
            waiting.append((by_id[mount.parent], False))
    return list(found.values())


def is_in(mount: Mount, wider: Mount) -> bool:
    """Tell whether all that a mount shows can be seen by another of the same file system."""
    root = wider.root.rstrip(b"/")
    return mount.root == wider.root or mount.root.startswith(root + b"/")


def widest(mounts: list[Mount], device: tuple[int, int]) -> list[Mount]:
    """Return the mounts by which all can be seen that is seen of a file system."""
    found: list[Mount] = []
    # Of two the one that shows ids as they are.
    for mount in sorted(mounts, key=lambda one: (len(one.root), "idmapped" in one.options)):
        is_seen = any(is_in(mount, wider) for wider in found)
        if mount.device == device and not is_seen and not mount.root.endswith(DELETED):
            found.append(mount)
    return found


def shown_by_proc(view: int, mount: Mount) -> str:
    """Return the pid namespace whose processes a proc shows, as /proc/PID/ns/pid reads.

    Empty if it is covered, or nobody is in there any more.
    """
    try:
        return os.readlink(f"/proc/{view}/root{os.fsdecode(mount.point)}/1/ns/pid")
    except OSError:
        return ""


def place(mount: Mount, above: Mount) -> bytes:
    return relative(mount.point, above.point)


def relative(path: bytes, above: bytes) -> bytes:
    return path[len(above.rstrip(b"/")) :].lstrip(b"/") or ROOT


def uncovered_first(mounts: list[Mount]) -> list[Mount]:
    """Put mounts in an order in which each can be seen once those before it are taken away."""
    known = {mount.mnt_id for mount in mounts}
    children: dict[int, list[Mount]] = {}
    for mount in mounts:
        children.setdefault(mount.parent if mount.parent in known else -1, []).append(mount)
    found: list[Mount] = []
    # What is mounted in a mount comes before it, and of neighbours the one that may hide the other.
    waiting = [(mount, False) for mount in children.get(-1, [])]
    while waiting:
        mount, is_done = waiting.pop()
        if is_done:
            found.append(mount)
            continue
        waiting.append((mount, True))
        below = sorted(children.get(mount.mnt_id, []), key=lambda one: len(one.point))
        waiting += [(one, False) for one in reversed(below)]
    return found


def covering(mounts: list[Mount], wanted: list[Mount]) -> set[int]:
    """Return the ids of mounts that may hide one of those wanted."""
    parents = {mount.mnt_id: mount.parent for mount in mounts}
    found = set()
    for mount in wanted:
        above = set()
        up = mount.mnt_id
        while up in parents:
            above.add(up)
            up = parents[up]
        found |= {
            other.mnt_id
            for other in mounts
            if other.mnt_id not in above
            and (mount.point + b"/").startswith(other.point.rstrip(b"/") + b"/")
        }
    return found


class Givens:
    """The mounts of a container that was just created."""

    def __init__(self, init: int) -> None:
        mounts = read_mounts(init)
        names = givens(mounts)
        self._found = {names[mount.mnt_id]: mount for mount in mounts}
        self._all = {mount.mnt_id: mount for mount in mounts}

    def above(self, mount: Mount) -> Iterator[Mount]:
        """Go through what a mount is mounted in, and what that is mounted in, up to the root."""
        while (found := self._all.get(mount.parent)) is not None and found is not mount:
            yield found
            mount = found

    def count_covers(self, mount: Mount) -> int:
        """Return how many mounts at the same place cover one, each on the one before."""
        covers = {one.parent: one for one in self._all.values() if one.point == mount.point}
        count, top = 0, mount
        while (cover := covers.get(top.mnt_id)) is not None:
            count, top = count + 1, cover
        return count

    @property
    def root(self) -> Mount:
        """Return the lowest mount at the root."""
        return self.find(Given(point=b"/", nth=0))

    def __contains__(self, given: Given) -> bool:
        return given in self._found

    def find(self, given: Given) -> Mount:
        """Return the mount of that name; raises UnsupportedResource if there is none."""
        if given not in self._found:
            raise UnsupportedResource(
                f"the image has mounts that need the one at {os.fsdecode(given.point)}, which the"
                " new container does not have",
                hint="mount there what the checkpointed container had, in the bundle's config.json",
            )
        return self._found[given]
