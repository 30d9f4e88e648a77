"""System V IPC: semaphores, message queues and shared memory of the container's own ipc namespace.

No call tells which changes of semaphores the end of a process would undo (SEM_UNDO, semop(2)), so
those are lost, and nobody can say whether there were any. No call sets when and by which process
an object was last used, so that is not kept either.
"""

import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping as MappingOf, Sequence
from typing import Any

from woodfrog.errors import ImageError, UnsupportedResource, while_
from woodfrog.image.record import Part, Record
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.procfs.maps import read_maps
from woodfrog.remote.address import PAGE, free_range, page_up
from woodfrog.remote.program import Program
from woodfrog.remote.stub import Stub
from woodfrog.resources import namespaces
from woodfrog.resources.memory import AddressSpace, Mapping, Source
from woodfrog.resources.shared_memory import SharedMemory

_IPC_CREAT, _IPC_EXCL, _IPC_NOWAIT = 0o1000, 0o2000, 0o4000
_IPC_RMID, _IPC_SET, _IPC_STAT = 0, 1, 2
_GETALL, _SETALL, _SHM_LOCK = 13, 17, 11
_MSG_COPY = 0o40000
_SHM_RDONLY, _SHM_DEST, _SHM_LOCKED = 0o10000, 0o1000, 0o2000
_PERMISSIONS = 0o777
_MREMAP_MAYMOVE, _MREMAP_FIXED = 1, 2
_PR_SET_DUMPABLE = 4
_CAP_IPC_LOCK, _CAP_SYS_RESOURCE = 14, 24

# struct ipc64_perm: key, uid, gid, cuid, cgid, mode, seq; and the size of what it begins.
_PERMISSION = struct.Struct("<i5IHHxxxx2Q")
_SEMID_DS, _SHMID_DS, _MSQID_DS = 104, 112, 120
_QBYTES = 88  # offset of msg_qbytes in struct msqid64_ds

_ATTACHED = re.compile(rb"/SYSV([0-9a-f]{8}) \(deleted\)")
_LONGEST_TEXT = 16 << 20
_LARGEST_READ = 1 << 30
_MOST_IDS = 1 << 31
_VDSO_SPAN = 0x40000  # generous
_NO_ID = (1 << 32) - 1
# What everyone may lock, RLIMIT_MEMLOCK, where nothing else is said.
_MAY_LOCK = 8 << 20


class _Object(Record, frozen=True):
    """What all three kinds have: an id, a key (0: IPC_PRIVATE), an owner and a creator."""

    id: int
    key: int
    mode: int
    uid: int
    gid: int
    cuid: int
    cgid: int


class Semaphores(_Object, frozen=True, tag="sysv-semaphores"):
    """A set of semaphores."""

    values: list[int]


class Message(Part, frozen=True, array_like=True):
    """A message that nobody has received yet."""

    type: int
    text: bytes


class MessageQueue(_Object, frozen=True, tag="sysv-message-queue"):
    """A message queue, oldest message first. `qbytes` is how much it takes."""

    qbytes: int
    messages: list[Message]


class Segment(_Object, frozen=True, tag="sysv-shared-memory"):
    """A segment of shared memory; `contents` is the id of the record of its pages.

    `removed` (IPC_RMID): it ends with its last attachment.
    """

    size: int
    locked: bool
    removed: bool
    contents: int


AnyObject = Semaphores | MessageQueue | Segment


class OpenSegment:
    """A segment that has not been stored yet, and a descriptor of ours for what is in it."""

    def __init__(self, fields: dict[str, Any], fd: int) -> None:
        self.fields = fields
        self.fd = fd
        # The id of its SharedMemory, given by who collects these.
        self.contents = 0

    def record(self) -> Segment:
        """Return the record."""
        return Segment(contents=self.contents, **self.fields)

    def is_shown_by(self, fd: int, name: bytes) -> bool:
        """Tell whether a mapping of this name, opened as `fd`, shows this very segment.

        Ids are the same in all namespaces, and inode numbers are ids; moments are not.
        """
        ours, theirs = os.fstat(self.fd), os.fstat(fd)
        key = _ATTACHED.fullmatch(name)
        if key is None or (ours.st_dev, ours.st_ino, ours.st_ctime_ns, ours.st_size) != (
            theirs.st_dev,
            theirs.st_ino,
            theirs.st_ctime_ns,
            theirs.st_size,
        ):
            return False
        if self.fields["removed"]:
            # It has lost its key, which the mapping still shows.
            self.fields["key"] = _signed(int(key[1], 16))
        return True


