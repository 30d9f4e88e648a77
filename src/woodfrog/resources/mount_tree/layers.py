"""The directories that an overlay was made of, which must be found again where they were."""

import errno
import os

from woodfrog.errors import UnsupportedResource
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE, Caller
from woodfrog.kernel.mounts import open_in_root
from woodfrog.kernel.procfs.mountinfo import Mount
from woodfrog.resources.deleted_files import AT_REMOVEDIR


def refuse_others(view: int, mount: Mount, layers: list[bytes], made: list[Mount]) -> None:
    """Refuse an overlay whose layers are gone, or others by now.

    `view` is a process that sees the mount, `made` are the mounts that programs have made.
    """
    for path in layers:
        if not path.startswith(b"/") or b"/proc/" in path:
            raise UnsupportedResource(
                f"is an overlay over {os.fsdecode(path)}, which cannot be found again"
            )
    # Of several mounts one may hide what the overlay is made of, which is found before that.
    if any(sum(_is_above(one.point, path) for one in made) > 1 for path in layers):
        return
    root = os.open(f"/proc/{view}/root", os.O_PATH | os.O_CLOEXEC)
    try:
        there: set[str] = set()
        for path in layers:
            try:
                there.update(_names(root, path))
            except OSError as error:
                raise UnsupportedResource(
                    "is an overlay over a directory that is not found any more:"
                    f" {os.fsdecode(path)}",
                    hint="what an overlay is made of must stay where it was",
                ) from error
        shown = _names(root, mount.point, mount.device) if mount.root == b"/" else []
    finally:
        os.close(root)
    if lacking := set(shown) - there:
        raise UnsupportedResource(
            f"is an overlay that shows {min(lacking)}, which is in none of the"
            " directories that it was made of: others stand there now",
            hint="what an overlay is made of must stay where it was",
        )


def forget_use(on: Caller, root: int, work: bytes) -> None:
    """Take away what forbids to mount a volatile overlay once more: that it was mounted once.

    `root` is the stub's descriptor of the root in which the work directory is. If a machine has
    crashed, files may lack what no disk had yet, but nothing more than the program asked for.
    """
    marks = work + b"/work/incompat/volatile"
    try:
        found = open_in_root(on, root, marks, os.O_PATH | os.O_DIRECTORY)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return
    for name, how in ((b"dirty\0", 0), (b"../volatile\0", AT_REMOVEDIR)):
        on.call(SYS.UNLINKAT, found, name, how)
    on.call(SYS.CLOSE, found)


def _names(root: int, path: bytes, device: tuple[int, int] | None = None) -> list[str]:
    """Return what is in a directory, as who has that root finds it; nothing on another device."""
    descriptor = open_in_root(HERE, root, path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        found = os.fstat(descriptor).st_dev
        if device not in (None, (os.major(found), os.minor(found))):
            return []
        return os.listdir(descriptor)
    finally:
        os.close(descriptor)


def _is_above(point: bytes, path: bytes) -> bool:
    return (path + b"/").startswith(point.rstrip(b"/") + b"/")
