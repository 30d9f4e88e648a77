"""Held mounts beside those that were made for the container: which are still there as they were."""

import os
from collections import Counter
from collections.abc import Collection, Sequence

from woodfrog.errors import UnsupportedResource
from woodfrog.kernel.procfs.mountinfo import Mount, parse_mount, read_mounts
from woodfrog.resources.mount_tree import options, table
from woodfrog.resources.mount_tree.records import OUTSIDE


def refuse_new(init: int, created: list[str]) -> None:
    """Refuse mounts that were made inside, whose files would be missed among those of the root."""
    before = Counter(parse_mount(os.fsencode(line)).point for line in created)
    new = Counter(mount.point for mount in read_mounts(init)) - before
    if new:
        raise UnsupportedResource(
            f"something was mounted at {', '.join(map(os.fsdecode, sorted(new)))} since the"
            " container was created, which is not among its root's files"
        )


class Comparison:
    """`created` are the mounts as they were made, `now` those that are there.

    `own` are the mount points of the container's own tmpfs. `kept` are those of `created` that are
    still there, by their ids; `groups` the peer groups that those made were in.
    """

    def __init__(
        self, created: Sequence[Mount], now: Sequence[Mount], own: Collection[str]
    ) -> None:
        self.created = created
        self.own = {os.fsencode(os.path.normpath(path)) for path in own}
        self.by_id = {mount.mnt_id: mount for mount in now}
        self.kept = self._find_kept()
        self._groups_inside = {table.Spread(mount).group for mount in now} - {0}
        self.groups = {table.Spread(mount).group for mount in created} - {0}

    def is_changed(self, mount: Mount) -> bool:
        """Tell whether a mount is new, or another than it was made."""
        before = self.kept.get(mount.mnt_id)
        if before is None:
            return True
        return (
            self.is_moved(mount, before)
            or before.options != mount.options
            or self.spreads_otherwise(mount, before)
            or self.has_other_options(mount, before)
        )

    def is_moved(self, mount: Mount, before: Mount) -> bool:
        """Tell whether it stands elsewhere by now."""
        if before.parent != mount.parent:
            return mount.parent in self.by_id
        above, above_before = self.by_id.get(mount.parent), self.kept.get(mount.parent)
        return (
            above is not None
            and above_before is not None
            and table.place(before, above_before) != table.place(mount, above)
        )

    def has_other_options(self, mount: Mount, before: Mount) -> bool:
        """Tell whether the container's own file system has got other options."""
        own = (
            before.point in self.own if before.type in options.IN_MEMORY else before.type == "proc"
        )
        return own and mount.super_options != before.super_options

    def spreads_otherwise(self, mount: Mount, before: Mount) -> bool:
        """Tell whether others share it with others than before."""
        was, spread = table.Spread(before), table.Spread(mount)
        # Which group outside tells it may change without its doing.
        return (was.group, OUTSIDE if was.master else 0, was.unbindable) != (
            spread.group,
            self.master(spread),
            spread.unbindable,
        )

    def master(self, spread: table.Spread) -> int:
        """Return the group that tells it what happens: 0, one inside, or OUTSIDE."""
        if not spread.master:
            return 0
        inside = self._groups_inside - self.groups
        return spread.master if spread.master in inside else OUTSIDE

    def _find_kept(self) -> dict[int, Mount]:
        """Return those of create's mounts that are there, as they were made.

        An id may be another mount's by now; one that shows the same is as good.
        """
        return {
            mount.mnt_id: mount
            for mount in self.created
            if (now := self.by_id.get(mount.mnt_id)) is not None and self._shows(now, mount)
        }

    def _shows(self, now: Mount, before: Mount) -> bool:
        """Tell whether two mounts show the same, which may have been deleted or renamed outside.

        What is renamed is under a path then that nobody inside could have bound.
        """
        if (now.device, now.type, now.source) != (before.device, before.type, before.source):
            return False
        if now.root in (before.root, before.root + table.DELETED):
            return True
        seen = any(one.device == now.device and table.is_in(now, one) for one in self.created)
        return now.point == before.point and not seen
