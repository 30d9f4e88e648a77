"""Between LIMITS and GO: io_urings are made whole, each in a thread that may use it."""

from collections.abc import Mapping

from woodfrog.engine.admission import Plan
from woodfrog.engine.body import Body
from woodfrog.errors import ImageError, while_
from woodfrog.kernel import io_uring
from woodfrog.remote.stub import Stub
from woodfrog.resources.files.io_uring import IoUring
from woodfrog.resources.memory import Source


def restore(plan: Plan, bodies: Mapping[int, Body]) -> None:
    """Make all rings whole: requests on their way are made again with their threads' own rights."""
    rings = [file for file in plan.files.values() if isinstance(file, IoUring)]
    if not rings:
        return
    from woodfrog.resources.io_uring_making import Maker

    threads = {
        thread.tid: (body, task)
        for body in bodies.values()
        for thread, task in zip(body.record.threads, body.tasks, strict=True)
    }
    for ring in rings:
        with while_(f"making file {ring.id} (IoUring) whole"):
            body, task = _thread(threads, ring.owner)
            Maker(ring, task, _number(body, ring), _address(body, ring)).make()
    for ring in rings:
        for one in ring.registered:
            body, task = _thread(threads, one.tid)
            with while_(f"registering file {ring.id} (IoUring) in thread {one.tid}"):
                program = task.program()
                number = _number(body, ring)
                update = io_uring.ring_update(one.index, number)
                io_uring.register(program, number, io_uring.REGISTER_RING_FDS, update, 1)
                task.run(program)


def _thread(threads: Mapping[int, tuple[Body, Stub]], tid: int) -> tuple[Body, Stub]:
    if tid not in threads:
        raise ImageError("an io_uring in the image belongs to a thread that the image lacks")
    return threads[tid]


def _number(body: Body, ring: IoUring) -> int:
    for descriptor in body.record.descriptors:
        if descriptor.file == ring.id:
            return descriptor.number
    raise ImageError(f"{body.name} has no descriptor of its io_uring")


def _address(body: Body, ring: IoUring) -> int:
    for mapping in body.record.memory.mappings:
        if (
            mapping.source is Source.IO_URING
            and mapping.object == ring.id
            and mapping.offset in (io_uring.OFF_SQ_RING, io_uring.OFF_CQ_RING)
            and mapping.protection & 3 == 3
        ):
            return mapping.start
    raise ImageError(f"{body.name} has not mapped its io_uring")
