"""What stands in the memory of an io_uring, and how it differs from one that we make."""

import errno
import os
from collections.abc import Callable
from typing import Self

import msgspec

from woodfrog.errors import UnsupportedResource
from woodfrog.kernel import io_uring
from woodfrog.kernel.caller import HERE
from woodfrog.remote.address import page_up
from woodfrog.resources import io_uring_shown
from woodfrog.resources.files.open_file import OpenFile
from woodfrog.resources.io_uring_requests import Seen
from woodfrog.resources.io_uring_shown import Shown

_WORD = 0xFFFFFFFF
_BAD_ADDRESS = 8


class Contents(msgspec.Struct, frozen=True):
    """The memory, without zeros at its end, and what it tells of requests on their way.

    `personalities`: a request has been made with other credentials than the thread's.
    `is_at_rest`: a thread that polls has nothing to do, or sleeps.
    """

    ring: bytes
    requests: bytes
    seen: Seen
    personalities: bool
    is_at_rest: bool


class Sample:
    """An io_uring of ours with the same sizes and nothing else special, to compare others with.

    `flags` say whether its entries are large (IORING_SETUP_SQE128, IORING_SETUP_CQE32).
    """

    def __init__(self, sq_entries: int, cq_entries: int, flags: int = 0) -> None:
        if io_uring.disabled() > 1:
            raise UnsupportedResource(
                "is an io_uring on a machine where nobody may make any more"
                " (kernel.io_uring_disabled), which cannot be saved",
                hint="sysctl kernel.io_uring_disabled=0",
            )
        answer = io_uring.new_answer()
        self._fd = io_uring.setup(HERE, sq_entries, cq_entries, flags, answer)
        self.layout = io_uring.layout_in(answer)
        self.flags = flags
        self.request = io_uring.SQE_BYTES << bool(flags & io_uring.SETUP_SQE128)
        self.completion = io_uring.CQE.size << bool(flags & io_uring.SETUP_CQE32)
        self.ring_bytes = self.layout.array + 4 * sq_entries
        self.request_bytes = self.request * sq_entries
        # What rings with completions and requests of twice the size would have.
        self._most = page_up(self.layout.cqes + 2 * io_uring.CQE.size * cq_entries + 4 * sq_entries)
        self._most_requests = page_up(2 * io_uring.SQE_BYTES * sq_entries)

    @classmethod
    def like(cls, file: OpenFile) -> Self:
        """Make one for a ring that is open in a held process; raises UnsupportedResource.

        Where a ring is too small for its kind to show by the number of its pages, something must
        stand behind the place of smaller entries.
        """
        shown = io_uring_shown.parse(file.lines)
        if shown is None:
            raise UnsupportedResource("is an io_uring that the kernel is at work in")
        plain = cls(shown.sq_entries, shown.cq_entries)
        flags = 0
        try:
            ring, requests = plain.memory(file.descriptor)
            ours, our_requests = plain.memory(plain._fd)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise UnsupportedResource(
                "is an io_uring in the program's own memory (IORING_SETUP_NO_MMAP),"
                " which cannot be saved yet"
            ) from None
        finally:
            os.close(plain._fd)
        if shown.large_requests or _is_larger(requests, our_requests, plain.request_bytes):
            flags |= io_uring.SETUP_SQE128
        if shown.large_completions or _is_larger(ring, ours, plain.ring_bytes):
            flags |= io_uring.SETUP_CQE32
        return cls(shown.sq_entries, shown.cq_entries, flags)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    @property
    def knows_napi(self) -> bool:
        """Tell whether this kernel has IORING_REGISTER_NAPI, which rings that poll refuse."""
        return self.answer(self._fd, io_uring.REGISTER_NAPI, _BAD_ADDRESS) == errno.EFAULT

    def is_single_issuer(self, file: OpenFile) -> bool:
        """Tell whether a ring is for one thread only, which is not ours."""
        return self.answer(file.descriptor, io_uring.REGISTER_PROBE, 0) == errno.EEXIST

    def defers_task_work(self, file: OpenFile) -> bool:
        """Tell whether only its thread can have its completions come (DEFER_TASKRUN)."""
        flags = io_uring.ENTER_GETEVENTS
        return _error(lambda: io_uring.enter(HERE, file.descriptor, 0, flags)) == errno.EEXIST

    def answer(self, fd: int, operation: int, argument: int | bytes) -> int:
        """Return the error number that we get for an operation, or 0."""
        return _error(lambda: io_uring.register(HERE, fd, operation, argument, 1))

    def read(self, fd: int) -> tuple[bytes, bytes]:
        """Return the memory of another ring of the same kind."""
        ring, requests = self.memory(fd)
        return ring[: self.ring_bytes], requests[: self.request_bytes]

    def memory(self, fd: int) -> tuple[bytes, bytes]:
        """Return what stands in a ring of any kind, to the end of its pages."""
        return (
            io_uring.accessible(fd, io_uring.OFF_SQ_RING, self._most),
            io_uring.accessible(fd, io_uring.OFF_SQES, self._most_requests),
        )