class Found:
    """All objects of a namespace."""

    def __init__(self) -> None:
        self.objects: list[Semaphores | MessageQueue] = []
        self.segments: dict[int, OpenSegment] = {}

    def close(self) -> None:
        """Close what was opened."""
        for segment in self.segments.values():
            os.close(segment.fd)
        self.segments.clear()

    def records(self) -> list[AnyObject]:
        """Return all records."""
        return [*self.objects, *(segment.record() for segment in self.segments.values())]


def collect(init: int, found: Found) -> None:
    """Read all objects of a process's ipc namespace, unless that is ours."""
    if namespaces.is_ours(init, "ipc"):
        return
    with namespaces.inside(init, "ipc"):
        for row in _rows("sem"):
            with while_(f"reading System V semaphores {row['semid']}"):
                found.objects.append(_semaphores(row))
        for row in _rows("msg"):
            with while_(f"reading System V message queue {row['msqid']}"):
                found.objects.append(_message_queue(row))
        for row in _rows("shm"):
            with while_(f"reading System V shared memory {row['shmid']}"):
                segment = _segment(row)
                found.segments[segment.fields["id"]] = segment


def _rows(kind: str) -> list[dict[str, str]]:
    # It shows the namespace of who opens it, wherever this /proc comes from.
    with open(f"/proc/sysvipc/{kind}", encoding="ascii") as file:
        names, *rows = (line.split() for line in file)
    return [dict(zip(names, row, strict=True)) for row in rows]


def _common(row: dict[str, str], identifier: str) -> dict[str, Any]:
    fields: dict[str, Any] = {name: int(row[name]) for name in ("key", "uid", "gid", "cuid", "cgid")}
    fields["id"] = int(row[identifier])
    fields["mode"] = int(row["perms"], 8) & _PERMISSIONS
    return fields


def _signed(key: int) -> int:
    return key - ((key & 0x80000000) << 1)


def _semaphores(row: dict[str, str]) -> Semaphores:
    fields = _common(row, "semid")
    values = bytearray(2 * int(row["nsems"]))
    HERE.call(SYS.SEMCTL, fields["id"], 0, _GETALL, values)
    return Semaphores(values=list(struct.unpack(f"<{row['nsems']}H", values)), **fields)


def _message_queue(row: dict[str, str]) -> MessageQueue:
    fields = _common(row, "msqid")
    about = bytearray(_MSQID_DS)
    HERE.call(SYS.MSGCTL, fields["id"], _IPC_STAT, about)
    longest = min(int(row["cbytes"]), _setting("msgmax"))
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


def _setting(name: str) -> int:
    with open(f"/proc/sys/kernel/{name}", encoding="ascii") as file:
        return int(file.read())


def _segment(row: dict[str, str]) -> OpenSegment:
    fields = _common(row, "shmid")
    mode = int(row["perms"], 8)
    fields["removed"] = bool(mode & _SHM_DEST)
    fields["locked"] = bool(mode & _SHM_LOCKED)
    fields["size"] = int(row["size"])
    if _setting("shm_rmid_forced"):
        # Then even our looking at it could be its end.
        raise UnsupportedResource(
            "has System V shared memory that ends with its last attachment"
            " (kernel.shm_rmid_forced), which cannot be saved yet",
            hint="set kernel.shm_rmid_forced to 0 in the container",
        )
    return OpenSegment(fields, _open_segment(fields["id"]))


