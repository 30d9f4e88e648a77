"""The processes' own pages on their way out of the image: checked, and copied to where they belong.

Several threads of ours do that, each with a chunk that it has just checked and that its processor
still has at hand.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from woodfrog.errors import while_
from woodfrog.image.container_file import Reader
from woodfrog.image.layout import CHUNK
from woodfrog.kernel.process_memory import write_memory
from woodfrog.resources.memory import PageRange

# A piece of a chunk: whose it is, its offset in the chunk, its address there, its length.
_Piece = tuple[int, int, int, int]


def fill(reader: Reader, spaces: Mapping[int, Sequence[PageRange]]) -> None:
    """Fill in pages of processes, by pid on this host.

    They are mapped, may be written to, and nobody uses them yet. Raises ImageError if a chunk is
    damaged, OSError if there is no memory.
    """
    with while_("filling in the processes' memory"):
        reader.each_chunk(sorted(_by_chunk(spaces).items()), _copy)


def ranges(pages: Iterable[PageRange]) -> list[tuple[int, int]]:
    """Return the (start, end) ranges of the page store that pages have, in order and apart."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted((one.store, one.store + one.length) for one in pages):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _by_chunk(spaces: Mapping[int, Sequence[PageRange]]) -> dict[int, list[_Piece]]:
    chunks: dict[int, list[_Piece]] = defaultdict(list)
    for pid, pages in spaces.items():
        for page in pages:
            address, store, end = page.start, page.store, page.store + page.length
            while store < end:
                offset = store % CHUNK
                length = min(end - store, CHUNK - offset)
                chunks[store // CHUNK].append((pid, offset, address, length))
                address, store = address + length, store + length
    return chunks


def _copy(pieces: list[_Piece], memory: memoryview) -> None:
    """Write what a chunk holds to where it belongs: what stands together, with one call."""
    process = begin = end = 0
    ranges: list[tuple[int, int]] = []
    for pid, offset, address, length in sorted(pieces):
        if ranges and (pid != process or offset != end):
            write_memory(process, memory[begin:end], ranges)
            ranges = []
        if not ranges:
            process, begin, end = pid, offset, offset
        ranges.append((address, length))
        end += length
    write_memory(process, memory[begin:end], ranges)