def _is_larger(has: bytes, sample: bytes, size: int) -> bool:
    return len(has) > len(sample) or any(has[size:])


def _error(call: Callable[[], int]) -> int:
    try:
        call()
    except OSError as error:
        return error.errno or 0
    return 0


def contents_of(file: OpenFile, shown: Shown, sample: Sample) -> Contents:
    """Read the memory of a ring whose threads are all held."""
    ring, requests = sample.read(file.descriptor)
    layout = sample.layout
    array = indexes(ring, layout.array, shown.sq_entries)

    def index_of(at: int) -> int:
        return array[at % shown.sq_entries] % shown.sq_entries

    def request(index: int) -> bytes:
        return requests[index * sample.request :][: io_uring.SQE_BYTES]

    def completion(at: int) -> tuple[int, int, int]:
        place = layout.cqes + at % shown.cq_entries * sample.completion
        data, result, flags = io_uring.CQE.unpack_from(ring, place)
        return data, result, flags

    # Requests that are not submitted yet stand where the oldest have been.
    ready = shown.sq_tail - shown.submitted & _WORD
    last = min(shown.submitted, max(0, shown.sq_entries - ready))
    # A slot may be used again out of turn: then it is the newer request's. Newest first.
    used: dict[int, int] = {}
    for back in range(1, ready + last + 1):
        used.setdefault(index_of(shown.sq_tail - back), back)
    stand = [index for index, back in used.items() if back > ready]
    whole = (
        len(stand) == shown.submitted
        and shown.submitted + ready <= shown.sq_entries
        and shown.completed <= shown.cq_entries
    )
    seen = Seen(
        requests=[request(index) for index in reversed(stand)],
        completions=[
            completion(shown.completed - back)
            for back in range(min(shown.completed, shown.cq_entries), 0, -1)
        ]
        + shown.overflown,
        on_their_way=shown.submitted - shown.completed - len(shown.overflown) & _WORD,
        polled=shown.polled,
        whole=whole,
    )
    if array == list(range(shown.sq_entries)):
        ring = ring[: layout.array]  # as if it had none
    flags = int.from_bytes(ring[layout.sq_flags :][:4], "little")
    # They are the kernel's, and its thread goes to sleep when it likes.
    ring = ring[: layout.sq_flags] + bytes(4) + ring[layout.sq_flags + 4 :]
    places = range(0, len(requests), sample.request)
    personalities = any(any(requests[at + 42 : at + 44]) for at in places)
    return Contents(
        ring=ring.rstrip(b"\0"),
        requests=requests.rstrip(b"\0"),
        seen=seen,
        personalities=personalities,
        is_at_rest=not ready or bool(flags & io_uring.SQ_NEED_WAKEUP),
    )


def indexes(ring: bytes, at: int, entries: int) -> list[int]:
    """Return the array of indexes; if there is none (IORING_SETUP_NO_SQARRAY), that of none."""
    found = ring[at : at + 4 * entries].ljust(4 * entries, b"\0")
    if not any(found):
        return list(range(entries))
    return [int.from_bytes(found[at : at + 4], "little") for at in range(0, len(found), 4)]
