"""The records of changed mounts, and what must be true of those from an image."""

import os
import stat
from collections.abc import Collection, Iterator, Mapping

import msgspec

from woodfrog.errors import ImageError
from woodfrog.image.record import Part, Record
from woodfrog.kernel.procfs.id_maps import IdMap, IdMaps, Run
from woodfrog.resources import file_entry
from woodfrog.resources.file_entry import PATH_MAX, ROOT, Entry
from woodfrog.resources.mount_tree import options

# How a mount's changes spread, if not by groups of mounts.
AS_IT_COMES, PRIVATE, UNBINDABLE = "", "private", "unbindable"
# A mount takes part in what its base's master tells, which is outside.
OUTSIDE = -1
UNCHANGED = -1
# Namespaces that can be bound to files: they are made before mounts.
BOUND = ("cgroup", "ipc", "net", "user", "uts")

_MOST_MOUNTS = 10_000
_MOST_IDS, _MOST_RUNS = 1 << 32, 340  # as the kernel has it


class Given(Part, frozen=True, array_like=True):
    """A mount that `create` makes: which one of those at its mount point, from below."""

    point: bytes
    nth: int


class Base(Part, frozen=True):
    """What can be mounted: a file system of the container's own, or one that `create` mounts."""

    given: Given | None = None
    type: str = ""
    source: bytes = b""
    flags: int = 0
    options: bytes = b""
    entries: list[Entry] = []
    pid_namespace: int = 0  # a nested one that a proc shows
    # A namespace that is bound to a file: as /proc/PID/ns calls its kind; 0: the container's own.
    namespace: str = ""
    namespace_id: int = 0


class Node(Part, frozen=True):
    """A mount that was made, or one that `create` makes and that was changed or mounted upon.

    It stands at `place` in its parent, unless `create` has put it where it is (no parent), and
    shows `root` of its base; if that was deleted since, its contents are the `deleted` file of that
    id. `users` and `groups` are its id map: runs of (first of the file system's, first shown, how
    many), empty if it has none. One of a `detached` id is attached nowhere. Those of a `group` tell
    each other what is mounted in them; those of `master` tell it, too.
    """

    given: Given | None = None
    base: int = -1
    root: bytes = ROOT
    deleted: int = 0
    detached: int = 0
    parent: int = -1
    place: bytes = ROOT
    attributes: int = UNCHANGED
    propagation: str = AS_IT_COMES
    group: int = 0
    master: int = 0
    flags: int = UNCHANGED
    options: bytes = b""
    users: list[Run] = []
    groups: list[Run] = []

    @property
    def ids(self) -> IdMaps | None:
        """Its id map, if it has one of its own."""
        return IdMaps(IdMap(self.users), IdMap(self.groups)) if self.users or self.groups else None


class MountTree(Record, frozen=True, tag="mount-tree"):
    """All that differs from what `create` made; parents come before what is mounted in them.

    What is `late` is mounted when all files are open: files of sockets, and terminals. To that, the
    other mounts are as if `create` had made them.
    """

    bases: list[Base]
    nodes: list[Node]
    removed: list[Given]
    late: "MountTree | None" = None

    def path(self, node: Node) -> bytes:
        """Return where a mount is seen, if nothing covers it."""
        if node.parent < 0:
            return node.given.point if node.given else b"/"
        above = self.path(self.nodes[node.parent])
        return above if node.place == ROOT else above.rstrip(b"/") + b"/" + node.place

    @property
    def is_rooted(self) -> bool:
        """Tell whether it has a root of its own, which is the first mount then."""
        return bool(self.nodes) and _is_root(self.nodes[0])

    def is_brought(self, path: bytes) -> bool:
        """Tell whether the image has the file at a path that a changed mount shows."""
        node = self._node_at(path)
        if node is None:
            return False
        base = self.bases[node.base]
        return bool(node.deleted) or (base.given is None and base.type in options.IN_MEMORY)

    def shows(self, path: bytes) -> bool:
        """Tell whether a path leads elsewhere than in a container that was just created."""
        return self._node_at(path) is not None or any(
            _is_at_or_below(path, given.point) for given in self.removed
        )

    def _node_at(self, path: bytes) -> Node | None:
        found = None
        for node in self.nodes:
            if node.base >= 0 and not node.detached and _is_at_or_below(path, self.path(node)):
                found = node
        return found

    @property
    def may_be_from_outside(self) -> bool:
        """Tell whether all this can have happened because of what was unmounted outside."""
        return self.late is None and all(
            node.given is not None
            and node == Node(given=node.given, propagation=node.propagation)
            and node.propagation in (AS_IT_COMES, PRIVATE)
            for node in self.nodes
        )

    def needed(self) -> Iterator[Given]:
        """Go through all mounts of `create` that the new container must have."""
        yield from (base.given for base in self.bases if base.given is not None)
        yield from (node.given for node in self.nodes if node.given is not None)


def without_files(tree: MountTree) -> MountTree:
    """Return what is mounted where, without the files in it."""
    bases = [msgspec.structs.replace(base, entries=[]) for base in tree.bases]
    late = without_files(tree.late) if tree.late else None
    return msgspec.structs.replace(tree, bases=bases, late=late)


def _is_root(node: Node) -> bool:
    return node.given is None and node.parent < 0 and not node.detached


