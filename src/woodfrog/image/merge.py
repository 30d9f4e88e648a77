"""One image of a chain: it stands alone, and holds what the last one of the chain does."""

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Any

from woodfrog.errors import ImageError
from woodfrog.image.chain import Chain, Stored, merged
from woodfrog.image.container_file import Writer
from woodfrog.image.layout import ANCESTOR, IMAGE_NAME, PARENT_NAME


def merge(chain: Chain, output: str, *, sync: str = "full") -> int:
    """Write an image and what it needs of its ancestors to output/checkpoint.img.

    The image itself may be replaced so; then it has no parent any more. Returns the bytes of memory
    that came from ancestors. Raises ImageError.
    """
    replace = os.path.realpath(output) == os.path.realpath(chain.directory)
    chain.verify_pages()
    records = chain.raw_records()
    try:
        lists = [*_page_lists(records)]
        needed = merged(
            (int(store), int(store) + int(length)) for one in lists for _, length, store in one
        )
        for start, end in needed:
            _check(chain, start, end)
        stored = Stored(chain)
        with Writer(
            output, compression=chain.header.compression, sync=sync, replace=replace
        ) as writer:
            # What is the image's own stays where it is: other records refer to it, too.
            own = chain.page_bytes
            if own:
                writer.write_pages([(stored, 0, own)])
            inherited = [(start, end) for start, end in needed if start >= ANCESTOR]
            starts = [start for start, _ in inherited]
            places = []
            for start, end in inherited:
                places.append(writer.write_pages([(stored, start, end - start)]))
            for one in lists:
                one[:] = [
                    [start, length, _moved(int(store), starts, places)]
                    for start, length, store in one
                ]
            for record in records:
                writer.add_raw(record)
            writer.seal()
    except (KeyError, TypeError, ValueError) as error:
        raise ImageError(f"{IMAGE_NAME} has records of a shape that makes no sense") from error
    if replace:
        try:
            os.unlink(os.path.join(output, PARENT_NAME))
        except FileNotFoundError:
            pass
    return sum(end - start for start, end in inherited)


def _page_lists(records: Iterable[dict[str, Any]]) -> Iterator[list[Any]]:
    """Yield all lists of pages that may stand in an ancestor."""
    for record in records:
        if record["kind"] in ("process", "pre-dump"):
            yield record["memory"]["pages"]
        elif record["kind"] == "shared-memory":
            yield record.get("inherited", [])


def _moved(store: int, starts: list[int], places: list[int]) -> int:
    """Return where a page stands in the new store."""
    if store < ANCESTOR:
        return store
    at = bisect_right(starts, store) - 1
    return places[at] + store - starts[at]


def _check(chain: Chain, start: int, end: int) -> None:
    level, place = divmod(start, ANCESTOR)
    lengths = chain.store_bytes
    if not 0 <= level < len(lengths) or place + end - start > lengths[level]:
        raise ImageError(f"{IMAGE_NAME} has a record of memory that isn't in it or its parents")
