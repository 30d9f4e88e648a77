"""How a thread is scheduled: policy, nice, real-time parameters, affinity, I/O priority."""

import os

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.image.record import Part
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.capability import CAP_SYS_NICE
from woodfrog.kernel.scheduling import ATTRIBUTES, IOPRIO_WHO_PROCESS

# struct sched_attr up to sched_period (SCHED_ATTR_SIZE_VER0).


class Scheduling(Part, frozen=True):
    """sched_getattr(2), sched_getaffinity(2) and ioprio_get(2) of one thread."""

    policy: int
    flags: int
    nice: int
    priority: int
    runtime: int
    deadline: int
    period: int
    affinity: list[int]
    io_priority: int


def collect(pid: int) -> Scheduling:
    """Read how a thread is scheduled, by its id as we see it."""
    attributes = bytearray(ATTRIBUTES.size)
    HERE.call(SYS.SCHED_GETATTR, pid, attributes, len(attributes), 0)
    _, policy, flags, _, priority, runtime, deadline, period = ATTRIBUTES.unpack(attributes)
    return Scheduling(
        policy=policy,
        flags=flags,
        nice=os.getpriority(os.PRIO_PROCESS, pid),  # the call tells it only of ordinary ones
        priority=priority,
        runtime=runtime,
        deadline=deadline,
        period=period,
        affinity=sorted(os.sched_getaffinity(pid)),
        io_priority=HERE.call(SYS.IOPRIO_GET, IOPRIO_WHO_PROCESS, pid),
    )


def autogroup_nice(path: str) -> int:
    """Read how nice the group of a session is, by the directory in /proc of a process in it."""
    try:
        with open(f"{path}/autogroup", encoding="ascii") as file:
            words = file.read().split()
    except FileNotFoundError:
        return 0
    return int(words[-1]) if words else 0  # the first session of all has none


def set_autogroup_nice(pid: int, nice: int) -> None:
    """Set that for the session of a process."""
    with open(f"/proc/{pid}/autogroup", "w", encoding="ascii") as file:
        file.write(str(nice))


SCHED_OTHER = 0
_SCHED_FIFO, _SCHED_RR, _SCHED_DEADLINE = 1, 2, 6
_IOPRIO_CLASS_RT = 1


def refuse_wider(who: str, recorded: Scheduling, bounding: int) -> None:
    """Refuse what only CAP_SYS_NICE allows, if the new container may not have it (design law 5)."""
    # The kernel takes no more of these than it has room for.
    words = recorded.policy, recorded.flags, recorded.priority, recorded.io_priority
    times = recorded.runtime, recorded.deadline, recorded.period
    if (
        any(not 0 <= word < 1 << 31 for word in words)
        or any(not 0 <= one < 1 << 64 for one in times)
        or not -20 <= recorded.nice <= 19
    ):
        raise ImageError(f"{who} was scheduled in an impossible way")
    urgent = (
        recorded.policy in (_SCHED_FIFO, _SCHED_RR, _SCHED_DEADLINE)
        or recorded.nice < 0
        or recorded.io_priority >> 13 == _IOPRIO_CLASS_RT
    )
    if urgent and not bounding >> CAP_SYS_NICE & 1:
        raise UnsupportedResource(
            f"{who} was scheduled before others (a real-time policy or negative nice),"
            " which the new container may not do",
            hint="add CAP_SYS_NICE to process.capabilities.bounding of the bundle's config.json",
        )


def refuse_nicer(who: str, nice: int, bounding: int) -> None:
    """Refuse a session that comes before others, likewise."""
    if not -20 <= nice <= 19:
        raise ImageError(f"{who} has a session that is impossibly nice")
    if nice < 0 and not bounding >> CAP_SYS_NICE & 1:
        raise UnsupportedResource(
            f"{who} has a session that comes before others (a negative nice of its autogroup),"
            " which the new container may not have",
            hint="add CAP_SYS_NICE to process.capabilities.bounding of the bundle's config.json",
        )


def chosen_processors(recorded: Scheduling, default: Scheduling) -> set[int]:
    """Return the processors that a thread is bound to; none if it runs on all that it may have."""
    if recorded.affinity == default.affinity:
        return set()
    return set(recorded.affinity) & set(default.affinity)


def restore(pid: int, recorded: Scheduling, default: Scheduling) -> None:
    """Schedule a thread as recorded where it differs from `default`, as this machine allows.

    CPUs that this machine or the container's cpuset lacks are left out; if none is left, the thread
    runs on all.
    """
    if processors := chosen_processors(recorded, default):
        os.sched_setaffinity(pid, processors)
    if recorded.io_priority != default.io_priority:
        HERE.call(SYS.IOPRIO_SET, IOPRIO_WHO_PROCESS, pid, recorded.io_priority)
    if recorded.nice != default.nice:
        # Which sched_setattr(2) does not, with the policies of no fair share.
        os.setpriority(os.PRIO_PROCESS, pid, recorded.nice)
    ours = (recorded.policy, recorded.flags, recorded.priority, recorded.runtime)
    if ours != (default.policy, default.flags, default.priority, default.runtime):
        attributes = ATTRIBUTES.pack(
            ATTRIBUTES.size,
            recorded.policy,
            recorded.flags,
            recorded.nice,
            recorded.priority,
            recorded.runtime,
            recorded.deadline,
            recorded.period,
        )
        HERE.call(SYS.SCHED_SETATTR, pid, attributes, 0)
