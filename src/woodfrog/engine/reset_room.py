"""Room for the memory that a process is to have again at a rollback, with what it lends us."""

from collections.abc import Iterable
from typing import Any

from woodfrog.engine.memory_room import LENT, LENT_MAPPINGS, Needed, Room, refuse_many_mappings
from woodfrog.engine.resetting_memory import MemoryReset
from woodfrog.engine.standing import Standing
from woodfrog.kernel.capability import CAP_IPC_LOCK
from woodfrog.resources import namespaces
from woodfrog.resources.memory import PROT_WRITE, Mapping


def make(room: Room, one: Standing, memory: MemoryReset, mapped: Iterable[tuple[Any, ...]]) -> None:
    """Make it, in a process that has those `mapped`; raises UnsupportedResource if it can't be.

    Some comes before other is given back, so this may be more than it needs.
    """
    layout = memory.layout
    more = len(layout.unmap) + len(layout.make) + 2 * len(layout.protect) + bool(memory.brk_grows)
    refuse_many_mappings(mapped, LENT_MAPPINGS + more)
    new, old = layout.make, layout.unmap
    grows = memory.brk_grows
    space = bytes_of(new) + grows - bytes_of(old)
    data = data_bytes_of((*new, *layout.opened)) + grows - data_bytes_of(old)
    locks_all = one.then.memory.lock_future
    locked = bytes_of(new if locks_all else filter(_is_locked, new)) + grows * locks_all
    locked -= bytes_of(filter(_is_locked, old))
    room.make(
        Needed(
            space=LENT.space + max(space, 0),
            data=LENT.data + max(data, 0),
            locked=0 if _may_lock(one) else LENT.locked * locks_all + max(locked, 0),
        )
    )


def bytes_of(mappings: Iterable[Mapping]) -> int:
    """Return what counts of mappings against RLIMIT_AS."""
    return sum(one.end - one.start for one in mappings)


def data_bytes_of(mappings: Iterable[Mapping]) -> int:
    """Return what counts of mappings against RLIMIT_DATA."""
    return bytes_of(
        one
        for one in mappings
        if one.protection & PROT_WRITE and not (one.shared or one.grows_down)
    )


def _is_locked(one: Mapping) -> bool:
    return one.locked


def _may_lock(one: Standing) -> bool:
    """Tell whether a process may lock more memory than its limit.

    For that the right counts in the host's user namespace only.
    """
    effective = int(one.held.leader.status["CapEff"], 16)
    return bool(effective >> CAP_IPC_LOCK & 1) and namespaces.is_ours(one.held.pid, "user")
