"""System V IPC: semaphores, message queues and shared memory of the container's own ipc namespace.

No call sets when and by which process an object was last used, so that is not kept.
"""

import os
import struct
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Mapping as MappingOf

from woodfrog.errors import ImageError, UnsupportedResource, while_
from woodfrog.image.record import Part
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import PAGE, SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.capability import CAP_IPC_LOCK, CAP_SYS_RESOURCE
from woodfrog.remote.address import TASK_SIZE
from woodfrog.remote.program import Program
from woodfrog.remote.stub import Stub
from woodfrog.resources import namespaces, sysv_memory
from woodfrog.resources.memory import PageRange
from woodfrog.resources.shared_memory import SharedMemory
from woodfrog.resources.sysv_memory import OpenSegment, Segment
from woodfrog.resources.sysv_object import (
    IPC_SET,
    IPC_STAT,
    PERMISSIONS,
    Object,
    common,
    make,
    owned,
    rows,
    setting,
    settings,
)

_IPC_NOWAIT = 0o4000
_GETALL, _SETALL = 13, 17
_MSG_COPY = 0o40000
_SEMID_DS, _MSQID_DS = 104, 120
_QBYTES = 88  # offset of msg_qbytes in struct msqid64_ds
_LONGEST_TEXT = 16 << 20
_MOST_IDS = 1 << 31
_NO_ID = (1 << 32) - 1
_HIGHEST_VALUE = 0x7FFF
# What everyone may lock, RLIMIT_MEMLOCK, where nothing else is said.
_MAY_LOCK = 8 << 20


class Semaphores(Object, frozen=True, tag="sysv-semaphores"):
    """A set of semaphores."""

    values: list[int]


class Message(Part, frozen=True, array_like=True):
    """A message that nobody has received yet."""

    type: int
    text: bytes


class MessageQueue(Object, frozen=True, tag="sysv-message-queue"):
    """A message queue, oldest message first. `qbytes` is how much it takes."""

    qbytes: int
    messages: list[Message]


AnyObject = Semaphores | MessageQueue | Segment


def values_of(objects: Iterable[AnyObject]) -> dict[int, list[int]]:
    """Return the values of all semaphores among some objects, by the ids of their sets."""
    return {one.id: one.values for one in objects if isinstance(one, Semaphores)}


class Found:
    """All objects of a namespace; a call may have so many operations on semaphores."""

    def __init__(self) -> None:
        self.objects: list[Semaphores | MessageQueue] = []
        self.most_operations = 0
        self.segments: dict[int, OpenSegment] = {}

    def close(self) -> None:
        """Close what was opened."""
        for segment in self.segments.values():
            os.close(segment.fd)
        self.segments.clear()

    def records(self) -> list[AnyObject]:
        """Return all records."""
        return [*self.objects, *(segment.record() for segment in self.segments.values())]


def collect(namespace: int, found: Found) -> None:
    """Read all objects of the ipc namespace that a descriptor names."""
    with namespaces.within(namespace, "ipc"):
        found.most_operations = settings("sem")[2]
        for row in rows("sem"):
            with while_(f"reading System V semaphores {row['semid']}"):
                found.objects.append(_semaphores(row))
        for row in rows("msg"):
            with while_(f"reading System V message queue {row['msqid']}"):
                found.objects.append(_message_queue(row))
        for row in rows("shm"):
            with while_(f"reading System V shared memory {row['shmid']}"):
                segment = sysv_memory.collect(row)
                found.segments[segment.fields["id"]] = segment


def _semaphores(row: dict[str, str]) -> Semaphores:
    fields = common(row, "semid")
    values = bytearray(2 * int(row["nsems"]))
    HERE.call(SYS.SEMCTL, fields["id"], 0, _GETALL, values)
    return Semaphores(values=list(struct.unpack(f"<{row['nsems']}H", values)), **fields)


