"""Room for the signals that a rollback queues again (RLIMIT_SIGPENDING)."""

from collections.abc import Iterable, Sequence

from woodfrog.engine.standing import Standing
from woodfrog.errors import UnsupportedResource
from woodfrog.resources import limits, timers
from woodfrog.resources.threads import Thread


def refuse_lack(processes: Sequence[Standing]) -> None:
    """Refuse what would be too many signals, before anything is touched.

    The kernel counts what waits for all processes of a user, and POSIX timers. At worst what the
    others have now is still there, with what they get.
    """
    wanted = {one.then.pid: len(one.queued_then) for one in processes}
    if not any(wanted.values()) or limits.may_exceed_hard():
        return
    for one in processes:
        mine = wanted[one.then.pid]
        others = [other for other in processes if _user(other) == _user(one)]
        there = int(one.held.leader.status["SigQ"].partition("/")[0])
        there -= _count(one.record.pending, one.record.threads)
        needed = max(there, 0) + sum(wanted[other.then.pid] for other in others)
        _, hard = limits.in_force(one.held.pid)[limits.SIGPENDING]
        if mine and needed > hard:
            raise UnsupportedResource(
                f"{one.held.name} is to get {mine} signals back that waited for it: with what else"
                f" waits for processes of its user that makes up to {needed}, and its hard limit"
                f" is {hard} (RLIMIT_SIGPENDING)",
                hint="run woodfrog with CAP_SYS_RESOURCE, or restore the image into a new"
                " container instead",
            )


def _count(pending: Iterable[bytes], threads: Iterable[Thread]) -> int:
    """Count signals; those of POSIX timers have their place all the time."""
    queues = (pending, *(one.pending for one in threads))
    return sum(timers.timer_of(info) is None for queue in queues for info in queue)


def _user(one: Standing) -> str:
    return one.held.leader.status["Uid"].split()[0]
