"""Who can make whom: it depends on whose child one is, and on what it shares with whom (clone(2)).

Nothing but clone(2) lets processes share memory, signal actions, descriptors, a directory, or what
semaphores get back at their end.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Protocol

import msgspec

from woodfrog.kernel.namespaces import CLONE_SYSVSEM
from woodfrog.resources.process import Process, Shares

_CLONE_VM, _CLONE_FS, _CLONE_FILES, _CLONE_SIGHAND = 0x100, 0x200, 0x400, 0x800
CLONE_PARENT = 0x8000


class Relative(Protocol):
    """What counts of a process or zombie here."""

    @property
    def pid(self) -> int: ...
    @property
    def parent(self) -> int: ...
    @property
    def exit_signal(self) -> int: ...
    @property
    def shares(self) -> Shares: ...
    @property
    def child_subreaper(self) -> bool: ...
    @property
    def is_first(self) -> bool: ...


class How(Enum):
    """How a process comes to its parent."""

    CHILD = "child"  # made by it
    SIBLING = "sibling"  # made by another child of it, with CLONE_PARENT
    ORPHAN = "orphan"  # made by a passing process that the maker makes, and that ends


class Maker(msgspec.Struct, frozen=True):
    """Who makes a process, and how."""

    pid: int
    how: How


def orphaned_groups(processes: Iterable[Process]) -> set[int]:
    """Return the groups in which nobody has a parent in another group of the same session.

    No signal of a terminal's (SIGTSTP, SIGTTIN, SIGTTOU) stops anybody there (setpgid(2)).
    """
    by_pid = {one.pid: one for one in processes}
    kept = {
        one.group
        for one in by_pid.values()
        if (parent := by_pid.get(one.parent))
        and parent.group != one.group
        and parent.session == one.session
    }
    return {one.group for one in by_pid.values()} - kept


def flags(one: Relative) -> int:
    """Return the flags of clone(2) for what a process shares with its maker."""
    shares = one.shares
    return (
        (_CLONE_VM if shares.memory else 0)
        | (_CLONE_SIGHAND if shares.actions else 0)
        | (_CLONE_FILES if shares.descriptors else 0)
        | (_CLONE_FS if shares.directory else 0)
        | (CLONE_SYSVSEM if shares.undo else 0)
    )


def makers(members: Sequence[Relative]) -> dict[int, Maker]:
    """Return who can make each process but the first; those that nobody can make are missing."""
    by_pid = {one.pid: one for one in members}
    found: dict[int, Maker] = {}
    made = [one for one in members if not any(one.shares.owners)]
    for one in made:
        if one.pid != 1:
            found[one.pid] = Maker(one.parent, How.CHILD)
    left = [one for one in members if any(one.shares.owners)]
    while left:
        now = [(one, maker) for one in left if (maker := _maker(one, made, by_pid))]
        if not now:
            break
        for one, maker in now:
            found[one.pid] = maker
            made.append(one)
            left.remove(one)
    return found


def _maker(one: Relative, made: Sequence[Relative], by_pid: Mapping[int, Relative]) -> Maker | None:
    able = [other for other in made if _has_all(other, one.shares)]
    for other in able:
        if other.pid == one.parent:
            return Maker(other.pid, How.CHILD)
    for other in able:
        if other.parent == one.parent and other.exit_signal == one.exit_signal:
            return Maker(other.pid, How.SIBLING)
    for other in able:
        if _inherits(other, by_pid) == one.parent:
            return Maker(other.pid, How.ORPHAN)
    return None


def owner(sharers: Sequence[Relative], members: Sequence[Relative]) -> Relative:
    """Return the one of those that share something whose own it is called.

    One whose parent is not among them, as far as possible from the first process: orphans come to
    those above.
    """
    by_pid = {one.pid: one for one in members}
    pids = {one.pid for one in sharers}

    def depth(one: Relative) -> int:
        above: Relative | None = one
        for count in range(len(members) + 1):
            if above is None:
                return count
            above = by_pid.get(above.parent)
        return 0

    return min(
        (one for one in sharers if one.parent not in pids),
        key=lambda one: (-depth(one), one.pid),
        default=sharers[0],
    )


def _has_all(one: Relative, wanted: Shares) -> bool:
    """Tell whether a process has all parts that another is to share."""
    own = one.shares.of(one.pid)
    return all(owner in (0, mine) for mine, owner in zip(own, wanted.owners, strict=True))


def _inherits(maker: Relative, by_pid: Mapping[int, Relative]) -> int:
    """Return who gets the orphans of a passing child of a process; 0 if it is nobody inside."""
    above: Relative | None = maker
    for _ in by_pid:
        if above is None or above.child_subreaper or above.is_first:
            break
        above = by_pid.get(above.parent)
    return above.pid if above else 0