def _message_queue(row: dict[str, str]) -> MessageQueue:
    fields = common(row, "msqid")
    about = bytearray(_MSQID_DS)
    HERE.call(SYS.MSGCTL, fields["id"], IPC_STAT, about)
    longest = min(int(row["cbytes"]), setting("msgmax"))
    buffer = bytearray(8 + longest)
    messages = []
    for index in range(int(row["qnum"])):
        try:
            length = HERE.call(
                SYS.MSGRCV, fields["id"], buffer, longest, index, _IPC_NOWAIT | _MSG_COPY
            )
        except OSError as error:
            raise UnsupportedResource(
                f"has a System V message queue, {fields['id']}, that cannot be read: {error}",
                hint="is CONFIG_CHECKPOINT_RESTORE set in this kernel,"
                " or has kernel.msgmax been lowered since?",
            ) from error
        if length > _LONGEST_TEXT:
            raise UnsupportedResource(
                f"has a message of {length} bytes in the System V message queue {fields['id']},"
                " which is too long to be saved"
            )
        (kind,) = struct.unpack_from("<q", buffer)
        messages.append(Message(type=kind, text=bytes(buffer[8 : 8 + length])))
    (qbytes,) = struct.unpack_from("<Q", about, _QBYTES)
    return MessageQueue(qbytes=qbytes, messages=messages, **fields)


# --- restore -------------------------------------------------------------------------------------


def check(objects: Sequence[AnyObject], memory: MappingOf[int, SharedMemory]) -> None:
    """Check all objects of an image before anything is made of them."""
    seen: set[tuple[type, str, int]] = set()
    for one in objects:
        names = {(type(one), "id", one.id)}
        if one.key and not (isinstance(one, Segment) and one.removed):
            names.add((type(one), "key", one.key))
        if not seen.isdisjoint(names):
            raise ImageError(f"the image has two System V objects {one.id}, or of one key")
        seen |= names
        if not (0 <= one.id < _MOST_IDS and -_MOST_IDS <= one.key < _MOST_IDS):
            raise ImageError(f"a System V object has an impossible id, {one.id}")
        if one.mode & ~PERMISSIONS or not all(
            0 <= number < _NO_ID for number in (one.uid, one.gid, one.cuid, one.cgid)
        ):
            raise ImageError(f"the System V object {one.id} has an impossible owner")
        match one:
            case Semaphores():
                if not one.values or any(not 0 <= value <= _HIGHEST_VALUE for value in one.values):
                    raise ImageError(f"the System V semaphores {one.id} have impossible values")
            case MessageQueue():
                if not 0 <= one.qbytes < 1 << 63 or any(
                    not 0 < message.type < 1 << 63 or len(message.text) > _LONGEST_TEXT
                    for message in one.messages
                ):
                    raise ImageError(f"the System V message queue {one.id} is impossible")
            case Segment():
                contents = memory.get(one.contents)
                if contents is None or contents.huge_page != one.huge_page:
                    raise ImageError(f"the System V shared memory {one.id} lacks its contents")
                if contents.size not in (one.size, one.length):
                    raise ImageError(f"the System V shared memory {one.id} lacks its contents")
                if not 0 < one.size < TASK_SIZE // 2:
                    raise ImageError(f"the System V shared memory {one.id} has an impossible size")


def refuse_wider(
    init: int, objects: Iterable[AnyObject], *, new: bool, bounding: int, may_lock: int | None
) -> None:
    """Refuse objects that the waiting container could not have made itself.

    `new` tells whether its ipc namespace is, `may_lock` is its RLIMIT_MEMLOCK if it has one.
    """
    objects = list(objects)
    if not objects:
        return
    if not new:
        raise UnsupportedResource(
            "the image has System V semaphores, messages or shared memory,"
            " but the new container joins an ipc namespace",
            hint='give it one of its own: "ipc" without a path in linux.namespaces of config.json',
        )
    locked = sum(one.size for one in objects if isinstance(one, Segment) and one.locked)
    if locked > (_MAY_LOCK if may_lock is None else may_lock) and not bounding >> CAP_IPC_LOCK & 1:
        raise UnsupportedResource(
            f"the image has {locked} bytes of System V shared memory that are locked (SHM_LOCK),"
            " more than the new container allows",
            hint="raise RLIMIT_MEMLOCK or allow CAP_IPC_LOCK in the bundle's config.json",
        )
    with namespaces.inside(init, "ipc"):
        allowed = setting("msgmnb")
    for one in objects:
        if (
            isinstance(one, MessageQueue)
            and _room(one) > allowed
            and not bounding >> CAP_SYS_RESOURCE & 1
        ):
            raise UnsupportedResource(
                f"the System V message queue {one.id} takes {_room(one)} bytes,"
                f" the new container allows {allowed}",
                hint="raise kernel.msgmnb in linux.sysctl of the bundle's config.json",
            )


