"""io_uring(7): rings of requests and completions, in memory that is shared with the kernel."""

import errno
import mmap
import os
import struct
from typing import NamedTuple, Self

import msgspec

from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import Caller

# Where mmap(2) finds what; IORING_OFF_*.
OFF_SQ_RING, OFF_CQ_RING, OFF_SQES = 0, 0x8000000, 0x10000000

# Flags of io_uring_setup(2).
SETUP_IOPOLL, SETUP_SQPOLL = 1 << 0, 1 << 1
SETUP_CQSIZE, SETUP_R_DISABLED, SETUP_SUBMIT_ALL = 1 << 3, 1 << 6, 1 << 7
SETUP_SQE128, SETUP_CQE32 = 1 << 10, 1 << 11
SETUP_TASKRUN_FLAG, SETUP_SINGLE_ISSUER, SETUP_DEFER_TASKRUN = 1 << 9, 1 << 12, 1 << 13
MOST_ENTRIES = 32768

# Flags of io_uring_enter(2).
ENTER_GETEVENTS, ENTER_SQ_WAKEUP, ENTER_REGISTERED_RING = 1 << 0, 1 << 1, 1 << 4
# Flag in the memory of rings: their thread sleeps.
SQ_NEED_WAKEUP = 1 << 0
MOST_REGISTERED_RINGS = 16

# Operations of io_uring_register(2).
REGISTER_BUFFERS, REGISTER_FILES, REGISTER_EVENTFD, REGISTER_PROBE = 0, 2, 4, 8
REGISTER_ENABLE_RINGS, REGISTER_RING_FDS, REGISTER_SYNC_CANCEL = 12, 20, 24
REGISTER_PBUF_STATUS = 26
REGISTER_NAPI, REGISTER_MEM_REGION = 27, 34

# A request (struct io_uring_sqe) and what is read of it: opcode, flags, ioprio, fd, off, addr, len,
# op flags, user_data, buf_group.
SQE_BYTES = 64
_SQE = struct.Struct("<BBHiQQIIQH")
# A completion (struct io_uring_cqe): user_data, res, flags.
CQE = struct.Struct("<QiI")
CQE_F_MORE = 1 << 1
_PARAMS = struct.Struct("<10I8IQ8IQ")
_BUFFER_STATUS_BYTES = 40


class Request(msgspec.Struct, frozen=True):
    """What a request says."""

    opcode: int
    flags: int
    ioprio: int
    fd: int
    off: int
    addr: int
    len: int
    op_flags: int
    user_data: int
    buf_group: int

    @classmethod
    def parse(cls, sqe: bytes) -> Self:
        """Read a struct io_uring_sqe."""
        return cls(*_SQE.unpack_from(sqe))


class Layout(NamedTuple):
    """Where the parts of the rings begin: `array` the indexes of requests, `cqes` completions."""

    sq_head: int
    sq_tail: int
    sq_flags: int
    cq_head: int
    cq_tail: int
    cqes: int
    array: int


def disabled() -> int:
    """Return kernel.io_uring_disabled: by 1 only CAP_SYS_ADMIN and a group may, by 2 nobody."""
    try:
        with open("/proc/sys/kernel/io_uring_disabled", encoding="ascii") as file:
            return int(file.read())
    except FileNotFoundError:
        return 0  # before Linux 6.6


def setup(on: Caller, sq_entries: int, cq_entries: int, flags: int, answer: bytearray) -> int:
    """Make rings of these sizes; `answer` is as long as `new_answer()` and is filled."""
    answer[:] = _PARAMS.pack(0, cq_entries, flags | SETUP_CQSIZE, *(0,) * 25)
    return on.call(SYS.IO_URING_SETUP, sq_entries, answer)


def new_answer() -> bytearray:
    """Return room for the struct io_uring_params of a call."""
    return bytearray(_PARAMS.size)


def layout_in(answer: bytes | bytearray) -> Layout:
    """Return where the kernel has put what, as `setup` was told."""
    words = _PARAMS.unpack(answer)
    sq, cq = words[10:19], words[19:28]
    return Layout(
        sq_head=sq[0],
        sq_tail=sq[1],
        sq_flags=sq[4],
        cq_head=cq[0],
        cq_tail=cq[1],
        cqes=cq[5],
        array=sq[6],
    )


def enter(on: Caller, ring: int, submit: int, flags: int) -> int:
    """Submit up to `submit` requests; wait for nothing."""
    return on.call(SYS.IO_URING_ENTER, ring, submit, 0, flags, 0, 0)


def register(on: Caller, ring: int, operation: int, argument: int | bytes, count: int) -> int:
    """Run one IORING_REGISTER_* operation."""
    return on.call(SYS.IO_URING_REGISTER, ring, operation, argument, count)


def buffer_status(group: int) -> bytes:
    """Return the argument of REGISTER_PBUF_STATUS for a group of provided buffers."""
    return struct.pack("<I", group) + bytes(_BUFFER_STATUS_BYTES - 4)


def cancel_all() -> bytes:
    """Return the argument of REGISTER_SYNC_CANCEL for all requests, without a timeout."""
    every_and_any = 1 << 0 | 1 << 2
    return struct.pack("<QiI2qB31x", 0, -1, every_and_any, -1, -1, 0)


def ring_update(index: int, ring: int) -> bytes:
    """Return the argument of REGISTER_RING_FDS that gives a ring an index in a thread."""
    return struct.pack("<IIQ", index, 0, ring)


class Memory:
    """The memory of rings, mapped by us: `ring` but for the requests, which are in `requests`.

    Both may be longer than what the kernel has there: see `accessible`. Raises OSError for rings
    in memory of the program's own (IORING_SETUP_NO_MMAP).
    """

    def __init__(self, fd: int, ring_bytes: int, request_bytes: int) -> None:
        self.ring = mmap.mmap(fd, ring_bytes, offset=OFF_SQ_RING)
        try:
            self.requests = mmap.mmap(fd, request_bytes, offset=OFF_SQES)
        except BaseException:
            self.ring.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.ring.close()
        self.requests.close()

    def word(self, offset: int) -> int:
        """Read 32 bits of `ring`."""
        return int.from_bytes(self.ring[offset : offset + 4], "little")

    def set_word(self, offset: int, value: int) -> None:
        """Write 32 bits of `ring`."""
        self.ring[offset : offset + 4] = value.to_bytes(4, "little")


def accessible(fd: int, offset: int, length: int) -> bytes:
    """Return what stands at an offset of rings, as far as there is memory; at most `length`."""
    try:
        mapped = mmap.mmap(fd, length, prot=mmap.PROT_READ, offset=offset)
    except OSError as error:
        # Before Linux 6.10 no more can be mapped than there is.
        if error.errno != errno.EINVAL or length <= mmap.PAGESIZE:
            raise
        return accessible(fd, offset, length - mmap.PAGESIZE & -mmap.PAGESIZE)
    copy = os.memfd_create("ring", os.MFD_CLOEXEC)
    try:
        # Where there is no memory, write(2) ends; to read it would be a SIGBUS.
        with memoryview(mapped) as view:
            written = os.write(copy, view)
        return os.pread(copy, written, 0)
    finally:
        os.close(copy)
        mapped.close()
