"""The image's mounts, made in a new container by its root stub with the container's own rights.

All happens on a stage: a tmpfs over the container's root, which nobody sees. There stand the file
systems of which mounts are made, each copied from there to its place. Places are found from the
mount that they are in, so that nothing that covers them matters, and no link is followed. Only
when all stand are they let spread what happens in them.
"""

import errno
import os
import stat
from collections.abc import Callable

from woodfrog.errors import while_
from woodfrog.kernel import mounts as m
from woodfrog.kernel import syscalls, user_namespace
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import Argument
from woodfrog.kernel.procfs.id_maps import IdMaps
from woodfrog.kernel.procfs.mountinfo import Mount
from woodfrog.remote import descriptors
from woodfrog.remote.program import ProgramError
from woodfrog.remote.stub import Stub
from woodfrog.resources import credentials, namespaces
from woodfrog.resources.file_entry import ROOT
from woodfrog.resources.file_maker import Maker
from woodfrog.resources.file_tree import Tree
from woodfrog.resources.mount_tree import covered, layers, options
from woodfrog.resources.mount_tree.admitting import may_mount
from woodfrog.resources.mount_tree.ghosts import STAY, Ghosts
from woodfrog.resources.mount_tree.records import (
    OUTSIDE,
    PRIVATE,
    UNBINDABLE,
    UNCHANGED,
    Base,
    Given,
    MountTree,
    Node,
)
from woodfrog.resources.mount_tree.table import Givens

_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_STAGE_ATTRIBUTES = m.MOUNT_ATTR_NOSUID | m.MOUNT_ATTR_NODEV | m.MOUNT_ATTR_NOEXEC


class OneByOne:
    """A stub in which single calls run, each at once. It remembers which descriptors it opened."""

    def __init__(self, stub: Stub) -> None:
        self._stub = stub

    def call(self, number: int, *arguments: Argument) -> int:
        """See Caller."""
        program = self._stub.program()
        result = program.call(number, *arguments)
        self._stub.run(program)
        return program[result]


def restore(
    stub: Stub,
    tree: MountTree,
    *,
    bounding: int,
    permitted: int,
    pages: int,
    base: int,
    namespace: Callable[[Base], int],
    ghosts: Ghosts,
    proc: Callable[[Base], int] | None = None,
    high: int = 0,
) -> dict[int, int]:
    """Make all mounts in a stub's mount namespace; `pages` is the page store, 0 being at `base`.

    Returns the stub's descriptors, at `high` or above, of those that are attached nowhere.

    `namespace` gives the stub's descriptor of one that is bound to a file, `proc` that of a proc
    that shows a nested pid namespace; `ghosts` are the deleted files that are mounted.
    """
    if not may_mount(bounding):
        return {}
    with credentials.with_capabilities(stub, bounding, permitted):
        making = _Making(stub, tree, pages, base, namespace, ghosts, proc, high)
        making.set_up()
        for index, node in enumerate(tree.nodes):
            with while_(f"mounting {os.fsdecode(tree.path(node))}"):
                making.make(index, node)
        making.finish()
    return making.detached


