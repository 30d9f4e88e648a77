"""The directories that an overlay was made of, which must be found again where they were."""

import os

from woodfrog.errors import UnsupportedResource
from woodfrog.kernel.procfs.mountinfo import Mount


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
    root = os.fsencode(f"/proc/{view}/root")
    try:
        there = {name for path in layers for name in os.listdir(root + path)}
    except OSError as error:
        raise UnsupportedResource(
            "is an overlay over a directory that is not found any more: "
            f"{os.fsdecode(error.filename.removeprefix(root))}",
            hint="what an overlay is made of must stay where it was",
        ) from error
    seen = os.lstat(root + mount.point)
    is_seen = (os.major(seen.st_dev), os.minor(seen.st_dev)) == mount.device
    shown = os.listdir(root + mount.point) if is_seen and mount.root == b"/" else []
    if lacking := set(shown) - there:
        raise UnsupportedResource(
            f"is an overlay that shows {os.fsdecode(min(lacking))}, which is in none of the"
            " directories that it was made of: others stand there now",
            hint="what an overlay is made of must stay where it was",
        )


def _is_above(point: bytes, path: bytes) -> bool:
    return (path + b"/").startswith(point.rstrip(b"/") + b"/")
