"""Huge pages of hugetlbfs for a test: set aside on this machine, and put back after."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from needs import REQUIRE_ALL

# Not every machine has room for these.
_MAY_LACK = "1048576kB"


def _pool(size: str) -> Path:
    return Path(f"/sys/kernel/mm/hugepages/hugepages-{size}/nr_hugepages")


def _set(size: str, count: int) -> bool:
    _pool(size).write_text(str(count))
    return int(_pool(size).read_text()) == count


@contextmanager
def set_aside(wish: str) -> Iterator[None]:
    """Have so many pages ("2048kB 30") while nobody else changes how many there are."""
    if not wish:
        yield
        return
    size, _, count = wish.partition(" ")
    if not _pool(size).exists():
        _skip(size, f"this machine has no pages of {size}")
    with _pool(size).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        before = int(file.read())
        try:
            if not _set(size, int(count)):
                _skip(size, f"{count} pages of {size} can't be had")
            yield
        finally:
            # Those that are in use stay until they are free.
            end = time.monotonic() + 60
            while not _set(size, before) and time.monotonic() < end:
                time.sleep(0.02)


def change(wish: str) -> None:
    """Have another number of them, within set_aside."""
    size, _, count = wish.partition(" ")
    assert _set(size, int(count))


def _skip(size: str, reason: str) -> None:
    if REQUIRE_ALL and size != _MAY_LACK:
        pytest.fail(f"needs huge pages: {reason}", pytrace=False)
    pytest.skip(f"needs huge pages: {reason}")
