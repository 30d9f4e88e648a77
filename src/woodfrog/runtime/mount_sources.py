"""Where bind mounts come from."""

from __future__ import annotations

import os

from woodfrog.errors import SpecError
from woodfrog.runtime.mount_options import Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Sources:
    """The sources of a config's mounts, opened as they are needed: one may be made by another."""

    def __init__(self, config: dict[str, Any], bundle: str) -> None:
        self._mounts = config.get("mounts") or []
        self._bundle = bundle

    def path(self, position: int) -> str:
        """Return the source's path; relative ones are in the bundle."""
        return os.path.join(self._bundle, self._mounts[position].get("source") or "")

    def is_mapped(self, position: int) -> bool:
        """Tell whether the mount shows other user and group ids than its source."""
        mount = self._mounts[position]
        if mount.get("uidMappings") or mount.get("gidMappings"):
            return True
        return Options(mount.get("options") or []).map_ids

    def open(self, position: int) -> int:
        """Return a descriptor (O_PATH) of a source."""
        try:
            return os.open(self.path(position), os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            destination = self._mounts[position]["destination"]
            raise SpecError(
                f"the source of the mount at {destination} does not exist: {self.path(position)}"
            ) from None

    def tree(self, position: int) -> int:
        """Return a copy of a source's mount with mapped ids, attached nowhere yet."""
        raise SpecError(f"mounts[{position}]: id mappings are not supported yet")
