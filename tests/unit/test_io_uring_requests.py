"""What is told of an io_uring's requests that are on their way, from its last entries."""

import struct
from collections import Counter

import pytest
from msgspec.structs import astuple

from woodfrog.kernel.io_uring import CQE_F_MORE, SQE_BYTES
from woodfrog.resources.io_uring_requests import Seen, Unclear, pending, sort_out
from woodfrog.resources.io_uring_shown import parse

NOP, POLL, TIMEOUT, ACCEPT, LINK_TIMEOUT, READ, RECV = 0, 6, 11, 13, 15, 22, 27
LINK, SKIP = 1 << 2, 1 << 6


def sqe(opcode: int, data: int, *, flags: int = 0, op_flags: int = 0, fd: int = 3) -> bytes:
    one = struct.pack("<BBHiQQIIQ", opcode, flags, 0, fd, 0, 0, 0, op_flags, data)
    return one.ljust(SQE_BYTES, b"\0")


def seen(
    requests: list[bytes],
    completions: list[int | tuple[int, int]],
    polled: list[int],
    *,
    on_their_way: int | None = None,
) -> Seen:
    """Make a ring whose history is all there, unless it is said how many are on their way."""
    return Seen(
        requests=requests,
        completions=[
            (one, 0, 0) if isinstance(one, int) else (one[0], 0, one[1]) for one in completions
        ],
        on_their_way=on_their_way or 0,
        polled=Counter(polled),
        whole=on_their_way is None,
    )


def test_what_is_answered_is_not_on_its_way() -> None:
    assert astuple(pending(seen([sqe(NOP, 1), sqe(READ, 2)], [2, 1], []))) == ([], [])


def test_what_says_all_is_made_again_and_the_rest_is_cancelled() -> None:
    read, poll = sqe(READ, 2), sqe(POLL, 3)
    requests = [sqe(NOP, 1), read, poll, sqe(TIMEOUT, 4), sqe(59, 5)]

    assert astuple(pending(seen(requests, [1], [READ, POLL, 59]))) == ([read, poll], [4, 5])


def test_a_chain_is_cancelled() -> None:
    requests = [sqe(READ, 1, flags=LINK), sqe(LINK_TIMEOUT, 2), sqe(POLL, 3)]

    assert astuple(pending(seen(requests, [3], [READ]))) == ([], [1, 2])


def test_what_is_answered_more_than_once_is_on_its_way_until_the_last_time() -> None:
    accept = sqe(ACCEPT, 1)

    assert astuple(pending(seen([accept], [(1, CQE_F_MORE)] * 2, [ACCEPT]))) == ([accept], [])
    assert astuple(pending(seen([accept], [(1, CQE_F_MORE), 1], []))) == ([], [])


def test_of_a_long_history_all_that_are_counted_must_be_found() -> None:
    read = sqe(READ, 2)

    assert astuple(pending(seen([sqe(NOP, 1), read], [0, 1], [READ], on_their_way=1))) == (
        [read],
        [],
    )
    assert astuple(pending(seen([read], [], [], on_their_way=0))) == ([], [])
    with pytest.raises(Unclear):
        pending(seen([sqe(NOP, 1), read], [0, 1], [READ], on_their_way=2))
    with pytest.raises(Unclear):
        pending(seen([sqe(NOP, 1), sqe(NOP, 2)], [1, 2], [ACCEPT], on_their_way=1))
    with pytest.raises(Unclear):
        pending(seen([read], [(9, CQE_F_MORE)], [READ], on_their_way=1))


@pytest.mark.parametrize(
    ("requests", "completions", "polled"),
    [
        ([sqe(READ, 1, fd=3), sqe(READ, 1, fd=4)], [1], [READ]),  # which of the two?
        ([sqe(READ, 1)], [], []),  # it is being worked on
        ([], [], [READ]),  # of which nothing is known
        ([sqe(RECV, 1, op_flags=0x100)], [], [RECV]),  # some may have been received
        ([sqe(READ, 1, flags=SKIP), sqe(READ, 2)], [], [READ]),
    ],
)
def test_what_is_unclear_is_not_guessed(
    requests: list[bytes], completions: list[int | tuple[int, int]], polled: list[int]
) -> None:
    with pytest.raises(Unclear):
        pending(seen(requests, completions, polled))


def test_what_was_cancelled_is_found_by_its_user_data() -> None:
    read, recv, other = sqe(READ, 1), sqe(RECV, 2), sqe(RECV, 2, fd=4)

    found = sort_out(seen([read, recv, read], [1], [READ, RECV]), [1, 2, 9])
    assert astuple(found) == ([read, recv], [9])
    # One of two that differ, one that was no longer polled, one of a chain.
    assert astuple(sort_out(seen([recv, other], [], [RECV]), [2])) == ([], [2])
    assert astuple(sort_out(seen([read], [], [RECV]), [1])) == ([], [1])
    chain = [sqe(READ, 1, flags=LINK), sqe(RECV, 2)]
    assert astuple(sort_out(seen(chain, [], [READ, RECV]), [1, 2])) == ([], [1, 2])


# As Linux 6.18 shows it, and with what only older kernels show.
FDINFO = """\
pos:\t0
flags:\t02000002
mnt_id:\t17
ino:\t459358
SqMask:\t0x7
SqHead:\t3
SqTail:\t4
CachedSqHead:\t3
CqMask:\t0xf
CqHead:\t0
CqTail:\t1
CachedCqTail:\t1
SQEs:\t1
    3: opcode:NOP, fd:-1, flags:0, off:0, addr:0x0, rw_flags:0x0, buf_index:0 user_data:9, e0:0x0
CQEs:\t1
    0: user_data:7, res:0, flags:0, extra1:0, extra2:0
SqThread:\t-1
SqThreadCpu:\t-1
UserFiles:\t4
    0: <none>
    1: /tmp/a\\040b\\040(deleted)
    3:\x20
UserBufs:\t2
    0: 0x7f6f78a6b000/4096
    1: <none>
Personalities:
    1
	Uid:\t0\t\t0\t\t0\t\t0
PollList:
  op=22, task_works=0
  op=6, task_works=0
  op=22, task_works=0
CqOverflowList:
  user_data=77, res=-9, flags=1
NAPI:\tdisabled
"""


def test_what_the_kernel_shows_is_read() -> None:
    found = parse(FDINFO.splitlines())

    assert found is not None
    assert (found.sq_entries, found.cq_entries) == (8, 16)
    assert (found.submitted, found.sq_tail, found.completed, found.thread) == (3, 4, 1, -1)
    assert found.files == [b"", b"/tmp/a b (deleted)", b"", b"a file without a name"]
    assert [(one.address, one.length) for one in found.buffers] == [(0x7F6F78A6B000, 4096), (0, 0)]
    assert found.personalities
    assert found.polled == {READ: 2, POLL: 1}
    assert found.overflown == [(77, -9, 1)]
    assert found.large_requests
    assert found.large_completions


def test_a_ring_that_the_kernel_is_at_work_in_shows_nothing() -> None:
    assert parse(FDINFO.splitlines()[:4]) is None
