"""What the lower layers of an overlay show by themselves: what a change above has hidden."""

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from woodfrog.errors import UnsupportedResource
from woodfrog.kernel import mounts
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.procfs.mountinfo import Mount, unescape
from woodfrog.resources.file_tree import Tree

_COMMA, _COLON = r"(?<!\\),", rb"(?<!\\):"
_PLACE = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
# Of a string that fsconfig(2) takes.
_LONGEST = 256


@contextmanager
def shown(mount: Mount, bases: list[bytes]) -> Iterator[Tree]:
    """Show the lower layers of an overlay that nobody in the container has mounted, merged.

    Relative paths are looked for in `bases`. It is an overlay of its own, attached nowhere.
    """
    with ExitStack() as undo:
        options = re.split(_COMMA, mount.super_options)
        places = _opened(options, bases, undo)
        # An overlay without an upper layer has two at least.
        places.append(mounts.new_mount(HERE, "tmpfs", mounts.MOUNT_ATTR_RDONLY))
        undo.callback(os.close, places[-1])
        paths = [b"/proc/self/fd/%d" % place for place in places]
        settings = [(b"lowerdir", b":".join(paths))]
        if len(settings[0][1]) >= _LONGEST:
            settings = [(b"lowerdir+", path) for path in paths]  # Linux 6.5
        if {"redirect_dir=on", "redirect_dir=follow"} & set(options):
            settings.append((b"redirect_dir", b"follow"))
        if "metacopy=on" in options:
            settings.append((b"metacopy", b"on"))
        root = mounts.new_mount(
            HERE,
            "overlay",
            mounts.MOUNT_ATTR_RDONLY | mounts.MOUNT_ATTR_NOSUID | mounts.MOUNT_ATTR_NODEV,
            settings=settings,
            switches=[b"userxattr"] if "userxattr" in options else (),
        )
        undo.callback(os.close, root)
        tree = os.open(f"/proc/self/fd/{root}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        undo.callback(os.close, tree)
        yield Tree(tree)


def _opened(options: list[str], bases: list[bytes], undo: ExitStack) -> list[int]:
    """Open the lower directories, the uppermost first."""
    paths: list[bytes] = []
    for option in options:
        name, _, value = option.partition("=")
        if name == "lowerdir":
            paths += re.split(_COLON, os.fsencode(value))
        elif name in ("lowerdir+", "datadir+"):
            paths.append(os.fsencode(value) if name == "lowerdir+" else b"")
    found = [re.sub(rb"(?s)\\(.)", rb"\1", unescape(path)) for path in paths]
    if not all(found):
        raise UnsupportedResource("the container's overlay has layers that only hold data")
    for base in bases:
        try:
            places = [os.open(os.path.join(base, path), _PLACE) for path in found]
        except OSError:
            continue
        for place in places:
            undo.callback(os.close, place)
        return places
    raise UnsupportedResource(
        f"the lower directories of the container's overlay cannot be found ({os.fsdecode(found[0])}"
        f"{' and others' if len(found) > 1 else ''})",
        hint="restore the image into a new container instead",
    )
