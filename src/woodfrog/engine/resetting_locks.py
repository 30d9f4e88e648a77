"""Set the locks of held processes back: what they have locked since is free, then all is as it was.

Whoever closes a file loses its POSIX locks, also those that it had by another descriptor. So all
are taken again when everything is closed and made, those that nobody has given up, too.
"""

import fcntl
import os
from collections.abc import Iterable, Sequence

from woodfrog.engine.irrecoverable import lost_since
from woodfrog.engine.looking import Looked
from woodfrog.engine.obstacles import Obstacles
from woodfrog.engine.resetting import ProcessReset
from woodfrog.engine.standing import Match, Standing
from woodfrog.errors import while_
from woodfrog.remote import descriptors
from woodfrog.remote.program import Program
from woodfrog.resources import file_locks
from woodfrog.resources.process import Lock


def refuse_taken(match: Match, looked: Looked, obstacles: Obstacles) -> None:
    """Note the locks of the image that somebody outside the container has since.

    What flock(2) locks can't be asked for, nor what is held by open file descriptions (F_OFD_SETLK)
    of nobody.
    """
    inside = {one.held.pid for one in looked.processes} | {one.pid for one in looked.others}
    for one in match.processes:
        for lock in _lacking(one, match):
            with obstacles.at(f"descriptor {lock.descriptor} of {one.held.name}"):
                ours = descriptors.fetch(one.held.pid, lock.descriptor)
                try:
                    holder = file_locks.holder(ours, lock)
                finally:
                    os.close(ours)
                if holder > 0 and holder not in inside:
                    raise lost_since(f"process {holder}, outside, has locked what it had locked")


def reset(resets: Sequence[ProcessReset], match: Match) -> None:
    """Give up what was locked since, in all processes, then take what was locked."""
    for one in resets:
        given_up = [lock for lock in _since(one.one, match) if lock.how != "lease"]
        _run(one, "giving up", ((lock, fcntl.F_UNLCK) for lock in given_up))
    for one in resets:
        wanted = [lock for lock in one.one.then.locks if lock.how != "lease"]
        _run(one, "taking", ((lock, file_locks.kind(lock)) for lock in wanted))


def _run(one: ProcessReset, doing: str, locks: Iterable[tuple[Lock, int]]) -> None:
    program: Program = one.stub.program()
    for lock, kind in locks:
        file_locks.put(program, lock, kind)
    if len(program):
        with while_(f"{doing} file locks of {one.one.held.name}"):
            one.stub.run(program)


def _since(one: Standing, match: Match) -> list[Lock]:
    """Return the locks that the image lacks, on files that stay open."""
    closed = {*one.extra_descriptors(match)}
    locks: list[Lock] = one.now.fields["locks"]
    return [lock for lock in locks if lock.descriptor not in closed and lock not in one.then.locks]


def _lacking(one: Standing, match: Match) -> list[Lock]:
    """Return the locks of the image, on files that are open still, that it lacks now."""
    made = {slot.number for slot in one.lacking_descriptors(match)}
    now: list[Lock] = one.now.fields["locks"]
    return [
        lock
        for lock in one.then.locks
        if lock.descriptor not in made and lock not in now and lock.how in ("posix", "ofd")
    ]
