"""Between LIMITS and GO: io_urings are made whole, each in a thread that may use it."""

from collections.abc import Iterable, Mapping

from woodfrog.engine import taking_files
from woodfrog.engine.body import Body
from woodfrog.errors import ImageError, while_
from woodfrog.kernel import io_uring, syscalls
from woodfrog.kernel.procfs.maps import read_maps
from woodfrog.remote.stub import Stub
from woodfrog.resources import placed_mappings
from woodfrog.resources.files.io_uring import AnyIoUring, PolledIoUring
from woodfrog.resources.memory import Source


def restore(rings: Iterable[AnyIoUring], bodies: Mapping[int, Body]) -> None:
    """Make all rings whole: requests on their way are made again with their threads' own rights."""
    from woodfrog.resources.io_uring_making import Maker, PolledMaker

    threads = {
        thread.tid: (body, task)
        for body in bodies.values()
        for thread, task in zip(body.record.threads, body.tasks, strict=True)
    }
    for ring in rings:
        with while_(f"making file {ring.id} ({type(ring).__name__}) whole"):
            body, task = _thread(threads, ring.owner)
            if isinstance(ring, PolledIoUring):
                _make_polled(ring, body, task, list(bodies.values()))
            kind = PolledMaker if isinstance(ring, PolledIoUring) else Maker
            kind(ring, task, _number(body, ring), _address(body, ring)).make()
    for ring in rings:
        for one in ring.registered:
            body, task = _thread(threads, one.tid)
            with while_(f"registering file {ring.id} (IoUring) in thread {one.tid}"):
                program = task.program()
                number = _number(body, ring)
                update = io_uring.ring_update(one.index, number)
                io_uring.register(program, number, io_uring.REGISTER_RING_FDS, update, 1)
                task.run(program)


def _make_polled(ring: PolledIoUring, owner: Body, task: Stub, bodies: Iterable[Body]) -> None:
    """Make a ring with its thread of the kernel's, which has the rights of the process by now.

    Others take it from there.
    """
    program = task.program()
    answer = io_uring.new_answer()
    made = io_uring.setup(program, ring.sq_entries, ring.cq_entries, ring.setup_flags, answer)
    # High enough not to be in the way of its own numbers.
    high = syscalls.duplicate_above(program, made, owner.highest_descriptor + 1)
    syscalls.close(program, made)
    for slot in owner.record.descriptors:
        if slot.file == ring.id:
            syscalls.duplicate_to(program, high, slot.number, cloexec=slot.cloexec)
    syscalls.close(program, high)
    task.run(program)
    for body in bodies:
        slots = [slot for slot in body.record.descriptors if slot.file == ring.id]
        if slots and body is not owner:
            numbers = {_number(owner, ring): [(slot.number, slot.cloexec) for slot in slots]}
            taking_files.take(body.stub, owner.stub, owner.record.pid, numbers)
    for body in bodies:
        mapped = [
            one
            for one in body.record.memory.mappings
            if one.source is Source.IO_URING and one.object == ring.id
        ]
        if mapped:
            program = body.stub.program()
            used = [(row[0], row[1]) for row in read_maps(body.stub.pid)]
            placed_mappings.map_last(program, mapped, _number(body, ring), used)
            body.stub.run(program)


def _thread(threads: Mapping[int, tuple[Body, Stub]], tid: int) -> tuple[Body, Stub]:
    if tid not in threads:
        raise ImageError("an io_uring in the image belongs to a thread that the image lacks")
    return threads[tid]


def _number(body: Body, ring: AnyIoUring) -> int:
    for descriptor in body.record.descriptors:
        if descriptor.file == ring.id:
            return descriptor.number
    raise ImageError(f"{body.name} has no descriptor of its io_uring")


def _address(body: Body, ring: AnyIoUring) -> int:
    for mapping in body.record.memory.mappings:
        if (
            mapping.source is Source.IO_URING
            and mapping.object == ring.id
            and mapping.offset in (io_uring.OFF_SQ_RING, io_uring.OFF_CQ_RING)
            and mapping.protection & 3 == 3
        ):
            return mapping.start
    raise ImageError(f"{body.name} has not mapped its io_uring")
