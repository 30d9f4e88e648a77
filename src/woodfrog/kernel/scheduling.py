"""How a task gets processor, disk and memory: scheduler, affinity, I/O priority, NUMA policy."""

from __future__ import annotations

import struct

from woodfrog.kernel.abi.x86_64 import SYS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from woodfrog.kernel.caller import Caller

SCHED_POLICIES = {
    "SCHED_OTHER": 0,
    "SCHED_FIFO": 1,
    "SCHED_RR": 2,
    "SCHED_BATCH": 3,
    "SCHED_ISO": 4,
    "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6,
}
SCHED_FLAGS = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01,
    "SCHED_FLAG_RECLAIM": 0x02,
    "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08,
    "SCHED_FLAG_KEEP_PARAMS": 0x10,
    "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}
IOPRIO_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
MEMORY_POLICIES = {
    "MPOL_DEFAULT": 0,
    "MPOL_PREFERRED": 1,
    "MPOL_BIND": 2,
    "MPOL_INTERLEAVE": 3,
    "MPOL_LOCAL": 4,
    "MPOL_PREFERRED_MANY": 5,
    "MPOL_WEIGHTED_INTERLEAVE": 6,
}
MEMORY_FLAGS = {
    "MPOL_F_STATIC_NODES": 1 << 15,
    "MPOL_F_RELATIVE_NODES": 1 << 14,
    "MPOL_F_NUMA_BALANCING": 1 << 13,
}

# struct sched_attr up to sched_period (SCHED_ATTR_SIZE_VER0).
ATTRIBUTES = struct.Struct("<IIQiI3Q")
IOPRIO_WHO_PROCESS = 1
_IOPRIO_CLASS_SHIFT = 13
# More processors or memory nodes than any kernel has; it ignores those that aren't there.
_MASK_BYTES = 1024


def set_scheduler(
    on: Caller,
    policy: int,
    flags: int,
    nice: int,
    priority: int,
    times: tuple[int, int, int],
) -> None:
    """Set the scheduling policy of the calling thread; times are runtime, deadline, period."""
    size = ATTRIBUTES.size
    attributes = ATTRIBUTES.pack(size, policy, flags, nice, priority, *times)
    on.call(SYS.SCHED_SETATTR, 0, attributes, 0)


def set_io_priority(on: Caller, io_class: int, priority: int) -> None:
    """Set the I/O priority of the calling thread."""
    value = io_class << _IOPRIO_CLASS_SHIFT | priority
    on.call(SYS.IOPRIO_SET, IOPRIO_WHO_PROCESS, 0, value)


def set_affinity(on: Caller, pid: int, processors: int) -> None:
    """Let a task run on the processors of a mask; -1 is all that its cpuset has."""
    mask = (processors & (1 << _MASK_BYTES * 8) - 1).to_bytes(_MASK_BYTES, "little")
    on.call(SYS.SCHED_SETAFFINITY, pid, len(mask), mask)


def get_affinity(on: Caller, pid: int) -> int:
    """Return the mask of the processors that a task may run on."""
    mask = bytearray(_MASK_BYTES)
    size = on.call(SYS.SCHED_GETAFFINITY, pid, len(mask), mask)
    return int.from_bytes(mask[:size], "little")


def current_processor(on: Caller) -> int:
    """Return the number of the processor that the calling thread runs on."""
    number = bytearray(4)
    on.call(SYS.GETCPU, number, 0, 0)
    return int.from_bytes(number, "little")


def set_memory_policy(on: Caller, mode: int, nodes: int) -> None:
    """Set from which memory nodes (a mask) the calling thread gets its memory."""
    size = (nodes.bit_length() + 63) // 64 * 8
    # The kernel takes one bit less than it is told.
    arguments = (nodes.to_bytes(size, "little"), size * 8 + 1) if nodes else (0, 0)
    on.call(SYS.SET_MEMPOLICY, mode, *arguments)


def set_personality(on: Caller, persona: int) -> None:
    """Set the execution domain of the calling thread."""
    on.call(SYS.PERSONALITY, persona)
