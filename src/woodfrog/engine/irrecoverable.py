"""What a rollback in place can't bring back: processes, above all, that nobody could have made."""

import msgspec

from woodfrog.engine.plan import Plan
from woodfrog.errors import UnsupportedResource
from woodfrog.kernel.capability import CAP_SETGID, CAP_SETPCAP, CAP_SETUID
from woodfrog.resources.keyrings import FIRST
from woodfrog.resources.memory import Source
from woodfrog.resources.process import Process, Zombie

_IN_PLACE = "; a rollback in place can't bring that back"


def lost_since(what: str) -> UnsupportedResource:
    """Return the refusal of what can't be set back; `reason_of` takes it apart."""
    return UnsupportedResource(
        f"{what}{_IN_PLACE}",
        hint="restore the image into a new container instead",
    )


def reason_of(refusal: UnsupportedResource) -> str:
    """Return what was lost, of such a refusal."""
    return str(refusal).removesuffix(_IN_PLACE)


def refuse_rebirth(record: Process, plan: Plan, why: str) -> None:
    """Raise why a process can't be made again, if it can't."""
    parent = next((one for one in plan.processes if one.pid == record.parent), None)
    groups = {one.group for one in plan.processes if one.session == record.session}
    mappings = record.memory.mappings
    if record.pid == 1:
        raise lost_since(why)
    for is_so, what in (
        (any(record.shares.owners), "shares tables with another process (clone(2))"),
        (record.ended_thread, "has a first thread that had ended"),
        (record.namespaces or record.root != b"/", "is in a root or namespace of its own"),
        (any(thread.namespaces for thread in record.threads), "has threads in other namespaces"),
        (record.locks or record.file_signals or record.queue_notices, "has locks or notifications"),
        (record.undo or any(m.source is Source.SYSV for m in mappings), "uses System V IPC"),
        (record.stopped_by or record.continued or record.left_terminal, "was stopped"),
        (record.memory.executable_object, "runs a deleted program"),
        (record.memory.contexts, "has Linux AIO"),
        (record.keyring != (parent.keyring if parent else FIRST), "has a keyring of its own"),
        (record.parent and not parent, "has a parent that has ended"),
        (record.session not in _sessions(record, parent), "is in a session that others began"),
        (record.group != record.pid and record.group not in groups, "is in a group of others"),
    ):
        if is_so:
            raise lost_since(f"{why}; and it {what}")
    if parent and not _may_become(parent, record):
        raise lost_since(f"{why}; and it has rights that its parent has not")


def refuse_ending_again(zombie: Zombie, plan: Plan) -> None:
    """Refuse a process that had ended, and was waited for since, if its parent can't have it."""
    parent = next((one for one in plan.processes if one.pid == zombie.parent), None)
    groups = {one.group for one in plan.processes if one.session == zombie.session}
    if (
        parent is None
        or zombie.session not in (zombie.pid, parent.session)
        or zombie.group not in {zombie.pid, *groups}
    ):
        raise lost_since("it had ended, and was waited for since")


def _sessions(record: Process, parent: Process | None) -> tuple[int, ...]:
    return (record.pid, parent.session) if parent else (record.pid,)


def _may_become(parent: Process, child: Process) -> bool:
    """Tell whether a child of a process can have what another one had, by the parent's rights."""
    has, wants = parent.threads[0], child.threads[0]
    if any(
        thread.filters != has.filters or thread.seccomp != has.seccomp for thread in child.threads
    ):
        return False
    mine, theirs = has.credentials, wants.credentials
    if mine.ambient or mine.securebits or theirs.ambient:
        return False
    # What root executes has all that it may, and what others execute nothing.
    born = mine.bounding | mine.inheritable if mine.uids[1] == 0 else 0
    bare = msgspec.structs.replace(mine, permitted=born, effective=born)
    if all(thread.credentials == bare for thread in child.threads):
        return True
    needed = 1 << CAP_SETUID | 1 << CAP_SETGID | 1 << CAP_SETPCAP
    wanted = theirs.permitted | theirs.inheritable
    return born & needed == needed and not (wanted & ~born or theirs.bounding & ~mine.bounding)
