"""Pipes and sockets: files that are nowhere in a file system, and have an owner all the same."""

import stat
from typing import Any, ClassVar

from woodfrog.errors import ImageError
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.resources.files.base import FileRecord
from woodfrog.resources.files.making import Making
from woodfrog.resources.files.open_file import OpenFile


class Owned(FileRecord, frozen=True, kw_only=True):
    """Such a file: whose it is, and who may use it, as fstat(2) tells.

    `stranger`: whom the container's user namespace lacks.
    """

    stranger: ClassVar[int] = 0xFFFFFFFF  # fchown(2) lets it be whose it is
    uid: int = 0
    gid: int = 0
    mode: int = 0o600

    def refuse_wider(self, bounding: int) -> None:
        if self.mode & ~0o7777 or any(
            not 0 <= who <= self.stranger for who in (self.uid, self.gid)
        ):
            raise ImageError("a pipe or socket in the image has an impossible owner or mode")

    def give_away(self, making: Making) -> None:
        fd = making.files[self.id]
        making.program.call(SYS.FCHOWN, fd, self.uid, self.gid)
        making.program.call(SYS.FCHMOD, fd, self.mode)


class Socket(Owned, frozen=True, kw_only=True):
    """A socket. Its port is shared only with its owner's (SO_REUSEPORT)."""

    mode: int = 0o777


def owner_of(file: OpenFile) -> dict[str, Any]:
    """Return whose a file is, as fields of its record."""
    found = file.stat
    return {"uid": found.st_uid, "gid": found.st_gid, "mode": stat.S_IMODE(found.st_mode)}
