"""An io_uring made whole in its restored process: counts, contents, what is registered, requests.

The kernel counts requests and completions for itself, so the counts are reached only by requests:
as many as there have been, that do nothing (IORING_OP_NOP).
"""

import os
import struct
import time
from collections.abc import Sequence

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.kernel import io_uring, syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE, checked
from woodfrog.kernel.io_uring import Memory
from woodfrog.kernel.procfs.fdinfo import read_fdinfo
from woodfrog.remote import descriptors
from woodfrog.remote.stub import Stub
from woodfrog.resources import io_uring_shown
from woodfrog.resources.files.io_uring import AnyIoUring, IoUring
from woodfrog.resources.io_uring_memory import Sample

_WORD = 0xFFFFFFFF
_ECANCELED = 125
_ROOM = 4096
_PATIENCE_S = 10.0
_NOP, _MSG_RING, _CQE_SKIP_SUCCESS = 0, 40, 1 << 6
_INJECT_RESULT = 1 << 0  # IORING_NOP_INJECT_RESULT, Linux 6.10
_MESSENGER_ENTRIES = 256

# Enters the ring ebx, r13d requests at a time, r12 times, and moves the head of the completions at
# rbp along:
#   again: mov eax, 426; mov edi, ebx; mov esi, r13d; xor edx, edx; xor r10d, r10d; xor r8d, r8d
#   xor r9d, r9d; syscall; cmp eax, r13d; jne end; add [rbp], r13d; dec r12; jnz again; end: int3
_ENTER_OFTEN = bytes.fromhex(
    "b8aa010000 89df 4489ee 31d2 4531d2 4531c0 4531c9 0f05 4439e8 7509 44016d00 49ffcc 75db cc"
)


