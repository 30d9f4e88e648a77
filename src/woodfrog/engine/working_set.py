"""What programs touch first when they go on: noted at a restore, brought first by later ones.

It is kept beside the image, in a file of its own, and only says in which order pages come.
"""

import os
import stat
from collections.abc import Mapping

import msgspec

WORKING_SET_NAME = "working-set"
SECONDS = 1.0
_MOST_BYTES = 1 << 20


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Addresses in each process, by its pid inside, in the order in which they were touched."""

    image: str  # the image's digest
    touched: dict[int, list[int]]


class WorkingSet:
    """That of an image, in its directory."""

    def __init__(self, directory: str, digest: str) -> None:
        """Look into the directory; what was noted of another image counts as nothing."""
        self._digest = digest
        self.descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.touched = self._read()

    def close(self) -> None:
        """Let go of the directory."""
        os.close(self.descriptor)

    def note(self, touched: Mapping[int, list[int]]) -> None:
        """Write down what was touched; a directory that can't be written to stays as it is."""
        data = msgspec.msgpack.encode(_File(image=self._digest, touched=dict(touched)))
        if len(data) > _MOST_BYTES:
            return
        new = f".{WORKING_SET_NAME}.{os.getpid()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with open(os.open(new, flags, 0o600, dir_fd=self.descriptor), "wb") as file:
                file.write(data)
            at = self.descriptor
            os.rename(new, WORKING_SET_NAME, src_dir_fd=at, dst_dir_fd=at)
        except OSError:
            pass

    def _read(self) -> dict[int, list[int]]:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            with open(os.open(WORKING_SET_NAME, flags, dir_fd=self.descriptor), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    return {}
                found = msgspec.msgpack.decode(file.read(_MOST_BYTES), type=_File)
        except (OSError, msgspec.MsgspecError):
            return {}
        return found.touched if found.image == self._digest else {}