def _open_segment(identifier: int) -> int:
    """Return a descriptor of a segment's contents."""
    start = HERE.call(SYS.SHMAT, identifier, 0, _SHM_RDONLY)
    try:
        end = next(row[1] for row in read_maps("self") if row[0] == start)
        fd = os.open(f"/proc/self/map_files/{start:x}-{end:x}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        HERE.call(SYS.SHMDT, start)
    if os.fstatvfs(fd).f_bsize != PAGE:
        os.close(fd)
        raise UnsupportedResource(
            f"has System V shared memory, {identifier}, of huge pages (SHM_HUGETLB),"
            " which cannot be saved yet"
        )
    return fd


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
        if one.mode & ~_PERMISSIONS or not all(
            0 <= number < _NO_ID for number in (one.uid, one.gid, one.cuid, one.cgid)
        ):
            raise ImageError(f"the System V object {one.id} has an impossible owner")
        match one:
            case Semaphores():
                if not one.values or any(not 0 <= value <= 0x7FFF for value in one.values):
                    raise ImageError(f"the System V semaphores {one.id} have impossible values")
            case MessageQueue():
                if not 0 <= one.qbytes < 1 << 63 or any(
                    not 0 < message.type < 1 << 63 or len(message.text) > _LONGEST_TEXT
                    for message in one.messages
                ):
                    raise ImageError(f"the System V message queue {one.id} is impossible")
            case Segment():
                contents = memory.get(one.contents)
                if contents is None or contents.memfd is not None or contents.size != one.size:
                    raise ImageError(f"the System V shared memory {one.id} lacks its contents")


def check_mapping(mapping: Mapping, segments: MappingOf[int, Segment]) -> None:
    """Check a mapping from an image that shows a segment."""
    segment = segments.get(mapping.object)
    if segment is None:
        raise ImageError(f"the mapping at {mapping.start:#x} shows memory that the image lacks")
    length = mapping.end - mapping.start
    if not mapping.shared or not 0 <= mapping.offset <= page_up(segment.size) - length:
        raise ImageError(f"the mapping at {mapping.start:#x} is not one of shared memory")


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
    if locked > (_MAY_LOCK if may_lock is None else may_lock) and not bounding >> _CAP_IPC_LOCK & 1:
        raise UnsupportedResource(
            f"the image has {locked} bytes of System V shared memory that are locked (SHM_LOCK),"
            " more than the new container allows",
            hint="raise RLIMIT_MEMLOCK or allow CAP_IPC_LOCK in the bundle's config.json",
        )
    with namespaces.inside(init, "ipc"):
        allowed = _setting("msgmnb")
    for one in objects:
        if isinstance(one, MessageQueue) and _room(one) > allowed:
            if not bounding >> _CAP_SYS_RESOURCE & 1:
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
) -> None:
    """Make all objects in the stub's ipc namespace, with their ids.

    `send` gives the stub a descriptor of ours; its descriptor `pages` is the page store.
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
    for one in _removed_last(objects):
        program = stub.program()
        with while_(f"making the System V object {one.id} ({type(one).__name__})"):
            match one:
                case Semaphores():
                    _make(program, one, next_sem, SYS.SEMGET, one.key, len(one.values))
                    values = struct.pack(f"<{len(one.values)}H", *one.values)
                    program.call(SYS.SEMCTL, one.id, 0, _SETALL, values)
                    program.call(SYS.SEMCTL, one.id, 0, _IPC_SET, _owned(one, _SEMID_DS))
                    stub.run(program)
                case MessageQueue():
                    _make(program, one, next_msg, SYS.MSGGET, one.key)
                    _fill_queue(stub, program, one)
                case Segment():
                    _make(program, one, next_shm, SYS.SHMGET, one.key, one.size)
                    program.call(SYS.SHMCTL, one.id, _IPC_SET, _owned(one, _SHMID_DS))
                    if one.locked:
                        program.call(SYS.SHMCTL, one.id, _SHM_LOCK, 0)
                    _fill_segment(stub, program, one, memory[one.contents], pages, base)
    program = stub.program()
    for fd in (next_sem, next_msg, next_shm):
        syscalls.close(program, fd)
    stub.run(program)


def _removed_last(objects: list[AnyObject]) -> Iterator[AnyObject]:
    """Yield removed segments last, without a key if another has it by now."""
    removed = []
    keys = {0}
    for one in objects:
        if isinstance(one, Segment) and one.removed:
            removed.append(one)
            continue
        if isinstance(one, Segment):
            keys.add(one.key)
        yield one
    for one in removed:
        fields = {name: getattr(one, name) for name in one.__struct_fields__}
        yield Segment(**{**fields, "key": 0 if one.key in keys else one.key})
        keys.add(one.key)


def _make(program: Program, one: AnyObject, next_id: int, get: int, key: int, *size: int) -> None:
    """Make an object by its creator, for whoever makes it is that for good."""
    text = str(one.id).encode()
    program.expect(program.call(SYS.PWRITE64, next_id, text, len(text), 0), len(text))
    for number, who in ((SYS.SETRESGID, one.cgid), (SYS.SETRESUID, one.cuid)):
        if who:
            program.call(number, -1, who, -1)
    made = program.call(get, key, *size, one.mode | _IPC_CREAT | _IPC_EXCL)
    program.expect(made, one.id)
    for number, who in ((SYS.SETRESUID, one.cuid), (SYS.SETRESGID, one.cgid)):
        if who:
            program.call(number, -1, 0, -1)
    if one.cgid or one.cuid:
        syscalls.prctl(program, _PR_SET_DUMPABLE, 1)  # another id resets it


def _owned(one: AnyObject, size: int) -> bytes:
    """Return a struct ..id64_ds for IPC_SET."""
    head = _PERMISSION.pack(one.key, one.uid, one.gid, one.cuid, one.cgid, one.mode, 0, 0, 0, 0)
    return head.ljust(size, b"\0")


def _room(queue: MessageQueue) -> int:
    """Return how many bytes a queue has to take, at some time, to come to hold what it does."""
    return max(queue.qbytes, len(queue.messages), sum(len(one.text) for one in queue.messages))


def _set_queue(program: Program, queue: MessageQueue, qbytes: int) -> None:
    about = bytearray(_owned(queue, _MSQID_DS))
    struct.pack_into("<Q", about, _QBYTES, qbytes)
    program.call(SYS.MSGCTL, queue.id, _IPC_SET, bytes(about))


def _fill_queue(stub: Stub, program: Program, queue: MessageQueue) -> None:
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


def _fill_segment(
    stub: Stub, program: Program, segment: Segment, memory: SharedMemory, pages: int, base: int
) -> None:
    """Read the contents into the segment, so that they count as the container's memory."""
    used = [(row[0], row[1]) for row in read_maps(stub.pid)]
    at = free_range(used, page_up(segment.size)).start
    program.expect(program.call(SYS.SHMAT, segment.id, at, 0), at)
    offset = base + memory.store
    for extent in memory.extents:
        start, left = at + extent.start, extent.length
        while left:
            piece = min(left, _LARGEST_READ)
            vector = struct.pack("<2Q", start, piece)
            program.expect(syscalls.preadv(program, pages, vector, 1, offset), piece)
            start, left, offset = start + piece, left - piece, offset + piece
            if program.room < PAGE:
                stub.run(program)
                program = stub.program()
    program.call(SYS.SHMDT, at)
    stub.run(program)


