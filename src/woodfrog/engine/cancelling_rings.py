"""Requests to io_uring that nobody can know before they are cancelled: then completions tell.

It is done when all else is written, just before the container ends. Should the image fail even
then, the container runs on, and its programs are told that those requests were cancelled.
"""

import errno
import time
from collections.abc import Iterable, Sequence

import msgspec
from msgspec.structs import replace

from woodfrog.engine.collected import scratch_in
from woodfrog.engine.rings import Ring, Rings
from woodfrog.errors import UnsupportedResource, while_
from woodfrog.kernel import io_uring
from woodfrog.remote.vdso import Vdso
from woodfrog.resources.files.base import FileRecord
from woodfrog.resources.files.io_uring import AnyIoUring
from woodfrog.resources.io_uring_memory import Sample, contents_of
from woodfrog.resources.io_uring_requests import Seen, is_countable, sort_out
from woodfrog.resources.io_uring_shown import Shown

_PATIENCE_S = 0.5
_A_MOMENT_S = 0.002
_WORD = 0xFFFFFFFF


def cancel(rings: Rings, vdso: Vdso, records: Iterable[FileRecord]) -> list[AnyIoUring]:
    """Cancel what is not clear, and return the records of those rings, which now are."""
    by_number = {record.id: record for record in records}
    found = []
    for ring in rings.unclear:
        record = by_number[ring.file.number]
        assert isinstance(record, AnyIoUring)
        with while_(f"cancelling the requests of file {record.id} (IoUring)"):
            found.append(_cancel(rings, ring, record, vdso))
    return found


def _cancel(rings: Rings, ring: Ring, record: AnyIoUring, vdso: Vdso) -> AnyIoUring:
    owner, seen = ring.owner, ring.unclear
    assert owner is not None
    assert seen is not None
    number = ring.holders[owner.process.pid]
    with scratch_in(owner.process, vdso) as scratch:
        program = scratch.program()
        argument = io_uring.cancel_all()
        operation = io_uring.REGISTER_SYNC_CANCEL
        program.may_fail(io_uring.register(program, number, operation, argument, 1))
        scratch.run(program, owner.tracee)
    shown = _settled(rings, ring, seen)
    with Sample(record.sq_entries, record.cq_entries, record.size_flags) as sample:
        contents = contents_of(ring.file, shown, sample)
    count = shown.completed - record.completed & _WORD
    completions = contents.seen.completions[-count:] if count else []
    cancelled = [data for data, result, _ in completions if result == -errno.ECANCELED]
    others = [one for one in completions if one[1] != -errno.ECANCELED]
    if any(result > 0 for _, result, _ in others):
        raise UnsupportedResource(
            "an io_uring got data from outside while the container was saved", hint="try again"
        )
    found = sort_out(seen, cancelled)
    if ring.has_several_users:
        found = replace(found, reissued=[], cancelled=cancelled)
    return msgspec.structs.replace(
        record,
        ring=_with(record, sample, others),
        completed=record.completed + len(others) & _WORD,
        reissued=found.reissued,
        cancelled=found.cancelled,
    )


def _settled(rings: Rings, ring: Ring, seen: Seen) -> Shown:
    """Wait until all completions have come."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        rings.ask(ring)
        shown = ring.shown()
        if shown and not shown.polled and not shown.overflown:
            left = shown.submitted - shown.completed & _WORD
            if not left or not is_countable(seen):
                return shown
        if time.monotonic() > deadline:
            raise UnsupportedResource("an io_uring has requests that cannot be cancelled")
        time.sleep(_A_MOMENT_S)


def _with(record: AnyIoUring, sample: Sample, completions: Sequence[tuple[int, int, int]]) -> bytes:
    """Return the memory of the rings with further completions."""
    cqes = sample.layout.cqes
    size = cqes + record.cq_entries * sample.completion
    ring = bytearray(record.ring.ljust(size, b"\0"))
    for at, completion in enumerate(completions, record.completed):
        place = cqes + at % record.cq_entries * sample.completion
        io_uring.CQE.pack_into(ring, place, *completion)
    return bytes(ring).rstrip(b"\0")