class _Making:
    def __init__(
        self,
        stub: Stub,
        tree: MountTree,
        pages: int,
        base: int,
        namespace: Callable[[Base], int],
        ghosts: Ghosts,
        proc: Callable[[Base], int] | None,
        high: int,
    ) -> None:
        self._ghosts = ghosts
        self._namespace = namespace
        self._proc = proc
        self._stub = stub
        self._on = OneByOne(stub)
        self._init = stub.pid
        self._tree = tree
        self._pages = pages
        self._start = base
        self._opened: list[int] = []
        self._root = self._open(syscalls.openat2(self._on, b"/", os.O_PATH | os.O_DIRECTORY))
        self._stage = -1
        self._givens: dict[Given, int] = {}
        self._bases: dict[int, int] = {}
        self._nodes: dict[int, int] = {}
        self._leaders: dict[int, int] = {}
        self._high = high
        self.detached: dict[int, int] = {}
        self._names = 0

    def _open(self, descriptor: int) -> int:
        self._opened.append(descriptor)
        return descriptor

    def set_up(self) -> None:
        """Put up the stage, and take away what was removed and moved."""
        there = Givens(self._init)
        # One that was removed may be lacking here, too.
        removed = [given for given in self._tree.removed if given in there]
        # Of those a copy would not do.
        changed = {node.given: node.parent >= 0 for node in self._tree.nodes if node.given}
        for given in dict.fromkeys((*self._tree.needed(), *removed)):
            with while_(f"looking for the mount at {os.fsdecode(given.point)}"):
                self._givens[given] = self._find(there.find(given))
        self._stage = self._open(m.new_mount(self._on, "tmpfs", _STAGE_ATTRIBUTES))
        m.attach(self._on, self._stage, self._root)
        for index, base in enumerate(self._tree.bases):
            if base.given is not None:
                shown = self._givens[base.given]
                if shown < 0:
                    shown = self._uncovered(there.find(base.given), there)
                self._bases[index] = self._on_stage(self._copy(shown))
        hidden = {given for given in changed if self._givens[given] < 0}
        for given, is_moved in changed.items():
            if is_moved and given not in hidden:
                self._on_stage(self._givens[given])
        for given in sorted({*removed, *hidden}, key=lambda one: (len(one.point), -one.nth)):
            if self._givens[given] < 0:
                # What hid it is gone by now, or on the stage.
                self._givens[given] = self._find(there.find(given))
            if given in removed:
                if self._givens[given] >= 0:
                    self._take_away(self._givens[given])
            elif self._givens[given] < 0:
                raise covered.refusal(there.find(given))
            elif changed[given]:
                self._on_stage(self._givens[given])

    def _take_away(self, mount: int) -> None:
        """Unmount what a descriptor names the root of, unless it has gone with what it was in."""
        self._on.call(SYS.FCHDIR, mount)
        try:
            m.umount(self._on, ".", m.MNT_DETACH)
        except ProgramError as error:
            if error.errno != errno.EINVAL:
                raise

    def _find(self, mount: Mount) -> int:
        """Open the root of a mount; returns -1 if others cover it, or it has gone with others."""
        resolve = m.RESOLVE_NO_SYMLINKS | m.RESOLVE_NO_MAGICLINKS
        try:
            found = self._open(syscalls.openat2(self._on, mount.point, _PATH, resolve=resolve))
        except ProgramError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise
            return -1
        return found if self._mount_of(found) == mount.mnt_id else -1

    def _uncovered(self, mount: Mount, there: Givens) -> int:
        """Open a copy of a mount that others at the same place cover."""
        below = next((one for one in there.above(mount) if self._find(one) >= 0), None)
        if below is None:
            raise covered.refusal(mount)
        copy = self._on_stage(self._open(covered.copy_of_all(self._on, self._find(below))))
        return self._open(
            covered.uncovered(self._on, copy, mount, below, there.count_covers(mount))
        )

    def _mount_of(self, descriptor: int) -> int:
        with open(f"/proc/{self._init}/fdinfo/{descriptor}", encoding="ascii") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("mnt_id:"))

    def _copy(self, place: int) -> int:
        return self._open(m.clone_mount(self._on, place))

    def _new_name(self, *, directory: bool) -> bytes:
        self._names += 1
        name = str(self._names).encode()
        if directory:
            self._on.call(SYS.MKDIRAT, self._stage, name + b"\0", 0o700)
        else:
            self._on.call(SYS.MKNODAT, self._stage, name + b"\0", stat.S_IFREG | 0o600, 0)
        return name

    def _on_stage(self, mount: int) -> int:
        """Move a mount to the stage; its descriptor stays the same."""
        is_directory = stat.S_ISDIR(os.stat(f"/proc/{self._init}/fd/{mount}").st_mode)
        name = self._new_name(directory=is_directory)
        place = syscalls.openat2(self._on, name, _PATH, directory=self._stage)
        m.attach(self._on, mount, place)
        syscalls.close(self._on, place)
        return mount

    def _base(self, index: int) -> int:
        """Return the root of what is to be mounted; a new file system is made when it is needed."""
        if index not in self._bases:
            base = self._tree.bases[index]
            if base.pid_namespace and self._proc:
                self._bases[index] = self._on_stage(self._open(self._proc(base)))
                return self._bases[index]
            if base.namespace:
                self._bases[index] = self._on_stage(self._copy(self._open(self._namespace(base))))
                return self._bases[index]
            name = self._new_name(directory=True)
            self._on.call(SYS.FCHDIR, self._stage)
            for layer in options.layers(base.options) if base.type == "overlay" else ():
                # Found without magic links, which could lead to what only the stub has.
                found = m.open_in_root(self._on, self._root, layer, os.O_PATH | os.O_DIRECTORY)
                syscalls.close(self._on, found)
            if base.type == "overlay" and (work := options.volatile(base.options)):
                layers.forget_use(self._on, self._root, work)
            # It must be filled first.
            late = m.MS_RDONLY if base.type in options.IN_MEMORY else 0
            self._mount(base, name, base.flags & ~late)
            root = self._open(syscalls.openat2(self._on, name, _PATH, directory=self._stage))
            if base.entries:
                self._fill(root, base)
            if base.flags & late:
                self._mount(base, name, base.flags | m.MS_REMOUNT)
            self._bases[index] = root
        return self._bases[index]

    def _mount(self, base: Base, name: bytes, flags: int) -> None:
        data = os.fsdecode(base.options)
        m.mount(self._on, base.source, name, base.type, flags, data)

    def _fill(self, root: int, base: Base) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        directory = os.open(f"/proc/{self._init}/fd/{root}", flags)
        try:
            maker = Maker(Tree(directory), self._pages, self._start)
            namespaces.as_its_root(self._init, lambda: maker.make(base.entries))
        finally:
            os.close(directory)

    def make(self, index: int, node: Node) -> None:
        """Make or change one mount."""
        if node.given is not None:
            mount = self._givens[node.given]
            if node.flags != UNCHANGED:
                self._on.call(SYS.FCHDIR, mount)
                data = os.fsdecode(node.options)
                m.mount(self._on, None, ".", None, node.flags | m.MS_REMOUNT, data)
        else:
            base = self._base(node.base)
            source = base
            if node.deleted:
                source = self._open(
                    self._ghosts.make(
                        self._on, base, node.root, node.deleted, self._real(node.base)
                    )
                )
            elif node.root != ROOT:
                source = self._within(base, node.root)
            mount = self._copy(source)
            if node.ids:
                self._map_ids(mount, node.ids)
            if node.detached:
                high = syscalls.duplicate_above(self._on, mount, self._high)
                self.detached[node.detached] = high
            elif node.parent < 0:
                # The root of a nested namespace; what has a place may be mounted in.
                self._on_stage(mount)
        self._nodes[index] = mount
        if node.attributes != UNCHANGED:
            # The kernel wants to know each way of access times as a change of all.
            clear = options.ATTRIBUTES | m.MOUNT_ATTR__ATIME
            m.mount_setattr(self._on, mount, set_=node.attributes, clear=clear)
        if node.parent >= 0:
            above = self._nodes[node.parent]
            place = above if node.place == ROOT else self._within(above, node.place)
            m.attach(self._on, mount, place)

    def _map_ids(self, mount: int, maps: IdMaps) -> None:
        """Give a mount that is attached nowhere yet its id map: that of a user namespace."""
        ours = user_namespace.make(maps.users.text, maps.groups.text)
        try:
            ids = descriptors.give(self._stub, [ours])[0]
        finally:
            os.close(ours)
        m.mount_setattr(self._on, mount, set_=m.MOUNT_ATTR_IDMAP, ids=ids)
        syscalls.close(self._on, ids)

    def _real(self, base: int) -> int:
        """Return a mount of the container's that shows all of a base, of which ours is a copy.

        What is mounted later doesn't cover anything in it yet. -1: there is none.
        """
        given = self._tree.bases[base].given
        if given is not None and given not in self._tree.removed:
            return self._givens[given]
        nodes = enumerate(self._tree.nodes)
        whole = (n for n, one in nodes if one.base == base and one.root == ROOT)
        return next((self._nodes[number] for number in whole if number in self._nodes), -1)

    def _within(self, mount: int, path: bytes) -> int:
        """Open a path in a mount, past what else is mounted there, and no link leads away."""
        found = syscalls.openat2(self._on, path, _PATH, directory=mount, resolve=STAY)
        return self._open(found)

    def finish(self) -> None:
        """Let mounts spread what happens in them, and take the stage away."""
        has_own_root = self._tree.is_rooted
        if has_own_root:
            # Then the old root, with the stage in it, covers the new one.
            self._on.call(SYS.FCHDIR, self._nodes[0])
            self._on.call(SYS.PIVOT_ROOT, b".", b".")
        for index, node in enumerate(self._tree.nodes):
            mount = self._nodes[index]
            if node.detached:
                continue
            if node.group:
                leader = self._leader(node.group)
                if leader != mount:
                    self._set(mount, m.MS_PRIVATE)
                    m.join_group(self._on, leader, mount)
            elif node.master or node.propagation in (PRIVATE, UNBINDABLE):
                self._follow(mount, node.master)
            if node.propagation == UNBINDABLE:
                self._set(mount, m.MS_UNBINDABLE)
        for mount in (self._stage, self._root) if has_own_root else (self._stage,):
            self._on.call(SYS.FCHDIR, mount)
            m.umount(self._on, ".", m.MNT_DETACH)
        self._on.call(SYS.FCHDIR, self._nodes[0] if has_own_root else self._root)
        for descriptor in dict.fromkeys(self._opened):
            syscalls.close(self._on, descriptor)

    def _leader(self, group: int) -> int:
        """Return a mount that is in a group; it shows all that others of the group show."""
        if group not in self._leaders:
            index, node = next(
                (index, node)
                for index, node in sorted(
                    enumerate(self._tree.nodes), key=lambda one: one[1].given is None
                )
                if node.group == group
            )
            mount = self._nodes[index]
            if node.given is None:
                mount = self._on_stage(self._copy(self._base(node.base)))
            self._follow(mount, node.master)
            self._set(mount, m.MS_SHARED)
            self._leaders[group] = mount
        return self._leaders[group]

    def _follow(self, mount: int, master: int) -> None:
        """Let a mount be told by a group; with OUTSIDE by whom its base is.

        That it is already; or, in a nested namespace, it tells those of another one, too.
        """
        self._set(mount, m.MS_SLAVE if master == OUTSIDE else m.MS_PRIVATE)
        if master > 0:
            m.join_group(self._on, self._leader(master), mount)
            self._set(mount, m.MS_SLAVE)

    def _set(self, mount: int, propagation: int) -> None:
        m.mount_setattr(self._on, mount, propagation=propagation)