def attach(
    program: Program,
    space: AddressSpace,
    segments: MappingOf[int, Segment],
    keep: tuple[int, int],
) -> None:
    """Attach segments where a process had them, before all else is mapped but its stub at `keep`.

    Pieces of one attachment stay such: shmdt(2) detaches all of them.
    """
    attachments: dict[tuple[int, int, bool], list[Mapping]] = {}
    for mapping in space.mappings:
        if mapping.source is Source.SYSV:
            key = (mapping.object, mapping.start - mapping.offset, mapping.writable)
            attachments.setdefault(key, []).append(mapping)
    for (identifier, _, writable), pieces in attachments.items():
        size = page_up(segments[identifier].size)
        flags = 0 if writable else _SHM_RDONLY
        first = pieces[0]
        if first.end - first.start == size:
            program.expect(program.call(SYS.SHMAT, identifier, first.start, flags), first.start)
        else:
            used = [keep, *((one.start, one.end) for one in space.mappings)]
            used.append((space.vdso, space.vdso + _VDSO_SPAN))
            at = free_range(used, size).start
            program.expect(program.call(SYS.SHMAT, identifier, at, flags), at)
            for piece in pieces:
                _move(program, at + piece.offset, piece)
            syscalls.munmap(program, at, size)
        for piece in pieces:
            if piece.protection != (3 if writable else 1):
                syscalls.mprotect(program, piece.start, piece.end - piece.start, piece.protection)


def _move(program: Program, old: int, piece: Mapping) -> None:
    length = piece.end - piece.start
    how = _MREMAP_MAYMOVE | _MREMAP_FIXED
    program.expect(
        program.call(SYS.MREMAP, old, length, length, how, piece.start), piece.start
    )


def remove(program: Program, segments: Iterable[Segment]) -> None:
    """Remove what was removed, once all that show it are attached."""
    for segment in segments:
        if segment.removed:
            program.call(SYS.SHMCTL, segment.id, _IPC_RMID, 0)
