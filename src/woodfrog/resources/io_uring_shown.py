"""What /proc/PID/fdinfo shows of an io_uring."""

import re
from collections import Counter
from collections.abc import Sequence

import msgspec

from woodfrog.resources.files.io_uring import Buffer

_NUMBERS = frozenset(
    (
        "SqMask",
        "SqHead",
        "SqTail",
        "CachedSqHead",
        "CqMask",
        "CqHead",
        "CqTail",
        "CachedCqTail",
        "SqThread",
        "UserFiles",
        "UserBufs",
    )
)
_ENTRY = r"\s*(\d+): (.*)"
_POLLED = r"\s+op=(\d+), task_works=\d+"
_OVERFLOWN = r"\s+user_data=(\d+), res=(-?\d+), flags=([0-9a-f]+)"
_OCTAL = rb"\\([0-7]{3})"


class Shown(msgspec.Struct, frozen=True):
    """Sizes and counts of requests and completions, and what is registered.

    `files` are as links in /proc/PID/fd read, empty for a place without one. `polled` counts the
    operations of requests that wait for a file; `overflown` are the completions without a place:
    user_data, result, flags. That entries are large shows only while there are some.
    """

    sq_entries: int
    cq_entries: int
    submitted: int
    sq_head: int
    sq_tail: int
    completed: int
    cq_head: int
    cq_tail: int
    thread: int
    files: list[bytes]
    buffers: list[Buffer]
    personalities: bool
    polled: Counter[int]
    overflown: list[tuple[int, int, int]]
    large_requests: bool
    large_completions: bool


def parse(lines: Sequence[str]) -> Shown | None:
    """Read the lines; None if the kernel was at work in the ring and shows nothing."""
    numbers: dict[str, int] = {}
    files: list[bytes] = []
    buffers: list[Buffer] = []
    polled: Counter[int] = Counter()
    below = ""
    overflown: list[tuple[int, int, int]] = []
    for line in lines:
        name, _, value = line.partition(":")
        if not line.startswith(" ") and line:
            below = name
            value = value.strip()
            if name in _NUMBERS:
                numbers[name] = int(value, 0)
            if name == "UserFiles":
                files = [b""] * numbers[name]
            elif name == "UserBufs":
                buffers = [Buffer(address=0, length=0)] * numbers[name]
            continue
        entry = re.match(_ENTRY, line)
        if entry and below == "UserFiles" and entry[2] != "<none>":
            # Older kernels show no name for what has no path.
            files[int(entry[1])] = _unescaped(entry[2]) or b"a file without a name"
        elif entry and below == "UserBufs" and entry[2] != "<none>":
            address, _, length = entry[2].partition("/")
            buffers[int(entry[1])] = Buffer(address=int(address, 16), length=int(length))
        elif below == "PollList" and (poll := re.match(_POLLED, line)):
            polled[int(poll[1])] += 1
        elif below == "CqOverflowList" and (one := re.match(_OVERFLOWN, line)):
            overflown.append((int(one[1]), int(one[2]), int(one[3], 16)))
    if "SqMask" not in numbers:
        return None
    return Shown(
        sq_entries=numbers["SqMask"] + 1,
        cq_entries=numbers["CqMask"] + 1,
        submitted=numbers["CachedSqHead"],
        sq_head=numbers["SqHead"],
        sq_tail=numbers["SqTail"],
        completed=numbers["CachedCqTail"],
        cq_head=numbers["CqHead"],
        cq_tail=numbers["CqTail"],
        thread=numbers.get("SqThread", -1),
        files=files,
        buffers=buffers,
        personalities=any(line.startswith("Personalities") for line in lines),
        polled=polled,
        overflown=overflown,
        large_requests=any(", e0:0x" in line for line in lines),
        large_completions=any(", extra1:" in line for line in lines),
    )


def _unescaped(name: str) -> bytes:
    raw = name.encode("utf-8", "surrogateescape")
    return re.sub(_OCTAL, lambda found: bytes([int(found[1], 8)]), raw)