def _is_at_or_below(path: bytes, point: bytes) -> bool:
    return path == point or path.startswith(point.rstrip(b"/") + b"/")


def check(
    tree: MountTree,
    page_bytes: int,
    *,
    nested: bool = False,
    shown: Collection[int] = (),
    namespaces: Mapping[int, str],
    deleted: Collection[int] = (),
) -> None:
    """Check a tree from an image before anything is made of it.

    That of a nested namespace may have a root of its own. `shown` are nested pid namespaces of
    which it may have a proc, `namespaces` the kinds of all by their ids, `deleted` the ids of files
    without any name that it may show.
    """
    what = "the mounts of the image"
    if tree.late:
        if nested or tree.late.late:
            raise ImageError(f"{what} are later than late")
        check(tree.late, page_bytes, namespaces=namespaces)
    detached = [node.detached for node in tree.nodes if node.detached]
    late = [node.detached for node in tree.late.nodes if node.detached] if tree.late else []
    # Only files of the container's own mount namespace are opened in such.
    if len({*detached}) != len(detached) or (detached and nested) or late:
        raise ImageError(f"{what} are attached nowhere, where none could be")
    if len(tree.nodes) > _MOST_MOUNTS or len(tree.bases) > _MOST_MOUNTS:
        raise ImageError(f"{what} are too many")
    for given in (*tree.needed(), *tree.removed):
        if not given.point.startswith(b"/") or b"\0" in given.point or given.nth < 0:
            raise ImageError(f"{what} are at an impossible path")
        if given.point != b"/":
            file_entry.check_path(given.point[1:], what)
    for base in tree.bases:
        if base.given is None:
            _check_base(base, page_bytes)
        if base.pid_namespace and (base.type != "proc" or base.pid_namespace not in shown):
            raise ImageError(f"{what} show processes of a namespace that the image lacks")
        known = base.namespace in BOUND and (
            not base.namespace_id or namespaces.get(base.namespace_id) == base.namespace
        )
        if (base.namespace or base.namespace_id) and not known:
            raise ImageError(f"{what} show a namespace that the image lacks")
    for index, node in enumerate(tree.nodes):
        for path in (node.root, node.place):
            file_entry.check_path(path, what)
        if not -1 <= node.parent < index or not -1 <= node.base < len(tree.bases):
            raise ImageError(f"{what} are in an impossible order")
        # A mount is one of create's or shows a base; and only one of create's has a place already.
        has_no_place = _is_root(node)
        if node.detached and (node.given or node.parent >= 0 or node.group or node.master):
            raise ImageError(f"{what} are attached nowhere and elsewhere")
        if (node.given is None) != (node.base >= 0) or (has_no_place and (not nested or index)):
            raise ImageError(f"{what} are of no kind")
        if node.deleted and (node.deleted not in deleted or node.base < 0 or node.root == ROOT):
            raise ImageError(f"{what} show a deleted file that the image lacks")
        _check_properties(node, what, nested=nested)
    _check_groups(tree)


def _check_properties(node: Node, what: str, *, nested: bool) -> None:
    """Check what one mount is like, wherever it is."""
    for run in (*node.users, *node.groups):
        if min(run) < 0 or not run[2] or max(run[0], run[1]) + run[2] > _MOST_IDS:
            raise ImageError(f"{what} have impossible id maps")
    runs = max(len(node.users), len(node.groups))
    if bool(node.users) != bool(node.groups) or runs > _MOST_RUNS or (runs and node.base < 0):
        raise ImageError(f"{what} have impossible id maps")
    if nested and node.flags != UNCHANGED:
        raise ImageError(f"{what} change file systems of another mount namespace")
    if node.attributes != UNCHANGED and node.attributes & ~options.ATTRIBUTES:
        raise ImageError(f"{what} have impossible attributes")
    if node.propagation not in (AS_IT_COMES, PRIVATE, UNBINDABLE):
        raise ImageError(f"{what} have an impossible propagation")
    if node.group < 0 or node.master < OUTSIDE:
        raise ImageError(f"{what} have impossible groups")


def _check_base(base: Base, page_bytes: int) -> None:
    if b"\0" in base.source or len(base.source) >= PATH_MAX:
        raise ImageError("a mount of the image has an impossible source")
    if base.namespace and base.type == "nsfs" and not (base.flags or base.options or base.entries):
        return
    options.check(base.type, base.flags, base.options)
    if base.entries and base.type not in options.IN_MEMORY:
        raise ImageError(f"a {base.type} of the image has files")
    file_entry.check(base.entries, f"a {base.type} of the image", page_bytes)
    if base.entries and not stat.S_ISDIR(base.entries[0].mode):
        raise ImageError(f"{os.fsdecode(base.entries[0].path)} of the image is no root")


def _check_groups(tree: MountTree) -> None:
    """Check that groups of mounts have one master each, and none is its own."""
    masters: dict[int, int] = {}
    for node in tree.nodes:
        if node.group and masters.setdefault(node.group, node.master) != node.master:
            raise ImageError("the mounts of the image have impossible groups")
    for node in tree.nodes:
        master, seen = node.master, 0
        while master > 0:
            seen += 1
            if master not in masters or seen > len(masters):
                raise ImageError("the mounts of the image have impossible groups")
            master = masters[master]
