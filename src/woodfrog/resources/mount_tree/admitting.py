"""Which mounts of an image a new container may have: what it could mount itself, inside."""

import os
from collections.abc import Collection

from woodfrog.errors import UnsupportedResource
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.capability import CAP_SETFCAP, CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN, NAMES
from woodfrog.kernel.namespaces import CLONE_NEWUSER
from woodfrog.kernel.procfs.mountinfo import Mount
from woodfrog.remote.seccomp import Filters
from woodfrog.resources import file_maker
from woodfrog.resources.mount_tree import options
from woodfrog.resources.mount_tree.records import UNCHANGED, MountTree
from woodfrog.resources.mount_tree.table import Givens, Spread


def refuse_wider(
    init: int,
    tree: MountTree,
    *,
    new: bool,
    bounding: int,
    seccomp: bytes | None,
    own: Collection[str],
) -> None:
    """Refuse what the waiting container may not do itself, or can't.

    `new` tells whether its mount namespace is its own, `own` where it has tmpfs.
    """
    if not new:
        raise UnsupportedResource(
            "the image has mounts, but the new container joins a mount namespace",
            hint='give it one of its own: "mount" without a path in linux.namespaces',
        )
    if not may_mount(bounding):
        if tree.may_be_from_outside:
            return
        raise UnsupportedResource(
            "the image has mounts that were made or changed inside, which the new container may not"
            " do (CAP_SYS_ADMIN)",
            hint="add CAP_SYS_ADMIN to process.capabilities of config.json",
        )
    if seccomp is not None and not Filters([seccomp], strict=False).allow(SYS.MOUNT, [None] * 6):
        raise UnsupportedResource(
            "the image has mounts that were made or changed inside, which the new container's"
            " seccomp profile forbids",
            hint="allow mount(2) in linux.seccomp of config.json",
        )
    refuse_wider_ids(tree, bounding, seccomp)
    there = Givens(init)
    for given in tree.needed():
        there.find(given)
    for node in tree.nodes:
        if node.parent >= 0 and (above := tree.nodes[node.parent].given) is not None:
            _refuse_spreading(there.find(above))
        if node.given is not None and node.flags != UNCHANGED:
            found = there.find(node.given)
            options.check(found.type, node.flags, node.options)
            tmpfs = {os.fsencode(os.path.normpath(path)) for path in own}
            if found.type != "proc" and found.point not in tmpfs:
                raise UnsupportedResource(
                    f"the image has other options for {os.fsdecode(found.point)}, which is no file"
                    " system of the new container's own"
                )
    _refuse_spreading(there.root)
    for base in tree.bases:
        what = f"a {base.type} of the image"
        file_maker.refuse_wider(base.entries, None, bounding, what)


def refuse_wider_ids(tree: MountTree, bounding: int, seccomp: bytes | None) -> None:
    """Refuse id maps of mounts that the new container could not have made a user namespace for."""
    mapped = [node for node in tree.nodes if node.ids]
    if not mapped:
        return
    wanted = [CAP_SETUID, CAP_SETGID]
    if any(run[1] == 0 for node in mapped for run in node.users):
        wanted.append(CAP_SETFCAP)
    filters = Filters([seccomp] if seccomp is not None else [], strict=False)
    lacked = [NAMES[number] for number in wanted if not bounding >> number & 1]
    if lacked or not filters.allow(SYS.UNSHARE, [CLONE_NEWUSER, 0, 0, 0, 0, 0]):
        raise UnsupportedResource(
            "the image has mounts with id maps that the new container may not make"
            f" ({', '.join(lacked) or 'unshare(2) in its seccomp profile'})",
            hint="allow that in config.json",
        )


def may_mount(bounding: int) -> bool:
    """Tell whether a container of these capabilities may mount."""
    return bool(bounding >> CAP_SYS_ADMIN & 1)


def _refuse_spreading(mount: Mount) -> None:
    if Spread(mount).group:
        raise UnsupportedResource(
            f"the image has mounts in {os.fsdecode(mount.point)}, which the new container shares"
            " with the outside",
            hint='is linux.rootfsPropagation "shared"? or an option of a mount?',
        )


def refuse_outside(init: int, tree: MountTree) -> None:
    """Refuse to mount what is seen outside; of late mounts that was not known before."""
    there = Givens(init)
    for node in tree.nodes:
        above = tree.nodes[node.parent].given if node.parent >= 0 else None
        if above is not None and above in there:
            _refuse_spreading(there.find(above))