class Maker:
    """One ring, which `task` has as descriptor `number` and mapped at `address`."""

    def __init__(self, record: AnyIoUring, task: Stub, number: int, address: int) -> None:
        with Sample(record.sq_entries, record.cq_entries, record.size_flags) as sample:
            self._layout = sample.layout
            self._request, self._completion = sample.request, sample.completion
            self._ring_bytes, self._request_bytes = sample.ring_bytes, sample.request_bytes
        if list(self._layout) != record.layout:
            raise UnsupportedResource("this kernel has the parts of an io_uring at other places")
        if len(record.ring) > self._ring_bytes:
            raise ImageError("an io_uring in the image is larger than its sizes make it")
        self._record = record
        self._task = task
        self._number = number
        self._head = address + self._layout.cq_head
        self._ring = record.ring.ljust(self._ring_bytes, b"\0")
        self._requests = record.requests.ljust(self._request_bytes, b"\0")

    def make(self) -> None:
        """Do all of it; then the ring is as it was."""
        record = self._record
        if isinstance(record, IoUring) and record.single_issuer:
            # Who enables them is the one who may use them.
            self._register(io_uring.REGISTER_ENABLE_RINGS, 0, 0)
        ours = self._ours = descriptors.fetch(self._task.pid, self._number)
        try:
            with Memory(ours, self._ring_bytes, self._request_bytes) as memory:
                self._count(memory)
                self._fill(memory)
                self._register_all()
                self._overflow(memory)
                self._submit_these(memory, record.reissued)
                self._fill_requests(memory)
        finally:
            os.close(ours)

    def _register(self, operation: int, argument: int | bytes, count: int) -> None:
        program = self._task.program()
        io_uring.register(program, self._number, operation, argument, count)
        self._task.run(program)

    def _count(self, memory: Memory) -> None:
        """Have the kernel's counts be what they were before the requests that are on their way."""
        record = self._record
        submitted = record.submitted - len(record.reissued) - len(record.overflown) & _WORD
        completed = record.completed + len(record.cancelled) & _WORD
        silent = submitted - completed & _WORD
        more = 0
        if silent > _WORD >> 1:  # some requests were completed several times
            more, silent = completed - submitted & _WORD, 0
        self._put_indexes(memory)
        for count, flags in ((silent, _CQE_SKIP_SUCCESS), (submitted - silent & _WORD, 0)):
            nothing = bytes((_NOP, flags)).ljust(self._request, b"\0")
            memory.requests[:] = nothing * record.sq_entries
            self._submit(memory, count, answered=not flags)
        if more:
            self._complete_more(memory, more)

    def _put_indexes(self, memory: Memory) -> None:
        entries = self._record.sq_entries
        at = self._layout.array
        memory.ring[at : at + 4 * entries] = struct.pack(f"<{entries}I", *range(entries))

    def _submit(self, memory: Memory, count: int, *, answered: bool) -> None:
        """Submit this many requests, and take their completions."""
        tail = memory.word(self._layout.sq_tail) + count & _WORD
        memory.set_word(self._layout.sq_tail, tail)
        often, rest = divmod(count, self._record.sq_entries)
        head = self._head if answered else self._task.spare_word
        for times, many in ((often, self._record.sq_entries), (1, rest)):
            if times and many:
                done = self._task.execute(
                    _ENTER_OFTEN, rbx=self._number, rbp=head, r12=times, r13=many
                )
                if done.r12:
                    checked(SYS.IO_URING_ENTER, done.result)
                    raise OSError(0, "io_uring_enter did not submit all requests")

    def _complete_more(self, memory: Memory, count: int) -> None:
        """Have completions come without requests: as messages from another ring."""
        task = self._task
        answer = io_uring.new_answer()
        program = task.program()
        made = io_uring.setup(program, _MESSENGER_ENTRIES, 2 * _MESSENGER_ENTRIES, 0, answer)
        task.run(program)
        messenger = program[made]
        layout = io_uring.layout_in(answer)
        message = struct.pack("<BBHi", _MSG_RING, _CQE_SKIP_SUCCESS, 0, self._number)
        ours = descriptors.fetch(task.pid, messenger)
        try:
            size = layout.array + 4 * _MESSENGER_ENTRIES
            with Memory(ours, size, _MESSENGER_ENTRIES * io_uring.SQE_BYTES) as other:
                other.requests[:] = message.ljust(io_uring.SQE_BYTES, b"\0") * _MESSENGER_ENTRIES
                indexes = struct.pack(f"<{_MESSENGER_ENTRIES}I", *range(_MESSENGER_ENTRIES))
                other.ring[layout.array : size] = indexes
                other.set_word(layout.sq_tail, count)
                most = min(_MESSENGER_ENTRIES, self._record.cq_entries)
                program = task.program()
                head = memory.word(self._layout.cq_head)
                while count:
                    some = min(most, count)
                    program.expect(io_uring.enter(program, messenger, some, 0), some)
                    io_uring.enter(program, self._number, 0, io_uring.ENTER_GETEVENTS)
                    head, count = head + some & _WORD, count - some
                    program.store(self._head, head)
                    if program.room < _ROOM:
                        task.run(program)
                        program = task.program()
                syscalls.close(program, messenger)
                task.run(program)
        finally:
            os.close(ours)

    def _fill(self, memory: Memory) -> None:
        """Write what stood in the rings, but for what is the kernel's."""
        layout, record = self._layout, self._record
        # Nor does a request come yet.
        kernels = (layout.sq_head, layout.sq_tail, layout.sq_flags, layout.cq_tail)
        ring = bytearray(self._ring)
        for at in kernels:
            ring[at : at + 4] = memory.ring[at : at + 4]
        for at, data in enumerate(record.cancelled, record.completed):
            place = layout.cqes + at % record.cq_entries * self._completion
            io_uring.CQE.pack_into(ring, place, data, -_ECANCELED, 0)
        memory.ring[:] = bytes(ring)

    def _register_all(self) -> None:
        record = self._record
        if record.files:
            files = struct.pack(f"<{len(record.files)}i", *record.files)
            self._register(io_uring.REGISTER_FILES, files, len(record.files))
        if record.buffers:
            buffers = b"".join(
                struct.pack("<2Q", one.address, one.length) for one in record.buffers
            )
            self._register(io_uring.REGISTER_BUFFERS, buffers, len(record.buffers))
        if record.eventfd >= 0:
            self._register(io_uring.REGISTER_EVENTFD, struct.pack("<i", record.eventfd), 1)

    def _overflow(self, memory: Memory) -> None:
        """Have completions come for which there is no room, by requests that say their results."""
        record = self._record
        if not record.overflown:
            return
        self._submit_these(
            memory,
            [
                struct.pack("<BBHiQQIIQ", _NOP, 0, 0, -1, 0, 0, one.result & _WORD, flags, data)
                for one in record.overflown
                for flags, data in ((_INJECT_RESULT if one.result else 0, one.user_data),)
            ],
        )
        shown = io_uring_shown.parse(read_fdinfo(os.getpid(), self._ours)[1])
        wanted = [(one.user_data, one.result, 0) for one in record.overflown]
        if shown is None or shown.overflown != wanted:
            raise UnsupportedResource(
                "this kernel cannot bring back completions of an io_uring that had no room"
            )

    def _submit_these(self, memory: Memory, requests: Sequence[bytes]) -> None:
        entries = self._record.sq_entries
        if requests:
            self._put_indexes(memory)
        for first in range(0, len(requests), entries):
            some = requests[first : first + entries]
            for at, sqe in enumerate(some, memory.word(self._layout.sq_tail)):
                place = at % entries * self._request
                memory.requests[place : place + self._request] = sqe.ljust(self._request, b"\0")
            self._submit(memory, len(some), answered=False)

    def _fill_requests(self, memory: Memory) -> None:
        """Write the requests as they stood, those that are not submitted yet included."""
        layout = self._layout
        memory.requests[:] = self._requests
        array = self._ring[layout.array :]
        if any(array):
            memory.ring[layout.array :] = array
        else:
            self._put_indexes(memory)
        tail = self._ring[layout.sq_tail : layout.sq_tail + 4]
        memory.set_word(layout.sq_tail, int.from_bytes(tail, "little"))


class PolledMaker(Maker):
    """A ring for which a thread of the kernel's looks: it takes requests as they come."""

    def _submit(self, memory: Memory, count: int, *, answered: bool) -> None:
        layout = self._layout
        tail = memory.word(layout.sq_tail)
        while count:
            some = min(count, self._record.cq_entries)
            tail, count = tail + some & _WORD, count - some
            memory.set_word(layout.sq_tail, tail)
            self._await(memory, tail)
            if answered:
                memory.set_word(layout.cq_head, memory.word(layout.cq_tail))

    def _await(self, memory: Memory, tail: int) -> None:
        """Wait until the thread has taken the requests up to the tail."""
        deadline = time.monotonic() + _PATIENCE_S
        while memory.word(self._layout.sq_head) != tail:
            if memory.word(self._layout.sq_flags) & io_uring.SQ_NEED_WAKEUP:
                io_uring.enter(HERE, self._ours, 0, io_uring.ENTER_SQ_WAKEUP)
            if time.monotonic() > deadline:
                raise TimeoutError("the thread of an io_uring does not take requests")
