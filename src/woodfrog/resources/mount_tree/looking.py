"""What has become of a held container's mounts since `create` made them."""

import errno
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager

import msgspec

from woodfrog.errors import UnsupportedResource
from woodfrog.kernel.procfs.mountinfo import Mount, read_mounts
from woodfrog.resources import ids
from woodfrog.resources.file_entry import ROOT
from woodfrog.resources.file_tree import WritePages
from woodfrog.resources.mount_tree import copies, ghosts, options, table
from woodfrog.resources.mount_tree.comparing import Comparison
from woodfrog.resources.mount_tree.contents import Contents, refuse_filled, refuse_unreadable
from woodfrog.resources.mount_tree.detached import Detached
from woodfrog.resources.mount_tree.id_mapped import IdMapped
from woodfrog.resources.mount_tree.records import (
    AS_IT_COMES,
    OUTSIDE,
    PRIVATE,
    UNBINDABLE,
    Given,
    MountTree,
    Node,
)
from woodfrog.resources.mount_tree.showing import Shown

NOT_MOUNTED = -1
# File systems that can be in use, or have files that are kept.
_WITH_FILES = (*options.IN_MEMORY, "devpts", "bpf")


class ChangedMounts:
    """What has changed, and copies of the mounts whose files the image needs."""

    def __init__(
        self,
        init: int,
        view: int,
        created: list[Mount],
        own: Collection[str],
        *,
        nested: bool = False,
        now: list[Mount] | None = None,
        namespaces: Mapping[str, int],
        pid_namespaces: Mapping[str, int] | None = None,
        locked: bool = False,
        late: bool = False,
    ) -> None:
        """Compare with the mounts that `create` has noted.

        `view` is a process that sees the container from its root, `own` are the mount points of
        the container's own tmpfs. In a `nested` mount namespace `view` is one of that, `created`
        are those of the namespace that it is a copy of, by the ids that they have there. `now` are
        those that count, if not all do; procs of `pid_namespaces`, by their links, may be among
        them, and files to which some of `namespaces` are bound. `locked`: it belongs to a user
        namespace that a program made. `late`: they are made when all files are open.
        """
        self._is_late = late
        self._locked = locked
        self._init, self._view = init, view
        self._nested = nested
        self._maps = ids.maps_of(init)
        self._created = created
        self._givens = table.givens(self._created)
        self._id_mapped = IdMapped(
            view, created, self._givens, in_user_namespace=bool(self._maps or locked)
        )
        # Those of sockets' files and of terminals, and what else has changed when they are made.
        self.late: ChangedMounts | None = None
        self.late_ids = frozenset[int]()
        self._now = self._in_time(read_mounts(view) if now is None else now, namespaces)
        self._was = Comparison(created, self._now, own)
        self._by_id, self._kept = self._was.by_id, self._was.kept
        self._shown = Shown(
            init,
            view,
            created,
            self._now,
            self._kept.keys(),
            namespaces=namespaces,
            pid_namespaces=pid_namespaces or {},
        )
        self._nodes: list[Node] = []
        self._index: dict[int, int] = {}
        self._copies: dict[int, int] = {}
        # Those of create's that hide others, which are needed.
        self._lifted = set[int]()
        self._hidden = self._hidden_at_first()
        # Mounts of what was deleted since.
        self._ghosts: list[Mount] = []
        self._removed = self._gone()
        self._changed = False
        self._look_at_all()

    def _in_time(self, everything: list[Mount], namespaces: Mapping[str, int]) -> list[Mount]:
        """Look at late mounts apart; return the others."""
        if not self._nested and not self._is_late:
            self.late_ids = table.late(self._view, everything, self._created)
        in_time = [mount for mount in everything if mount.mnt_id not in self.late_ids]
        if self.late_ids:
            self.late = ChangedMounts(
                self._init,
                self._view,
                in_time,
                (),
                now=everything,
                namespaces=namespaces,
                late=True,
            )
            self.late.refuse_ghosts()
        return in_time

    def _hidden_at_first(self) -> set[int]:
        """Return file systems in memory that were hidden when the container began.

        Late mounts find them with their files.
        """
        if self._is_late:
            return set()
        return {
            mount.mnt_id
            for mount in self._created
            if mount.mnt_id in self._kept
            and mount.type in options.IN_MEMORY
            and mount.root == b"/"
            and table.covering(self._created, [mount])
        }

    def _gone(self) -> list[Given]:
        """Return those of create's that are there no more."""
        removed = [
            self._givens[mount.mnt_id] for mount in self._created if mount.mnt_id not in self._kept
        ]
        # Those of a root that is another now are gone with it.
        return [] if self._has_another_root() else removed

    def _look_at_all(self) -> None:
        """Look at what has changed, and copy what is needed of it."""
        changed = {mount.mnt_id for mount in self._now if self._was.is_changed(mount)}
        self._changed = bool(self._removed or changed or self.late)
        if self._nested and self._changed:
            self._refuse_peers()
        for mount in table.making_order(self._now) if changed else ():
            if mount.mnt_id in changed:
                self._look_at(mount)
        if self._changed:
            self._copies = self._copy()
            try:
                self._refuse_contents()
            except BaseException:
                self.close()
                raise

    def _refuse_peers(self) -> None:
        """Refuse mounts that a nested namespace shares with its origin, but not all of them."""
        for mount in self._now:
            if table.Spread(mount).group in self._was.groups:
                raise UnsupportedResource(
                    f"has {os.fsdecode(mount.point)} shared between two mount namespaces, of which"
                    " one has other mounts, which cannot be saved yet"
                )

    def _has_another_root(self) -> bool:
        lowest = next(mount for mount in self._now if mount.parent not in self._by_id)
        return self._nested and lowest.mnt_id not in self._kept

    def add_detached(self, found: Collection[Detached]) -> None:
        """Add mounts that are attached nowhere."""
        if not found:
            return
        for one in found:
            base, root = self._shown.base(one.mount)
            if root.endswith(table.DELETED) or options.maps_ids(one.mount.options):
                raise UnsupportedResource(
                    "a mount that is attached nowhere shows what was deleted, or has an id map,"
                    " which cannot be saved yet"
                )
            self._nodes.append(
                Node(
                    base=base,
                    root=root,
                    detached=one.number,
                    attributes=options.attributes(one.mount.options),
                )
            )
        if not self._changed:
            self._changed = True
            self._copies = self._copy()
        self._now = [*self._now, *(one.mount for one in found)]
        self._shown.see(one.mount for one in found)
        for one in found:
            if one.copy >= 0:
                self._copies[one.mount.mnt_id] = os.dup(one.copy)
        self._refuse_contents()

    def _copy(self) -> dict[int, int]:
        try:
            needed = self._needed_copies()
            return copies.copy(self._view, needed, self._now, locked=self._locked)
        except OSError as error:
            if (self._maps or self._nested) and error.errno == errno.EINVAL:
                raise UnsupportedResource(
                    "something was mounted over a tmpfs in a user namespace, which cannot be saved"
                ) from error
            raise

    def close(self) -> None:
        """Let go of the copies."""
        if self.late:
            self.late.close()
        for fd in self._copies.values():
            os.close(fd)

    @property
    def kept(self) -> AbstractSet[int]:
        """Return the ids of the mounts that are as `create` made them."""
        return self._kept.keys()

    def _look_at(self, mount: Mount) -> None:
        """Add what a mount needs to be made again."""
        before = self._kept.get(mount.mnt_id)
        with _naming(mount):
            self._add(
                mount, self._made(mount) if before is None else self._changed_given(mount, before)
            )

    def _add(self, mount: Mount, node: Node) -> None:
        if mount.mnt_id in self._index:
            # One of create's, upon which something else was mounted before.
            self._nodes[self._index[mount.mnt_id]] = node
            return
        self._index[mount.mnt_id] = len(self._nodes)
        self._nodes.append(node)
        if node.given:
            self._lift_covers(mount)

    def _lift_covers(self, mount: Mount) -> None:
        """Have create's mounts that hide one of them moved away at the restore, and back."""
        covers = table.covering(self._created, [self._kept[mount.mnt_id]])
        for cover in self._created:
            if cover.mnt_id not in covers & self._kept.keys() - self._lifted:
                continue
            if cover.mnt_id in self._index:
                raise UnsupportedResource(
                    f"needs a mount that the config's at {os.fsdecode(cover.point)} covers, which"
                    " cannot be saved yet",
                    hint="mount it but once in the bundle's config.json",
                )
            self._lifted.add(cover.mnt_id)
            self._look_at(self._by_id[cover.mnt_id])

    def _parent(self, mount: Mount) -> int:
        """Return the index of the mount that another stands in; one of create's is added.

        The root of a nested namespace stands in none.
        """
        above = self._by_id.get(mount.parent)
        if above is None and self._nested:
            return -1
        if above is None or (mount.point == b"/" and above.point == b"/" and not self._nested):
            raise UnsupportedResource("stands over the container's root, which cannot be saved")
        if above.mnt_id not in self._index:
            self._add(above, Node(given=self._givens[above.mnt_id]))
        spread = table.Spread(above)
        if spread.group in self._was.groups:
            raise UnsupportedResource("spreads to outside the container, which cannot be saved")
        return self._index[above.mnt_id]

    def _made(self, mount: Mount) -> Node:
        base, root = self._shown.base(ghosts.as_it_was(mount))
        if mount.root.endswith(table.DELETED) and root != ROOT:
            self._ghosts.append(mount)
        if mount.type == "devpts" and root not in (ROOT, b"ptmx") and not self._is_late:
            raise UnsupportedResource(
                "shows a terminal that is mounted over, which cannot be saved"
            )
        parent = self._parent(mount)
        spread = table.Spread(mount)
        if spread.group in self._was.groups:
            raise UnsupportedResource("spreads to outside the container, which cannot be saved")
        master = self._was.master(spread)
        if master == OUTSIDE and not self._has_master(self._shown.bases[base].given, spread.master):
            raise UnsupportedResource("was mounted from outside, which cannot be saved")
        propagation = AS_IT_COMES if master or spread.group else PRIVATE
        ids = self._id_mapped.map_to_make(mount, self._shown.bases[base].given)
        return Node(
            base=base,
            root=root,
            users=ids.users.runs if ids else [],
            groups=ids.groups.runs if ids else [],
            parent=parent,
            place=table.place(mount, self._by_id[mount.parent]) if parent >= 0 else ROOT,
            attributes=options.attributes(mount.options),
            propagation=UNBINDABLE if spread.unbindable else propagation,
            group=spread.group,
            master=master,
        )

    def _has_master(self, given: Given | None, master: int) -> bool:
        return any(
            table.Spread(mount).master == master
            for mount in (*self._created, *self._now)
            if self._givens.get(mount.mnt_id) == given and given is not None
        )

    def _changed_given(self, mount: Mount, before: Mount) -> Node:
        is_moved = self._was.is_moved(mount, before) or mount.mnt_id in self._lifted
        node = Node(given=self._givens[mount.mnt_id])
        if is_moved:
            node = msgspec.structs.replace(
                node,
                parent=self._parent(mount),
                place=table.place(mount, self._by_id[mount.parent]),
            )
        remounted = self._was.has_other_options(mount, before)
        if before.options != mount.options or remounted:
            node = msgspec.structs.replace(node, attributes=options.attributes(mount.options))
        if remounted:
            flags, data = self._shown.options(mount)
            node = msgspec.structs.replace(node, flags=flags, options=data)
        if self._was.spreads_otherwise(mount, before):
            spread = table.Spread(mount)
            if table.Spread(before).group and not self._nested:
                raise UnsupportedResource(
                    "was shared with the outside and is so no more, which cannot be saved"
                )
            master = self._was.master(spread)
            propagation = AS_IT_COMES if master or spread.group else PRIVATE
            node = msgspec.structs.replace(
                node,
                propagation=UNBINDABLE if spread.unbindable else propagation,
                group=spread.group,
                master=master,
            )
        return node

    def _needed_copies(self) -> set[int]:
        """Return the ids of mounts whose files must be seen without what covers them."""
        needed = {
            mount.mnt_id for _, _, mounts in self._shown.systems(_WITH_FILES) for mount in mounts
        }
        needed |= {mount.mnt_id for mount in self._ghosts} | self._hidden
        return needed | {
            mount.mnt_id for mount in self._kept.values() if mount.point in self._was.own
        }

    def refuse_ghosts(self) -> None:
        """Refuse mounts of what was deleted, where that is made before them."""
        for mount in self._ghosts:
            with _naming(mount):
                raise UnsupportedResource("shows what was deleted, which cannot be saved yet")

    def name_ghosts(
        self, other_name: ghosts.OtherName, number: Callable[[str, bytes], int]
    ) -> None:
        """Say which deleted files mounts show.

        `number` gives the id of one, by a link to it and the path that it had; `other_name` another
        name that it still has, which is mounted instead, or nothing.
        """
        for mount in self._ghosts:
            place = self._index[mount.mnt_id]
            with _naming(mount):
                link = ghosts.link(self._copies.get(mount.mnt_id))
                path = ghosts.path(mount, self._now)
                if other := ghosts.other(link, path, other_name):
                    base, root = self._shown.base(ghosts.under(other, mount, self._now))
                    changes = {"base": base, "root": root}
                else:
                    changes = {"deleted": number(link, path)}
            self._nodes[place] = msgspec.structs.replace(self._nodes[place], **changes)

    def _refuse_contents(self) -> None:
        for _, kind, mounts in self._shown.systems(_WITH_FILES):
            for mount in mounts:
                if mount.mnt_id not in self._copies:
                    continue  # nobody sees it
                with _naming(mount):
                    if kind in options.IN_MEMORY and options.maps_ids(mount.options):
                        raise UnsupportedResource(
                            "is a file system in memory that is seen only with an id map, which"
                            " cannot be saved yet",
                            hint="mount it without, too",
                        )
                    refuse_unreadable(kind, self._copies[mount.mnt_id])
        for number in self._hidden & self._copies.keys():
            with _naming(self._kept[number]):
                refuse_filled(self._kept[number], self._copies[number], self._created)

    @property
    def shows_others(self) -> bool:
        """Whether mounts show parts of what was mounted before."""
        return self._shown.are_others

    def copy_of(self, destination: str) -> int | None:
        """Return a descriptor of a copy of the container's own tmpfs, or NOT_MOUNTED any more.

        Where nothing has changed there is none: it can be reached by its path.
        """
        point = os.fsencode(os.path.normpath(destination))
        found = [mount.mnt_id for mount in self._created if mount.point == point]
        if not self._changed or not found:
            return None
        # Its id may be another mount's by now.
        if found[-1] in self._hidden or found[-1] not in self._kept:
            return NOT_MOUNTED
        return self._copies.get(found[-1], NOT_MOUNTED)

    def in_memory(self) -> Iterator[tuple[int, Mount, int]]:
        """Yield the file systems in memory that programs made, each by the index of its base.

        With a mount that shows all of it, and a descriptor of a copy of that. Raises
        UnsupportedResource if there is none.
        """
        for index, _, mounts in self._shown.systems(options.IN_MEMORY):
            whole = mounts[0] if mounts else None
            if whole is None or whole.root != b"/" or whole.mnt_id not in self._copies:
                raise UnsupportedResource(
                    "programs see only a part of a tmpfs that they made, which a rollback in place"
                    " can't set back",
                    hint="restore the image into a new container instead",
                )
            yield index, whole, self._copies[whole.mnt_id]

    def record(
        self, write_pages: WritePages, leased: Mapping[tuple[int, int], int]
    ) -> MountTree | None:
        """Return the record, once the files of new file systems can be stored."""
        late = self.late.record(write_pages, leased) if self.late else None
        if not self._changed:
            return None
        bases = list(self._shown.bases)
        contents = Contents(self._view, self._maps, self._copies, locked=self._locked)
        for index, _, mounts in self._shown.systems(options.IN_MEMORY):
            entries = [
                entry for mount in mounts for entry in contents.entries(mount, write_pages, leased)
            ]
            bases[index] = msgspec.structs.replace(bases[index], entries=entries)
        return MountTree(bases=bases, nodes=self._nodes, removed=self._removed, late=late)


@contextmanager
def _naming(mount: Mount) -> Iterator[None]:
    try:
        yield
    except UnsupportedResource as error:
        raise UnsupportedResource(
            f"what was mounted or changed at {os.fsdecode(mount.point)} {error}", hint=error.hint
        ) from error