def restore(
    stub: Stub,
    objects: Iterable[AnyObject],
    memory: MappingOf[int, SharedMemory],
    send: Callable[[int], int],
    pages: int,
    base: int,
    inherit: Callable[[Sequence[PageRange]], None],
) -> None:
    """Make all objects in the stub's ipc namespace, with their ids.

    `send` gives the stub a descriptor of ours; its descriptor `pages` is the page store.
    `inherit` fills pages in that the stub has mapped, from whichever image of a chain has them.
    """
    objects = list(objects)
    if not objects:
        return
    # The setting belongs to the namespace of who opens it; /proc/sys is read-only in a container.
    ours: list[int] = []
    try:
        with namespaces.inside(stub.pid, "ipc"):
            for kind in ("sem", "msg", "shm"):
                path = f"/proc/sys/kernel/{kind}_next_id"
                ours.append(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
        next_sem, next_msg, next_shm = [send(fd) for fd in ours]
    finally:
        for fd in ours:
            os.close(fd)
    for one in sysv_memory.removed_last(objects):
        with while_(f"making the System V object {one.id} ({type(one).__name__})"):
            match one:
                case Semaphores():
                    _restore_semaphores(stub, one, next_sem)
                case MessageQueue():
                    _restore_queue(stub, one, next_msg)
                case Segment():
                    contents = memory[one.contents]
                    sysv_memory.restore(stub, one, next_shm, contents, pages, base, inherit)
    program = stub.program()
    for fd in (next_sem, next_msg, next_shm):
        syscalls.close(program, fd)
    stub.run(program)


def _restore_semaphores(stub: Stub, one: Semaphores, next_id: int) -> None:
    program = stub.program()
    make(program, one, next_id, SYS.SEMGET, one.key, len(one.values))
    values = struct.pack(f"<{len(one.values)}H", *one.values)
    program.call(SYS.SEMCTL, one.id, 0, _SETALL, values)
    program.call(SYS.SEMCTL, one.id, 0, IPC_SET, owned(one, _SEMID_DS))
    stub.run(program)


def _room(queue: MessageQueue) -> int:
    """Return how many bytes a queue has to take, at some time, to come to hold what it does."""
    return max(queue.qbytes, len(queue.messages), sum(len(one.text) for one in queue.messages))


def _set_queue(program: Program, queue: MessageQueue, qbytes: int) -> None:
    about = bytearray(owned(queue, _MSQID_DS))
    struct.pack_into("<Q", about, _QBYTES, qbytes)
    program.call(SYS.MSGCTL, queue.id, IPC_SET, bytes(about))


def _restore_queue(stub: Stub, queue: MessageQueue, next_id: int) -> None:
    program = stub.program()
    make(program, queue, next_id, SYS.MSGGET, queue.key)
    _set_queue(program, queue, _room(queue))
    for message in queue.messages:
        length = len(message.text)
        if program.room < length + PAGE:
            stub.run(program)
            program = stub.program()
        text = struct.pack("<q", message.type) + message.text
        program.call(SYS.MSGSND, queue.id, text, length, _IPC_NOWAIT)
    if program.room < PAGE:
        stub.run(program)
        program = stub.program()
    _set_queue(program, queue, queue.qbytes)
    stub.run(program)
