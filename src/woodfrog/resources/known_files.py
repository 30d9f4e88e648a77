"""Files that stay where they are: what is known of them, to tell whether they have changed."""

import os
import stat
from collections.abc import Collection, Iterable
from enum import StrEnum

from woodfrog.errors import UnsupportedResource
from woodfrog.image.record import Record
from woodfrog.kernel import elf, mounts
from woodfrog.kernel.caller import HERE


class FileValidation(StrEnum):
    """What has to be as it was: the size; the build of programs and libraries, too; or nothing."""

    SIZE = "size"
    BUILD_ID = "build-id"
    NONE = "none"


class KnownFile(Record, frozen=True, tag="known-file"):
    """A regular file that is open or mapped; `build_id` is that of a mapped ELF file that has one.

    Its time isn't known: one that came anew from the same layer has another.
    """

    path: bytes
    size: int
    build_id: bytes


def collect(init: int, opened: Iterable[bytes], mapped: Collection[bytes]) -> list[KnownFile]:
    """Look at the files of a held container; what isn't there any more is for others to tell."""
    found = []
    with _Root(init) as root:
        for path in sorted({*opened, *mapped}):
            known = root.look(path, with_build=path in mapped)
            if known is not None:
                found.append(KnownFile(path=path, size=known[0], build_id=known[1]))
    return found


def refuse_changed(
    init: int,
    files: Iterable[KnownFile],
    growing: Collection[bytes],
    validation: FileValidation,
) -> None:
    """Refuse files that the new container has otherwise; those of `growing` may be longer now."""
    if validation is FileValidation.NONE:
        return
    changed = []
    with _Root(init) as root:
        for file in files:
            build = bool(file.build_id) and validation is FileValidation.BUILD_ID
            now = root.look(file.path, with_build=build)
            if now is None:
                continue  # opening it will fail, and tell why
            name = os.fsdecode(file.path)
            if build and now[1] != file.build_id:
                changed.append(f"{name} is another build than at the checkpoint")
            elif now[0] < file.size or (now[0] > file.size and file.path not in growing):
                changed.append(f"{name} had {file.size} bytes at the checkpoint, and has {now[0]}")
    if changed:
        refusal = UnsupportedResource(
            changed[0],
            hint="give the container the files that it had (checkpoint --with-rootfs takes those"
            " along that it has changed), or restore with --file-validation=none",
        )
        for more in changed[1:]:
            refusal.add_note(f"also {more}")
        raise refusal


def refuse_missing(
    init: int, paths: Iterable[bytes], programs: Collection[bytes], *, but_root: bool
) -> None:
    """Refuse files that are to be opened, and that a container hasn't any more.

    Of `programs` that are no regular files, too. With `but_root` not those of its root's own file
    system, which come back.
    """
    with _Root(init) as root:
        for path in paths:
            found = root.stat(path, follow=path in programs)
            if found is None:
                what = "is gone since"
            elif path in programs and not stat.S_ISREG(found.st_mode):
                what = "is no program any more"
            else:
                continue
            if but_root and root.would_hold(path):
                continue
            raise UnsupportedResource(
                f"{os.fsdecode(path)} {what}, and the image does not bring it",
                hint="put it back first; an image made --with-rootfs brings those of the root",
            )


class _Root:
    """A container's root, in which no link leads outside."""

    def __init__(self, init: int) -> None:
        self._root = os.open(f"/proc/{init}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> "_Root":
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._root)

    def stat(self, path: bytes, *, follow: bool = True) -> os.stat_result | None:
        """Return the status of a file, or of a symbolic link itself; None if there is none."""
        flags = os.O_PATH if follow else os.O_PATH | os.O_NOFOLLOW
        try:
            place = mounts.open_in_root(HERE, self._root, path, flags)
        except OSError:
            return None
        try:
            return os.fstat(place)
        finally:
            os.close(place)

    def would_hold(self, path: bytes) -> bool:
        """Tell whether what is to be at a path would be in the root's own file system."""
        above = os.path.dirname(path)
        while (found := self.stat(above)) is None and above != b"/":
            above = os.path.dirname(above)
        return found is not None and found.st_dev == os.fstat(self._root).st_dev

    def look(self, path: bytes, *, with_build: bool) -> tuple[int, bytes] | None:
        """Return size and build id of a regular file, or None if there is none."""
        try:
            place = mounts.open_in_root(HERE, self._root, path, os.O_PATH)
        except OSError:
            return None
        try:
            status = os.fstat(place)
            if not stat.S_ISREG(status.st_mode):
                return None
            return status.st_size, _build_id(place) if with_build else b""
        finally:
            os.close(place)


def _build_id(place: int) -> bytes:
    try:
        file = os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_NOATIME | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return elf.build_id(file)
    except OSError:
        return b""
    finally:
        os.close(file)
