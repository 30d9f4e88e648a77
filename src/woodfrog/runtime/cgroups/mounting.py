"""A mount of type cgroup: the container sees its own groups, as v1 or v2 lays them out."""

from __future__ import annotations

import os

from woodfrog.kernel import mounts as m
from woodfrog.runtime.bind import set_flags
from woodfrog.runtime.cgroups import places

TYPE_CHECKING = False
if TYPE_CHECKING:
    from woodfrog.runtime.cgroups import Groups
    from woodfrog.runtime.mount_options import Options
    from woodfrog.runtime.root import Root

_KEPT = m.MS_NOSUID | m.MS_NODEV | m.MS_NOEXEC | m.MS_RELATIME | m.MS_NOATIME


def mount(root: Root, destination: str, options: Options, groups: Groups) -> None:
    """Mount the container's groups, and nothing of the host's, at `destination`."""
    at = root.open_or_make(destination, directory=True)
    try:
        if groups["version"] == 2:
            _bind(root, groups["paths"][""], at, destination, options.flags)
            return
        root.mount("tmpfs", at, "tmpfs", options.flags & _KEPT, "mode=755")
    finally:
        os.close(at)
    for name, directory in places.of_hierarchies(places.here(), groups).items():
        place = f"{destination}/{name}"
        at = root.open_or_make(place, directory=True)
        try:
            _bind(root, directory, at, place, options.flags)
        finally:
            os.close(at)
        if "," in name:  # cpu,cpuacct is also known as cpu and as cpuacct
            top = root.open(destination)
            try:
                for single in name.split(","):
                    os.symlink(name, single, dir_fd=top)
            finally:
                os.close(top)
    if options.flags & m.MS_RDONLY:
        set_flags(root, destination, m.MS_RDONLY | options.flags & _KEPT)


def _bind(root: Root, directory: str, at: int, place: str, flags: int) -> None:
    root.mount(directory, at, None, m.MS_BIND | m.MS_REC)
    set_flags(root, place, flags & (_KEPT | m.MS_RDONLY))
