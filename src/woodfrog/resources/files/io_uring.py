"""io_uring(7): rings of requests and completions. Their memory is what processes map of them."""

from typing import Any, ClassVar, Self

from woodfrog.errors import ImageError
from woodfrog.image.record import Part
from woodfrog.kernel import io_uring
from woodfrog.resources.files.base import FileRecord, Row
from woodfrog.resources.files.making import Making
from woodfrog.resources.files.open_file import OpenFile
from woodfrog.resources.files.world import World

_WORD = 0xFFFFFFFF
_MOST_REGISTERED = 1 << 15
_MOST_OVERFLOWN = 1 << 16


def is_one(name: bytes) -> bool:
    """Tell whether a link of /proc, which reads `name`, leads to an io_uring."""
    return name == b"anon_inode:[io_uring]"


def is_polled(file: OpenFile) -> bool:
    """Tell whether an open file is an io_uring that a thread of the kernel's looks after."""
    return is_one(file.target) and int(file.fdinfo.get("SqThread", -1)) != -1


class Registered(Part, frozen=True, array_like=True):
    """A ring that a thread has registered (IORING_REGISTER_RING_FDS)."""

    tid: int
    index: int


class Buffer(Part, frozen=True, array_like=True):
    """A registered buffer; one of no length is an empty place."""

    address: int
    length: int


class Completion(Part, frozen=True, array_like=True):
    """A completion for which there was no room."""

    user_data: int
    result: int


_ROW = Row(
    called="io_uring",
    kept=(
        "requests that are not submitted and completions that are not taken, at the same"
        " addresses, or had no room (with results other than 0 for Linux 6.10 and newer); polled by"
        " the kernel (IORING_SETUP_SQPOLL), or polling devices (IORING_SETUP_IOPOLL); registered"
        " files that the process has open, buffers, an eventfd",
        "what is on its way: poll, read, write, recv, send and accept go on, all else is"
        " completed by ECANCELED",
    ),
    refused=(
        "in memory of its own; with restrictions,"
        " registered credentials or provided buffers; with requests that are being worked on, or by"
        " `--leave-running` with such on their way of which the rings do not tell enough",
    ),
)


class AnyIoUring(FileRecord, frozen=True):
    """Rings, how many requests and completions have gone through them, and what is on its way.

    `owner` is the thread that makes them whole: the one that may use them, if only one may
    (`single_issuer`). Requests in `reissued` are made again, those in `cancelled` (their user_data)
    completed as cancelled. Registered files and the eventfd are descriptors of the owner; -1: none.
    `layout` and `ring` are as in kernel.io_uring, without zeros at the end.
    """

    row: ClassVar[Row] = _ROW

    owner: int
    sq_entries: int
    cq_entries: int
    single_issuer: bool
    defer_taskrun: bool
    layout: list[int]
    submitted: int
    completed: int
    ring: bytes
    requests: bytes
    reissued: list[bytes] = []
    cancelled: list[int] = []
    files: list[int] = []
    buffers: list[Buffer] = []
    eventfd: int = -1
    registered: list[Registered] = []
    overflown: list[Completion] = []
    large_requests: bool = False
    large_completions: bool = False
    polls_devices: bool = False

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        fields: dict[str, Any] = world.ring(file)
        return cls(id=number, flags=file.flags, **fields)

    @property
    def size_flags(self) -> int:
        """The flags for io_uring_setup(2) that say how large entries are."""
        large_requests = io_uring.SETUP_SQE128 if self.large_requests else 0
        return large_requests | (io_uring.SETUP_CQE32 if self.large_completions else 0)

    @property
    def setup_flags(self) -> int:
        """All flags for io_uring_setup(2)."""
        # SUBMIT_ALL and TASKRUN_FLAG can't be told from outside; a program that has not asked for
        # them can do with them, one that has can't do without.
        flags = io_uring.SETUP_SUBMIT_ALL | self.size_flags
        if self.single_issuer:
            flags |= io_uring.SETUP_SINGLE_ISSUER
        if self.defer_taskrun:
            flags |= io_uring.SETUP_DEFER_TASKRUN | io_uring.SETUP_TASKRUN_FLAG
        if self.polls_devices:
            flags |= io_uring.SETUP_IOPOLL
        return flags

    def losses(self) -> dict[str, int]:
        return {"requests to io_uring are restored as cancelled": len(self.cancelled)}

    def refuse_wider(self, bounding: int) -> None:
        sizes = (self.sq_entries, self.cq_entries)
        if not (
            all(size > 0 and size & (size - 1) == 0 for size in sizes)
            and self.sq_entries <= io_uring.MOST_ENTRIES
            and self.sq_entries <= self.cq_entries <= 2 * io_uring.MOST_ENTRIES
        ):
            raise ImageError("an io_uring in the image has impossible sizes")
        if len(self.layout) != len(io_uring.Layout._fields):
            raise ImageError("an io_uring in the image has no known layout")
        counts = (self.submitted, self.completed)
        if (
            not all(0 <= count <= _WORD for count in counts)
            or len(self.reissued) > self.sq_entries
            or len(self.reissued) + len(self.overflown) > self.submitted
            or any(len(sqe) != io_uring.SQE_BYTES for sqe in self.reissued)
            or len(self.cancelled) > self.cq_entries
            or len(self.overflown) > _MOST_OVERFLOWN
            or len(self.files) > _MOST_REGISTERED
            or len(self.buffers) > _MOST_REGISTERED
            or len(self.requests) > self.sq_entries * io_uring.SQE_BYTES << self.large_requests
        ):
            raise ImageError("an io_uring in the image has impossible contents")


class IoUring(AnyIoUring, frozen=True, tag="io-uring"):
    """Rings that are entered by io_uring_enter(2)."""

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        return is_one(file.target) and not is_polled(file)

    def restore(self, making: Making) -> int:
        flags = self.setup_flags
        if self.single_issuer:
            # The one who may use them is who enables them.
            flags |= io_uring.SETUP_R_DISABLED
        answer = io_uring.new_answer()
        return io_uring.setup(making.program, self.sq_entries, self.cq_entries, flags, answer)


class PolledIoUring(AnyIoUring, frozen=True, tag="polled-io-uring"):
    """Rings for which a thread of the kernel's looks (IORING_SETUP_SQPOLL).

    That is one of the process that makes them, with the rights that it has then: so they come last.
    """

    late: ClassVar[bool] = True
    made_last: ClassVar[bool] = True

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        return is_polled(file)

    @property
    def setup_flags(self) -> int:
        return super().setup_flags | io_uring.SETUP_SQPOLL
