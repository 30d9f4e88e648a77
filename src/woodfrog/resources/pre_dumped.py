"""The memory of a process in a pre-dump: an image of nothing else, for a next one to build on."""

from woodfrog.image.record import Part, Record
from woodfrog.resources.memory import PageRange


class Pages(Part, frozen=True):
    """Pages of a process, as an address space has them."""

    pages: list[PageRange]


class PreDumped(Record, frozen=True, tag="pre-dump"):
    """The pages that a process had while it ran on."""

    pid: int
    memory: Pages
