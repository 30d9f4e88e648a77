"""Bind mounts: a directory or file seen in a second place, with flags and ids of its own."""

from __future__ import annotations

import os
import stat

from woodfrog.errors import SpecError
from woodfrog.kernel import mounts as m
from woodfrog.kernel.caller import HERE
from woodfrog.runtime.mount_options import LOCKABLE, PER_MOUNT, TIMES, Options, flags_of
from woodfrog.runtime.root import Root, by_descriptor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from woodfrog.runtime.mount_sources import Sources


def bind(
    root: Root,
    position: int,
    destination: str,
    options: Options,
    sources: Sources,
    check_place: Callable[[Root, int, int], None],
) -> None:
    """Bind the source of the config's mount `position`."""
    is_mapped = sources.is_mapped(position)
    from_ = sources.tree(position) if is_mapped else sources.open(position)
    try:
        is_directory = stat.S_ISDIR(os.fstat(from_).st_mode)
        at = root.open_or_make(destination, directory=is_directory)
        try:
            check_place(root, at, from_)
            if is_mapped:
                m.attach(HERE, from_, at)
            else:
                root.mount(by_descriptor(from_), at, None, options.flags & (m.MS_BIND | m.MS_REC))
        except NotADirectoryError:
            kind = "directory" if is_directory else "file"
            raise SpecError(
                f"the source {sources.path(position)} is a {kind}, but {destination} in the"
                " container is not: not a directory"  # which docker looks for
            ) from None
        finally:
            os.close(at)
        if (options.flags | options.cleared) & PER_MOUNT:
            set_flags(root, destination, options.flags & PER_MOUNT, options.cleared)
    finally:
        os.close(from_)


def set_flags(root: Root, place: str, flags: int, cleared: int = 0) -> None:
    """Give a new bind mount flags of its own instead of those that it has from its source.

    `cleared` are those that it must not have.
    """
    wanted = m.MS_REMOUNT | m.MS_BIND | flags
    at = root.open(place)
    try:
        try:
            root.mount(None, at, None, wanted)
        except PermissionError:
            # In a user namespace the flags of what comes from outside are locked. Add to them,
            # unless the config asks in so many words for one of them to be gone.
            has = flags_of(at)
            if has & cleared & LOCKABLE:
                raise
            # The kernel would take MS_NOATIME with MS_RELATIME, and do one of them.
            if flags & TIMES and flags & TIMES != has & TIMES:
                raise
            root.mount(None, at, None, wanted | has & LOCKABLE)
    finally:
        os.close(at)
