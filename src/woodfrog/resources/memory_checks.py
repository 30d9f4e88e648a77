"""What must be true of an address space from an image before anything is made of it."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.image.layout import ANCESTOR
from woodfrog.kernel.abi.x86_64 import PAGE
from woodfrog.kernel.capability import CAP_IPC_LOCK
from woodfrog.remote.address import TASK_SIZE
from woodfrog.resources import memory_flags, memory_policy
from woodfrog.resources.memory import AddressSpace, Extent, PageRange

# What a limit is to be higher by, so that nobody meets it again at once.
SPARE_MAPPINGS = 100
_OF_STUBS = 2


def check(space: AddressSpace, store_bytes: Sequence[int]) -> None:
    """Check an address space from an image before anything is made of it.

    `store_bytes` are the lengths of the page stores of the image, its parent, and so on.
    """
    end = 0
    for mapping in space.mappings:
        if mapping.start % PAGE or mapping.end % PAGE or mapping.offset % PAGE:
            raise ImageError(f"a mapping at {mapping.start:#x} is not made of whole pages")
        if not end <= mapping.start < mapping.end <= TASK_SIZE:
            raise ImageError(f"the mapping at {mapping.start:#x} overlaps another, or has no place")
        if not memory_flags.KNOWN_ADVICE.issuperset(mapping.advice):
            # Some of it does harm to pages that others have, too.
            raise ImageError(f"the mapping at {mapping.start:#x} has been given unknown advice")
        if mapping.policy:
            memory_policy.check(mapping.policy)
        end = mapping.end
    check_pages(space.pages, store_bytes)
    if any(one.start % PAGE or one.length % PAGE or one.length <= 0 for one in space.guards):
        raise ImageError("guard pages of the image are not whole")
    if any(one.start + one.length > other.start for one, other in pairwise(space.guards)):
        raise ImageError("guard pages of the image are out of order")
    _refuse_unmapped(space.pages, space, "pages")
    _refuse_unmapped(space.guards, space, "guard pages")
    if len(space.auxv) > 1024:
        raise ImageError("an auxiliary vector in the image is too long")


def _refuse_unmapped(extents: Sequence[PageRange | Extent], space: AddressSpace, what: str) -> None:
    """Refuse what isn't in mappings as a whole; `extents` are in order."""
    at = 0
    for extent in extents:
        while at < len(space.mappings) and space.mappings[at].end <= extent.start:
            at += 1
        covered = extent.start
        look = at
        while (
            look < len(space.mappings)
            and space.mappings[look].start <= covered < extent.start + extent.length
        ):
            covered = space.mappings[look].end
            look += 1
        if covered < extent.start + extent.length:
            raise ImageError(f"the {what} at {extent.start:#x} belong to no mapping")


def check_pages(pages: Sequence[PageRange], store_bytes: Sequence[int]) -> None:
    """Check that pages are whole, in order, and in a page store; see `check`."""
    position = 0
    for extent in pages:
        if extent.start % PAGE or extent.length % PAGE or extent.length <= 0:
            raise ImageError(f"the pages at {extent.start:#x} are not whole")
        level, place = divmod(extent.store, ANCESTOR)
        page_bytes = store_bytes[level] if 0 <= level < len(store_bytes) else 0
        if place % PAGE or place > page_bytes - extent.length:
            raise ImageError(f"the pages at {extent.start:#x} lie outside the page store")
        if extent.start < position:
            raise ImageError(f"the pages at {extent.start:#x} are out of order")
        position = extent.start + extent.length


def most_mappings() -> int:
    """Return how many mappings a process may have on this machine."""
    with open("/proc/sys/vm/max_map_count", encoding="ascii") as file:
        return int(file.read())


def refuse_too_many(spaces: Mapping[int, AddressSpace]) -> None:
    """Refuse more mappings than a process may have here; `spaces` are by the ids of processes."""
    most = most_mappings()
    for pid, space in spaces.items():
        count = len(space.mappings)
        if count + _OF_STUBS > most:
            raise UnsupportedResource(
                f"process {pid} of the image has {count} mappings, and this machine allows {most}"
                " (vm.max_map_count)",
                hint=f"sysctl vm.max_map_count={count + SPARE_MAPPINGS}",
            )


def refuse_wider(
    who: str, space: AddressSpace, rlimits: Mapping[str, tuple[int, int]], bounding: int
) -> None:
    """Refuse more locked memory than the new container's config allows, if it says so.

    Else the limit in force holds: mappings are made without CAP_IPC_LOCK, if it lacks that.
    """
    locked = sum(one.end - one.start for one in space.mappings if one.locked)
    _, most = rlimits.get("RLIMIT_MEMLOCK", (0, locked))
    if locked > most and not bounding >> CAP_IPC_LOCK & 1:
        raise UnsupportedResource(
            f"{who} has {locked} bytes of locked memory, more than the new container allows",
            hint="raise RLIMIT_MEMLOCK or allow CAP_IPC_LOCK in the bundle's config.json",
        )
