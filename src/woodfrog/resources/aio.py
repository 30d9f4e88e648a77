"""Linux AIO (io_setup(2)): contexts, which are mapped rings of events.

A context is known by its address. Nobody shows its requests, nor how many there are: only events.
"""

import os
import struct
import time
from collections.abc import Iterable

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.image.record import Part
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import PAGE, SYS
from woodfrog.remote.program import Program

# struct aio_ring: id, nr, head, tail, magic, compat_features, incompat_features, header_length.
_RING = struct.Struct("<8I")
_EVENT_BYTES = 32
_MAGIC = 0xA10A10A1
_LARGEST = 1 << 24
# struct iocb: data, key, rw_flags, opcode, priority, fd, buffer, count, offset, reserved, flags and
# descriptor for news.
_READ_NOTHING = struct.Struct("<QIIHhIQQqQII")
_FD_OFFSET = 20
_AT_ONCE = 16
_STILL_S, _PATIENCE_S = 0.02, 0.5


class Context(Part, frozen=True):
    """A context: where it is mapped, and its events: those from `head` to `tail` wait.

    `alive`: the kernel knows it. It doesn't in a child of fork(2), which has the memory alone.
    """

    start: int
    length: int
    head: int
    tail: int
    alive: bool
    events: bytes

    @property
    def most(self) -> int:
        """How many events there is room for."""
        return (self.length - _RING.size) // _EVENT_BYTES

    @property
    def maximum(self) -> int:
        """An argument of io_setup(2) that gives as much room."""
        return (self.most - 2) // 2


def ask(program: Program, start: int) -> int:
    """Add a call that fails if the kernel knows no context there, and does nothing else."""
    return program.may_fail(program.call(SYS.IO_GETEVENTS, start, 0, 0, 0, 0))


def collect(memory: int, start: int, length: int, *, alive: bool, wait: bool) -> Context:
    """Read a context of a held process, by a descriptor of its memory.

    With `wait`, files are open whose requests may be on their way to a disk.
    """
    ring = os.pread(memory, length, start)
    until = time.monotonic() + _PATIENCE_S
    while wait and time.monotonic() < until:
        time.sleep(_STILL_S)
        before, ring = ring, os.pread(memory, length, start)
        wait = ring != before
    _, most, head, tail, magic, *_ = _RING.unpack_from(ring)
    found = Context(
        start=start,
        length=length,
        head=head,
        tail=tail,
        alive=alive,
        events=ring[_RING.size :].rstrip(b"\0"),
    )
    if magic != _MAGIC or most != found.most or max(head, tail) >= most:
        raise UnsupportedResource(
            f"has a context of Linux AIO at {start:#x} of a form that is not known"
        )
    return found


def check(contexts: Iterable[Context], mapped: set[tuple[int, int]]) -> None:
    """Check contexts from an image against where it says that they are mapped."""
    found = {(one.start, one.start + one.length) for one in contexts}
    if found != mapped:
        raise ImageError("the image has mappings of Linux AIO without a context, or the reverse")
    for one in contexts:
        if (
            one.length > _LARGEST
            or not min(one.head, one.tail) >= 0
            or max(one.head, one.tail) >= one.most
            or len(one.events) > one.length - _RING.size
        ):
            raise ImageError(f"the image has an impossible context of Linux AIO at {one.start:#x}")


def refuse_larger(contexts: Iterable[Context]) -> None:
    """Refuse contexts that would be larger here: they are, with the number of CPUs."""
    with open("/sys/devices/system/cpu/possible", encoding="ascii") as file:
        cpus = int(file.read().replace(",", "-").split("-")[-1]) + 1
    for one in contexts:
        events = 2 * max(one.maximum, 4 * cpus) + 2
        if one.alive and -(-(_RING.size + events * _EVENT_BYTES) // PAGE) * PAGE != one.length:
            raise UnsupportedResource(
                f"the image has a context of Linux AIO at {one.start:#x} for which there is no room"
                f" on a machine that may have {cpus} CPUs"
            )


def make(program: Program, context: Context) -> None:
    """Make a context where there is but one place for it."""
    if context.alive:
        program.call(SYS.IO_SETUP, context.maximum, bytearray(8))
        return
    shared_anonymous_fixed = 0x31
    address = syscalls.mmap(program, context.start, context.length, 3, shared_anonymous_fixed)
    program.expect(address, context.start)


def count(program: Program, contexts: Iterable[Context]) -> None:
    """Have as many events come, and be taken, as there have been; some are left to wait."""
    alive = [one for one in contexts if one.alive]
    if not alive:
        return
    file = syscalls.memfd_create(program, b"nothing", 0)
    request = program.address_of(_READ_NOTHING.pack(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0))
    program.store(request + _FD_OFFSET, file)
    requests = program.address_of(struct.pack("<Q", request) * _AT_ONCE)
    room = program.address_of(bytes(_EVENT_BYTES * _AT_ONCE))
    for one in alive:
        waiting = (one.tail - one.head) % one.most
        for many, is_taken in ((one.head, True), (waiting, False)):
            for first in range(0, many, _AT_ONCE):
                some = min(_AT_ONCE, many - first)
                program.expect(program.call(SYS.IO_SUBMIT, one.start, some, requests), some)
                if is_taken:
                    taken = program.call(SYS.IO_GETEVENTS, one.start, some, some, room, 0)
                    program.expect(taken, some)
    syscalls.close(program, file)


def fill(memory: int, contexts: Iterable[Context]) -> None:
    """Write the events, by a descriptor of the memory."""
    for one in contexts:
        if not one.alive:
            header = _RING.pack(0, one.most, one.head, one.tail, _MAGIC, 1, 0, _RING.size)
            os.pwrite(memory, header, one.start)
        os.pwrite(memory, one.events, one.start + _RING.size)
