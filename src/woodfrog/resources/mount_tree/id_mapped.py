"""Mounts with an id map of their own (mount_setattr(2), MOUNT_ATTR_IDMAP)."""

import os
from collections.abc import Mapping
from functools import cached_property

from woodfrog.errors import UnsupportedResource
from woodfrog.kernel import mount_ids
from woodfrog.kernel.procfs.id_maps import IdMaps
from woodfrog.kernel.procfs.mountinfo import Mount
from woodfrog.resources.mount_tree import options
from woodfrog.resources.mount_tree.records import Given


class IdMapped:
    """The id maps of the mounts that `view` sees, by those of create's that these show.

    `given` has create's mounts by their ids. Maps of mounts `in_user_namespace` can't be saved.
    """

    def __init__(
        self,
        view: int,
        created: list[Mount],
        given: Mapping[int, Given],
        *,
        in_user_namespace: bool,
    ) -> None:
        self._view = view
        self._created = created
        self._given = given
        self._in_user_namespace = in_user_namespace

    def map_to_make(self, mount: Mount, shown: Given | None) -> IdMaps | None:
        """Return the id map that a mount must get; None if it has none, or that of what it shows.

        `shown` is the mount of create's of which it is one.
        """
        maps_ids = options.maps_ids(mount.options)
        above = next((one for one in self._created if self._given[one.mnt_id] == shown), None)
        if above is None or not options.maps_ids(above.options):
            if maps_ids and (self._in_user_namespace or mount.mnt_id not in self._known):
                raise UnsupportedResource(
                    "maps ids in a user namespace, or on a kernel that doesn't tell how (before"
                    " Linux 6.15), which cannot be saved"
                )
            return self._known[mount.mnt_id] if maps_ids else None
        known = self._known.get(mount.mnt_id)
        if known is None or known != self._known.get(above.mnt_id):
            raise UnsupportedResource(
                f"has not the id map of {os.fsdecode(above.point)}, which it shows; it cannot be"
                " saved yet"
            )
        return None

    @cached_property
    def _known(self) -> dict[int, IdMaps]:
        return mount_ids.id_maps(self._view)
