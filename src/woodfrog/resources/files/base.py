"""What all kinds of open files have in common."""

import os
from collections.abc import Iterable, Mapping
from typing import ClassVar, Self

import msgspec

from woodfrog.image.record import Record
from woodfrog.kernel import syscalls
from woodfrog.kernel.caller import Caller
from woodfrog.remote.program import Program
from woodfrog.resources.file_signals import O_ASYNC
from woodfrog.resources.files.making import Late, Making
from woodfrog.resources.files.open_file import ACCESS_MODE, CREATION_FLAGS, O_PATH, OpenFile
from woodfrog.resources.files.world import World


class Row(msgspec.Struct, frozen=True):
    """What the README says of a kind: what such files are, and what of them is kept or refused."""

    called: str
    kept: tuple[str, ...]
    refused: tuple[str, ...] = ()


class FileRecord(Record, frozen=True):
    """An open file description. Descriptors refer to it by `id`."""

    row: ClassVar[Row]

    id: int
    flags: int
    # Opened by `restore_late`, when all processes and threads stand, instead of `restore`.
    late: ClassVar[bool] = False
    # Its memory can be mapped, and it is nowhere in a file system.
    has_memory: ClassVar[bool] = False
    # Made by its owner, when that has its rights: an io_uring with a thread of the kernel's.
    made_last: ClassVar[bool] = False

    # A rollback may make it anew, for those who had it.
    may_be_replaced: ClassVar[bool] = False

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        """Tell whether the file is of this kind."""
        raise NotImplementedError

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        """Read the file into a record with this id; raises UnsupportedResource."""
        raise NotImplementedError

    def give_away(self, making: Making) -> None:
        """Give it to its owner, once all files stand: we may lack the right to open it again."""

    def losses(self) -> Mapping[str, int]:
        """Return what of it a flag allowed to lose, or programs are told that is lost: how many."""
        return {}

    def turn(self) -> int:
        """Return when it is to be made: those with a lower one come before."""
        return 0

    def own_addresses(self) -> set[bytes]:
        """Return the internet addresses of the container's own that it names."""
        return set()

    def moved(self, moves: Mapping[bytes, bytes]) -> Self:
        """Return the file for a container that has other addresses."""
        del moves
        return self

    def bonds(self) -> Iterable[object]:
        """Return what only files have in common that are made together, like the ends of a pipe."""
        return ()

    def immaterial(self, now: "FileRecord") -> frozenset[str]:
        """Return the names of fields in which an open file may differ, and stay at a rollback."""
        del now
        return frozenset()

    def leads(self) -> Iterable[object]:
        """Return what those follow that are made through it: they are made anew if it is."""
        return ()

    def follows(self) -> Iterable[object]:
        """Return what leads it: that may stay when it is made anew, but for `bonds` with that."""
        return ()

    def carries(self) -> set[int]:
        """Return the ids of the files that are in flight with what waits at it."""
        return set()

    def restore(self, making: Making) -> int:
        """Make the file in the root stub; returns its descriptor."""
        raise NotImplementedError

    def restore_late(self, late: Late) -> int:
        """Open the file; returns a descriptor of ours."""
        raise NotImplementedError

    def is_of_ended(self) -> bool:
        """Tell whether a late file is of a process that has ended."""
        return False

    def refuse_holders(self, holders: set[int], bounding: int) -> None:
        """Refuse a late file that these processes, by their ids, could not have opened."""

    def connect(self, program: Program, fd: int, table: "DescriptorTable") -> None:
        """Tie the file to others, in a process that has it as `fd`, once all processes stand."""

    def ties(self) -> set[int]:
        """Return the ids of the files that `connect` must find in the process's table."""
        return set()

    @property
    def may_be_set_back(self) -> bool:
        """Tell whether a rollback can give an open file the state that it had."""
        return hasattr(self, "position") and not self.flags & O_PATH

    def set_back(self, descriptor: int) -> None:
        """Do that, by a descriptor of ours."""
        os.lseek(descriptor, getattr(self, "position", 0), os.SEEK_SET)

    def refuse_wider(self, bounding: int) -> None:
        """Refuse what needs a capability that the container lacks; raises UnsupportedResource."""

    def needs_deleted(self) -> set[int]:
        """Return the ids of the deleted files that `complete` will need."""
        return set()

    def needs_files(self) -> set[int]:
        """Return the ids of the other open files that `complete` will need."""
        return set()

    def complete(
        self, descriptor: int, root: int, deleted: Mapping[int, int], files: Mapping[int, int]
    ) -> None:
        """Do what must come last of all, when nothing of ours touches any files any more.

        All are descriptors of ours: of this file, the container's root, deleted and open files.
        """

    def verify(self, descriptor: int) -> None:
        """Check what was made, through a descriptor of ours; raises ImageError."""

    def missing(self, descriptor: int) -> str:
        """Return what the file lacks in the new container, for the user to know."""
        del descriptor
        return ""


class DescriptorTable(msgspec.Struct, frozen=True):
    """A process's descriptors: the ids of the files behind them, and which are close-on-exec."""

    files: Mapping[int, int]
    cloexec: frozenset[int]


def set_flags(on: Caller, fd: int, flags: int) -> None:
    """Give a file the status flags that it was recorded with, but O_ASYNC: see file_signals."""
    syscalls.set_status_flags(on, fd, flags & ~ACCESS_MODE & ~CREATION_FLAGS & ~O_ASYNC)
