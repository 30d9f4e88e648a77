"""Shared memory of a held container, that several processes or files may show."""

import os
import stat

from woodfrog.kernel.huge_pages import page_size
from woodfrog.resources import shared_memory
from woodfrog.resources.memory import Extent, PageRange


class SharedObject:
    """A piece of shared memory: our descriptor for it, and what is in it."""

    def __init__(self, number: int, fd: int, memfd: bytes | None) -> None:
        self.number = number
        self.fd = fd
        self.memfd = memfd
        self.size, self.extents = shared_memory.extents(fd)
        self.seals = shared_memory.seals(fd) if self.memfd is not None else 0
        self.huge_page = page_size(fd)
        self.inherited: list[PageRange] = []

    def inherit(self, extents: list[Extent], pages: list[PageRange]) -> None:
        """Leave pages to the parent image, which has them; `extents` are what is left."""
        self.extents, self.inherited = extents, pages

    def _owner(self) -> dict[str, int]:
        if self.memfd is None:
            return {}
        found = os.fstat(self.fd)
        return {"mode": stat.S_IMODE(found.st_mode), "uid": found.st_uid, "gid": found.st_gid}

    def record(self, store: int) -> shared_memory.SharedMemory:
        """Return the record, once the store's offset of the first page is known."""
        return shared_memory.SharedMemory(
            id=self.number,
            memfd=self.memfd,
            size=self.size,
            seals=self.seals,
            extents=self.extents,
            store=store,
            inherited=self.inherited,
            huge_page=self.huge_page,
            **self._owner(),
        )
