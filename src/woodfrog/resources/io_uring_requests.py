"""Which requests of an io_uring are on their way, as far as that can be told.

The kernel shows only the operations of those that wait for a file to become ready. But rings still
hold the last requests and the last completions, and how many there have been.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

import msgspec

from woodfrog.kernel.io_uring import CQE_F_MORE, Request

# Flags of a request; IOSQE_*.
_FIXED_FILE, _DRAIN, _LINK, _HARDLINK = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_BUFFER_SELECT, _CQE_SKIP_SUCCESS = 1 << 5, 1 << 6

# Operations, IORING_OP_*, as they are named there.
_READ_FIXED, _WRITE_FIXED, _POLL_ADD, _TIMEOUT, _ACCEPT, _LINK_TIMEOUT = 4, 5, 6, 11, 13, 15
_READ, _WRITE, _SEND, _RECV = 22, 23, 26, 27
_WAITID, _FUTEX_WAIT, _FUTEX_WAITV = 50, 51, 53
_NEVER_POLLED = frozenset((_TIMEOUT, _LINK_TIMEOUT, _WAITID, _FUTEX_WAIT, _FUTEX_WAITV))
# Of these a request says all, and what it points at must stay as it is until it is completed.
_SAY_ALL = frozenset((_READ_FIXED, _WRITE_FIXED, _POLL_ADD, _ACCEPT, _READ, _WRITE, _SEND, _RECV))
_MSG_WAITALL = 0x100
_FILE_INDEX = slice(44, 48)


class Unclear(Exception):
    """It can't be told which requests are on their way, or how far they are."""


class Seen(msgspec.Struct, frozen=True):
    """What is seen of a ring: the last requests and completions, oldest first, and more.

    `on_their_way` is how many are, if each was completed once; `whole`: there were no others.
    `polled` counts the operations that wait for a file.
    """

    requests: Sequence[bytes]
    completions: Sequence[tuple[int, int, int]]
    on_their_way: int
    polled: Counter[int]
    whole: bool


def is_countable(seen: Seen) -> bool:
    """Tell whether each request is completed once, as far as that is seen."""
    several = any(flags & CQE_F_MORE for _, _, flags in seen.completions)
    return not several and not any(sqe[1] & _CQE_SKIP_SUCCESS for sqe in seen.requests)


class Pending(msgspec.Struct, frozen=True):
    """Requests on their way: those that can be made again, and the user_data of all others."""

    reissued: list[bytes]
    cancelled: list[int]


def pending(seen: Seen) -> Pending:
    """Find the requests that are on their way; raises Unclear."""
    parsed = [Request.parse(sqe) for sqe in seen.requests]
    left = _unanswered(seen, parsed)
    if not seen.whole:
        if not is_countable(seen):
            raise Unclear("some of its requests are answered more than once, or not at all")
        if not seen.on_their_way and not seen.polled:
            return Pending([], [])
        if seen.on_their_way != len(left):
            raise Unclear(f"of {seen.on_their_way} requests on their way {len(left)} are found")
    followers = {
        at for at in left if at and at - 1 in left and parsed[at - 1].flags & (_LINK | _HARDLINK)
    }
    polled = Counter(
        parsed[at].opcode
        for at in left
        if at not in followers and parsed[at].opcode not in _NEVER_POLLED
    )
    if polled != seen.polled:
        raise Unclear("some of its requests are being worked on")
    found = Pending([], [])
    for at in left:
        one = parsed[at]
        if one.flags & _DRAIN or (one.opcode in (_SEND, _RECV) and one.op_flags & _MSG_WAITALL):
            raise Unclear("a request on its way may have been done in part")
        if at not in followers and _can_be_reissued(seen.requests[at], one):
            found.reissued.append(seen.requests[at])
        else:
            found.cancelled.append(one.user_data)
    return found


def sort_out(seen: Seen, cancelled: Sequence[int]) -> Pending:
    """Find what was requested by requests that have just been cancelled, known by their user_data.

    `seen` is what was seen before. One that can't be told for sure counts as cancelled.
    """
    by_data: dict[int, set[bytes]] = defaultdict(set)
    bound: set[bytes] = set()
    is_linked = False
    for sqe in seen.requests:
        one = Request.parse(sqe)
        by_data[one.user_data].add(sqe)
        if is_linked or not _can_be_reissued(sqe, one) or one.flags & _DRAIN:
            bound.add(sqe)
        is_linked = bool(one.flags & (_LINK | _HARDLINK))
    left = seen.polled.copy()
    found = Pending([], [])
    for data in cancelled:
        candidates = by_data[data]
        sqe = next(iter(candidates), b"")
        opcode = sqe[0] if sqe else -1
        if len(candidates) == 1 and sqe not in bound and left[opcode] > 0:
            left[opcode] -= 1
            found.reissued.append(sqe)
        else:
            found.cancelled.append(data)
    return found


def _unanswered(seen: Seen, parsed: Sequence[Request]) -> list[int]:
    """Return which requests have no last completion yet, as indexes, in order."""
    answers = Counter(data for data, _, flags in seen.completions if not flags & CQE_F_MORE)
    by_data: dict[int, list[int]] = defaultdict(list)
    for at, one in enumerate(parsed):
        by_data[one.user_data].append(at)
    left: list[int] = []
    for data, asked in by_data.items():
        count = len(asked) - answers[data]
        if count <= 0:
            continue
        if any(parsed[at].flags & _CQE_SKIP_SUCCESS for at in asked):
            if any(parsed[at].opcode in (*seen.polled, *_NEVER_POLLED) for at in asked):
                raise Unclear("some of its requests are answered only when they fail")
            continue
        if count < len(asked) and len({seen.requests[at] for at in asked}) > 1:
            raise Unclear("several of its requests have the same user_data")
        left += asked[-count:]
    return sorted(left)


def _can_be_reissued(sqe: bytes, request: Request) -> bool:
    bound = request.flags & (_LINK | _HARDLINK | _BUFFER_SELECT)
    # An accepted connection that goes into the table of registered files.
    direct = request.opcode == _ACCEPT and any(sqe[_FILE_INDEX])
    return request.opcode in _SAY_ALL and not bound and not direct
