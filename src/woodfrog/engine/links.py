"""Where magic links of /proc lead: to names, or to memory and files that have none, each once."""

import os
import stat
from collections.abc import Sequence

from woodfrog.engine.places import Place
from woodfrog.engine.shared_objects import SharedObject
from woodfrog.errors import UnsupportedResource
from woodfrog.kernel.procfs.maps import Mapping as KernelMapping
from woodfrog.resources import deleted_files, shared_memory
from woodfrog.resources.files.open_file import ACCESS_MODE, OpenFile
from woodfrog.resources.memory import PROT_EXEC, Mapping


class Links:
    """What links of a held container lead to; `objects` are those without a name, by inode."""

    def __init__(self) -> None:
        self.objects: dict[tuple[int, int], SharedObject | deleted_files.Found] = {}
        # Inodes that O_TMPFILE made.
        self.unnamed: set[tuple[int, int]] = set()
        # Mapped files that were found at their paths, and may be executed if they are.
        self._seen: set[tuple[object, ...]] = set()

    def refuse_unseen(
        self,
        pid: int,
        place: Place,
        mappings: Sequence[Mapping],
        listed: Sequence[KernelMapping],
    ) -> None:
        """Refuse mappings of files that are not found in a process's own mount namespace, `place`.

        `listed` are all mappings as the kernel tells them.
        """
        known = {one.start: (one.device, one.inode) for one in listed if one.inode}
        for one in mappings:
            if not one.path:
                continue
            key = (place.number, one.path, known.get(one.start), one.protection & PROT_EXEC)
            if key in self._seen:
                continue
            link = f"/proc/{pid}/map_files/{one.start:x}-{one.end:x}"
            if not place.names.stands_at(one.path, os.stat(link)):
                raise UnsupportedResource(
                    f"has {os.fsdecode(one.path)} mapped, which is not found in its mount"
                    " namespace, or is hidden by a mount; that cannot be saved yet"
                )
            if one.protection & PROT_EXEC and place.forbids_programs(one.path):
                raise UnsupportedResource(
                    f"has {os.fsdecode(one.path)} mapped, and may execute what is in it, on a mount"
                    " that forbids this by now (noexec); that cannot be saved yet"
                )
            self._seen.add(key)

    def object_at(self, link: str, place: Place) -> tuple[bytes, int]:
        """Return where a magic link leads, and the id of that if it has no name, else 0.

        `place` is the mount namespace in which that is to be found again.
        """
        found = os.stat(link)
        target, number = self.name_at(link, found, place)
        # What is in /proc/sys is another in each namespace of whoever looks.
        is_found = place.names.stands_at(target, found) or place.is_of_proc(found.st_dev)
        if not number and not is_found:
            raise UnsupportedResource(
                f"{os.fsdecode(target)} is not found in the process's mount namespace, or is hidden"
                " by a mount, or its own mount was taken away (umount -l), which cannot be saved"
                " yet",
                hint="a directory that a process works in is found again once it has left it (cd)",
            )
        return target, number

    def name_at(self, link: str, found: os.stat_result, place: Place) -> tuple[bytes, int]:
        """Return the same, wherever it is to be found; `found` is what the link leads to."""
        target = os.readlink(os.fsencode(link))
        target = place.mounted(target, found)
        if shared_memory.is_one(target) or is_deleted(target, found, place):
            number = self.without_name(link, target, place)
            return target.removesuffix(deleted_files.DELETED), number
        return target, 0

    def without_name(self, link: str, name: bytes, place: Place) -> int:
        """Return the id of the shared memory or deleted file that a magic link leads to."""
        if shared_memory.is_one(name):
            fd = os.open(link, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return self.memory(fd, name)
            finally:
                os.close(fd)
        return self.deleted_file(link, name, place)

    def memory(self, fd: int, name: bytes) -> int:
        """Return the id of shared memory that a descriptor of ours names."""
        found = os.fstat(fd)
        key = (found.st_dev, found.st_ino)
        if key not in self.objects:
            memfd = shared_memory.describe(name)
            # Opened anew: seeking in it must not move the container's own position.
            ours = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
            self.objects[key] = SharedObject(len(self.objects) + 1, ours, memfd)
        return self.objects[key].number

    def mounted_file(self, link: str, path: bytes, place: Place) -> int:
        """Return the id of a deleted file that is mounted, and had this path."""
        found = os.stat(link)
        if (found.st_dev, found.st_ino) in self.unnamed:
            raise UnsupportedResource("shows a file of O_TMPFILE, which cannot be saved yet")
        return self.deleted_file(link, path, place)

    def deleted_file(
        self, link: str, target: bytes, place: Place, lessee: OpenFile | None = None
    ) -> int:
        """Return the id of a deleted file; with a `lessee` nobody else may open it."""
        found = os.stat(link)
        key = (found.st_dev, found.st_ino)
        if key not in self.objects:
            other = b""
            if found.st_nlink and not stat.S_ISDIR(found.st_mode):
                other = place.names.other_name(target, found)
            self.objects[key] = deleted_files.Found(
                len(self.objects) + 1,
                _still_open(lessee) if lessee else deleted_files.open_found(link),
                target.removesuffix(deleted_files.DELETED),
                other,
                unnamed=key in self.unnamed and not other,
                mounts=place.number,
                is_leased=lessee is not None,
            )
        return self.objects[key].number

    def close(self) -> None:
        """Close what was opened."""
        for one in self.objects.values():
            os.close(one.fd)
        self.objects.clear()


def is_deleted(target: bytes, found: os.stat_result, place: Place) -> bool:
    """Tell whether a magic link of /proc, which reads `target`, leads to a deleted file."""
    return target.endswith(deleted_files.DELETED) and not place.names.stands_at(target, found)


def _still_open(file: OpenFile) -> int:
    """Return a descriptor of ours of a file that nobody else may open."""
    if file.flags & ACCESS_MODE == os.O_WRONLY:
        raise UnsupportedResource(
            f"has a lease on {os.fsdecode(file.target)}, which is open for writing only: reading it"
            " would break that"
        )
    return os.dup(file.descriptor)
