"""Resource limits of a process (getrlimit(2))."""

import os
import struct
from collections.abc import Callable, Iterable, Mapping

from woodfrog.errors import ImageError
from woodfrog.image.record import Part
from woodfrog.kernel import syscalls
from woodfrog.kernel.caller import HERE
from woodfrog.remote.program import Program

NAMES = (
    "RLIMIT_CPU",
    "RLIMIT_FSIZE",
    "RLIMIT_DATA",
    "RLIMIT_STACK",
    "RLIMIT_CORE",
    "RLIMIT_RSS",
    "RLIMIT_NPROC",
    "RLIMIT_NOFILE",
    "RLIMIT_MEMLOCK",
    "RLIMIT_AS",
    "RLIMIT_LOCKS",
    "RLIMIT_SIGPENDING",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
)
SIGPENDING = NAMES.index("RLIMIT_SIGPENDING")
OF_MEMORY = SPACE, DATA, LOCKED = (
    NAMES.index("RLIMIT_AS"),
    NAMES.index("RLIMIT_DATA"),
    NAMES.index("RLIMIT_MEMLOCK"),
)
_NICE = NAMES.index("RLIMIT_NICE")
_LIMIT = struct.Struct("<2Q")
NONE = (1 << 64) - 1
_NAMED = 26  # so many bytes of a line of /proc/PID/limits are a name


class Limit(Part, frozen=True):
    """A soft and a hard limit; 2**64 - 1 means none."""

    soft: int
    hard: int


def ask(program: Program) -> Callable[[], list[Limit]]:
    """Add the calls that tell all limits, in the order of their numbers."""
    answers = [bytearray(_LIMIT.size) for _ in NAMES]
    for resource, answer in enumerate(answers):
        syscalls.prlimit(program, 0, resource, None, answer)

    def answered() -> list[Limit]:
        pairs = (_LIMIT.unpack(answer) for answer in answers)
        return [Limit(soft=soft, hard=hard) for soft, hard in pairs]

    return answered


def in_force(pid: int) -> list[tuple[int, int]]:
    """Return a process's (soft, hard) limits, in the order of their numbers (fs/proc/base.c)."""
    with open(f"/proc/{pid}/limits", "rb", buffering=0) as file:
        lines = file.readall().splitlines()[1:]
    words = [line[_NAMED:].split() for line in lines]
    return [(_number(soft), _number(hard)) for soft, hard, *_ in words]


def by_name(some: Iterable[Limit]) -> dict[str, tuple[int, int]]:
    """Return limits, which are in the order of their numbers, by their names."""
    return {name: (one.soft, one.hard) for name, one in zip(NAMES, some, strict=False)}


def packed(soft: int, hard: int) -> bytes:
    """Return a limit as prlimit(2) takes it."""
    return _LIMIT.pack(soft, hard)


def may_exceed_hard() -> bool:
    """Tell whether we may raise hard limits: tried at one of ours, as our user namespace counts.

    Of no use for that is one that is as high as can be.
    """
    soft, hard = in_force(os.getpid())[_NICE]
    if hard == NONE:
        return False
    try:
        syscalls.prlimit(HERE, 0, _NICE, _LIMIT.pack(soft, hard + 1), None)
    except PermissionError:
        return False
    syscalls.prlimit(HERE, 0, _NICE, _LIMIT.pack(soft, hard), None)
    return True


def _number(word: bytes) -> int:
    return NONE if word == b"unlimited" else int(word)


def check(who: str, limits: list[Limit]) -> None:
    """Check what an image has: stubs may more, which none may keep."""
    if len(limits) < len(NAMES):
        raise ImageError(f"{who} has {len(limits)} limits, not {len(NAMES)}")
    if any(not 0 <= number <= NONE for one in limits for number in (one.soft, one.hard)):
        raise ImageError(f"{who} has an impossible limit")


def bounded(
    limits: list[Limit], present: list[tuple[int, int]], bounds: Mapping[str, tuple[int, int]]
) -> dict[int, tuple[int, int]]:
    """Return which are to be set, none above what the config or the limits in force allow."""
    found = {}
    for resource, limit in enumerate(limits[: len(NAMES)]):
        ceiling = min(bounds.get(NAMES[resource], present[resource])[1], present[resource][1])
        hard = min(limit.hard, ceiling)
        soft = min(limit.soft, hard)
        if (soft, hard) != present[resource]:
            found[resource] = soft, hard
    return found


def restore(program: Program, wanted: Mapping[int, tuple[int, int]]) -> None:
    """Set limits, by their numbers."""
    for resource, limit in wanted.items():
        syscalls.prlimit(program, 0, resource, packed(*limit), None)
