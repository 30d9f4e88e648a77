"""What the mounts of a user namespace may show, if the container itself may not mount.

The root stub makes them with rights that nobody has there, so what the kernel would have refused is
refused here: mounts that came with a mount namespace from above are locked (mount_namespaces(7)).
None is taken away from what it covers, none loses what forbids writing, and proc and sysfs are only
mounted anew where all of them is seen already.
"""

import os
from collections.abc import Mapping

from woodfrog.errors import UnsupportedResource
from woodfrog.kernel import mounts as m
from woodfrog.kernel.procfs.mountinfo import Mount
from woodfrog.resources.file_entry import ROOT
from woodfrog.resources.mount_tree import options, table
from woodfrog.resources.mount_tree.records import UNCHANGED, Given, MountTree, Node

_LOCKED = m.MOUNT_ATTR_RDONLY | m.MOUNT_ATTR_NOSUID | m.MOUNT_ATTR_NODEV | m.MOUNT_ATTR_NOEXEC
_WHOLE = ("proc", "sysfs")  # what is mounted anew only if it is seen as a whole
# What shows nothing but what is new, or is checked here.
_MOUNTABLE = ("tmpfs", "devpts", *_WHOLE)


def refuse_wider(tree: MountTree, mounts: list[Mount], *, known: bool) -> None:
    """Refuse a tree that nobody in a user namespace could have made.

    `mounts` are those of the container. Unless they are `known` to be those that the tree speaks
    of, it may not change or show again any that was there.
    """
    names = table.givens(mounts)
    givens = {names[mount.mnt_id]: mount for mount in mounts}
    if tree.removed:
        raise _refusal("takes away what it could not")
    for base in tree.bases:
        if base.given is None and base.type not in _MOUNTABLE:
            raise _refusal(f"has a {base.type}")
        if base.given is not None and not known:
            raise _refusal("shows again what is mounted elsewhere")
    for index, node in enumerate(tree.nodes):
        shown = tree.bases[node.base] if node.base >= 0 else None
        given = node.given or (shown.given if shown else None)
        if given is None:
            if shown and shown.type in _WHOLE:
                _refuse_partly_seen(shown.type, node, mounts)
            continue
        if node.ids:
            raise _refusal("maps ids")
        above = tree.nodes[node.parent] if node.parent >= 0 else None
        if node.given and not (node.flags == UNCHANGED and _stays(node, above, givens)):
            raise _refusal("moves or changes what it could not")
        if not known:
            if node.attributes != UNCHANGED:
                raise _refusal("changes what it could not")
            continue
        mount = givens.get(given)
        if mount is None:
            continue  # the restore says so
        if table.Spread(mount).group:
            raise _refusal(f"would be seen outside, as {os.fsdecode(mount.point)} is shared")
        _refuse_unlocked(node, mount)
        if node.given is None:
            _refuse_uncovered(tree, index, mount, mounts)


def _stays(node: Node, above: Node | None, givens: Mapping[Given, Mount]) -> bool:
    """Tell whether one of the container's mounts is left where it is, or put there again."""
    if above is None:
        return True
    mount = givens.get(node.given) if node.given else None
    parent = givens.get(above.given) if above.given else None
    if mount is None or parent is None:
        return False
    return (mount.parent, node.place) == (parent.mnt_id, table.place(mount, parent))


def _refuse_unlocked(node: Node, mount: Mount) -> None:
    locked = options.attributes(mount.options) & _LOCKED
    if node.attributes != UNCHANGED and locked & ~node.attributes:
        raise _refusal(f"allows more at {os.fsdecode(mount.point)} than the container's")


def _refuse_partly_seen(kind: str, node: Node, mounts: list[Mount]) -> None:
    """Refuse a new proc or sysfs unless a whole one is there that allows no less."""
    covered = {mount.parent for mount in mounts}
    for mount in mounts:
        if mount.type == kind and mount.root == b"/" and mount.mnt_id not in covered:
            locked = options.attributes(mount.options) & _LOCKED
            if not locked or (node.attributes != UNCHANGED and not locked & ~node.attributes):
                return
    raise _refusal(f"has a {kind}, of which the container sees only a part")


def _refuse_uncovered(tree: MountTree, index: int, mount: Mount, mounts: list[Mount]) -> None:
    """Refuse a copy of a mount in which something is seen that is covered there."""
    root = tree.nodes[index].root
    covers = [node.place for node in tree.nodes if node.parent == index]
    for other in mounts:
        if other.parent != mount.mnt_id:
            continue
        hidden = table.relative(other.point, mount.point)
        if hidden == ROOT != root:
            raise _refusal(f"shows what {os.fsdecode(other.point)} covers")
        if root == ROOT:
            place = hidden
        elif hidden == root or hidden.startswith(root + b"/"):
            place = table.relative(hidden, root)
        else:
            continue
        if not any(cover in (place, ROOT) or place.startswith(cover + b"/") for cover in covers):
            raise _refusal(f"shows what {os.fsdecode(other.point)} covers")


def _refusal(what: str) -> UnsupportedResource:
    return UnsupportedResource(
        f"a user namespace of the image {what}: the new container may not do that (CAP_SYS_ADMIN)",
        hint="add CAP_SYS_ADMIN to process.capabilities of config.json",
    )
