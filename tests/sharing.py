"""Several runs of pytest that share the tests: each does what none of the others has taken.

`./test` starts them, with WOODFROG_SHARED: an empty file, in which they note how far they are.
"""

import fcntl
import hashlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Their tests have daemons in common, so that a file of them is done as a whole.
WHOLE = Path(__file__).parent / "engines"


def parts(items: list[pytest.Item]) -> list[list[pytest.Item]]:
    """Divide the tests into what one run does."""

    def part(item: pytest.Item) -> str:
        return str(item.path) if item.path.is_relative_to(WHOLE) else item.nodeid

    return [list(group) for _, group in itertools.groupby(items, part)]


def take(shared: str, items: list[pytest.Item]) -> int:
    """Take the next part; returns its number."""
    digest = hashlib.sha256("\n".join(item.nodeid for item in items).encode()).hexdigest()
    with open(shared, "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        of, number = (file.read() or f"{digest} 0").split()
        if of != digest:
            raise pytest.UsageError("the runs that share the tests have found different ones")
        file.seek(0)
        file.write(f"{digest} {int(number) + 1}")
    return int(number)


def taken(shared: str, items: list[pytest.Item]) -> Iterator[pytest.Item]:
    """Take one part after the other."""
    all_parts = parts(items)
    while (number := take(shared, items)) < len(all_parts):
        yield from all_parts[number]


def run_shared(session: pytest.Session) -> bool | None:
    """Do as pytest does with all its tests, with those that none of the others has taken."""
    shared = os.environ.get("WOODFROG_SHARED")
    if not shared or session.testsfailed or session.config.option.collectonly:
        return None
    ours = taken(shared, session.items)
    item = next(ours, None)
    while item:
        # Fixtures that it shares with the next one are kept.
        following = next(ours, None)
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)
        item = following
    return True
