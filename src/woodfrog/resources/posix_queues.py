"""POSIX message queues of the container's own ipc namespace (mq_overview(7)).

A message can't be read without being taken; so all are taken and sent again at once, while nobody
else runs. Who waits for a notification gets it by that, and waits anew.
"""

import os
import struct
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext

from woodfrog.errors import ImageError, UnsupportedResource, while_
from woodfrog.image.record import Part, Record
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE, Caller
from woodfrog.kernel.capability import CAP_SYS_RESOURCE
from woodfrog.kernel.mounts import FSCONFIG_CMD_CREATE, FSMOUNT_CLOEXEC, FSOPEN_CLOEXEC
from woodfrog.remote.program import Program
from woodfrog.remote.stub import Stub
from woodfrog.resources import namespaces, queue_notices
from woodfrog.resources.queue_notices import Notices

_MQ_ATTR = struct.Struct("<8q")  # mq_flags, mq_maxmsg, mq_msgsize, mq_curmsgs
_NAME_MAX = 255
_NO_ID = (1 << 32) - 1


class Message(Part, frozen=True, array_like=True):
    """A message of a queue."""

    priority: int
    data: bytes


class PosixQueue(Record, frozen=True, tag="posix-message-queue"):
    """A queue for `most` messages of up to `longest` bytes; those in it as they will be taken."""

    name: bytes
    mode: int
    uid: int
    gid: int
    most: int
    longest: int
    messages: list[Message] = []


class Found:
    """All queues of a namespace; `device` is that of their file system, or 0."""

    def __init__(self) -> None:
        self.device = 0
        self.queues: list[PosixQueue] = []


# Mounts of the file systems that have all queues, by what /proc/PID/ns reads.
_kept: dict[str, int] = {}


def keep_open(init: int) -> None:
    """Have a mount of a container's queues from now on."""
    namespace = os.open(f"/proc/{init}/ns/ipc", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if (mount := _mounted(namespace)) >= 0:
            # Nobody else gets this number while the mount is there, which has the namespace.
            _kept[_link(namespace)] = mount
    finally:
        os.close(namespace)


def collect(namespace: int, found: Found, notices: Notices, afterwards: ExitStack) -> None:
    """Read all queues of the ipc namespace that a descriptor names.

    To unmount their file system, which takes the kernel some time, is left for `afterwards`.
    """
    mount = _kept.get(_link(namespace), -1)
    if mount < 0:
        mount = _mounted(namespace)
        if mount < 0:
            return
        afterwards.callback(os.close, mount)
    root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
    try:
        found.device = os.fstat(root).st_dev
        for name in sorted(os.listdir(root)):
            with while_(f"reading the POSIX message queue /{name}"):
                found.queues.append(_queue(root, name, notices))
    finally:
        os.close(root)


def _link(namespace: int) -> str:
    return os.readlink(f"/proc/self/fd/{namespace}")


def _mounted(namespace: int) -> int:
    """Return a mount, which nobody sees, of the directory of all queues; -1 if there is none."""
    with namespaces.within(namespace, "ipc"):
        try:
            context = HERE.call(SYS.FSOPEN, b"mqueue", FSOPEN_CLOEXEC)
        except OSError:
            return -1  # ENODEV: the kernel has no such queues
        try:
            HERE.call(SYS.FSCONFIG, context, FSCONFIG_CMD_CREATE, 0, 0, 0)
            return HERE.call(SYS.FSMOUNT, context, FSMOUNT_CLOEXEC, 0)
        finally:
            os.close(context)


def _queue(root: int, name: str, notices: Notices) -> PosixQueue:
    fd = os.open(name, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=root)
    try:
        return look_at(fd, os.fsencode(name), notices)
    finally:
        os.close(fd)


def look_at(fd: int, name: bytes, notices: Notices) -> PosixQueue:
    """Read a queue by a descriptor of ours for both ways, which doesn't wait."""
    about = bytearray(_MQ_ATTR.size)
    HERE.call(SYS.MQ_GETSETATTR, fd, 0, about)
    _, most, longest, *_ = _MQ_ATTR.unpack(about)
    waiting = queue_notices.waits(os.pread(fd, 200, 0))
    seen = os.fstat(fd)
    return PosixQueue(
        name=name,
        mode=seen.st_mode & 0o7777,
        uid=seen.st_uid,
        gid=seen.st_gid,
        most=most,
        longest=longest,
        messages=_messages(
            fd, longest, notices.caused(fd, name, waiting) if waiting else nullcontext(_nothing)
        ),
    )


def _nothing() -> None:
    """Nobody waits."""


def _messages(
    fd: int, longest: int, caused: AbstractContextManager[Callable[[], None]]
) -> list[Message]:
    """Take all messages, and send them again; what is `caused` meanwhile is over then."""
    with caused as cause:
        return _taken(fd, longest, cause)


def _taken(fd: int, longest: int, then: Callable[[], None]) -> list[Message]:
    found: list[Message] = []
    room, priority = bytearray(longest), bytearray(4)
    try:
        while True:
            try:
                size = HERE.call(SYS.MQ_TIMEDRECEIVE, fd, room, longest, priority, 0)
            except BlockingIOError:
                then()
                return found
            number = int.from_bytes(priority, "little")
            found.append(Message(priority=number, data=bytes(room[:size])))
    finally:
        for one in found:
            send(HERE, fd, one)


def send(on: Caller, fd: int, message: Message) -> None:
    """Put a message into a queue that has room for it."""
    data = message.data
    on.call(SYS.MQ_TIMEDSEND, fd, data, len(data), message.priority, 0)


def check(queues: Sequence[PosixQueue]) -> None:
    """Check all queues of an image before anything is made of them."""
    for one in queues:
        if not 0 < len(one.name) <= _NAME_MAX or b"/" in one.name or b"\0" in one.name:
            raise ImageError("a POSIX message queue has an impossible name")
        if one.mode & ~0o7777 or not (0 <= one.uid < _NO_ID and 0 <= one.gid < _NO_ID):
            raise ImageError(f"the POSIX message queue {one.name!r} has an impossible owner")
        if not (0 < one.most < 1 << 31 and 0 < one.longest < 1 << 31):
            raise ImageError(f"the POSIX message queue {one.name!r} has an impossible size")
        longest = max((len(message.data) for message in one.messages), default=0)
        if len(one.messages) > one.most or longest > one.longest:
            raise ImageError(f"the POSIX message queue {one.name!r} has more than it can hold")


def refuse_wider(init: int, queues: Sequence[PosixQueue], *, new: bool, bounding: int) -> None:
    """Refuse queues that the waiting container, whose ipc namespace is `new`, could not make."""
    if not queues:
        return
    if not new:
        raise UnsupportedResource(
            "the image has POSIX message queues, but the new container joins an ipc namespace",
            hint='give it one of its own: "ipc" without a path in linux.namespaces of config.json',
        )
    if bounding >> CAP_SYS_RESOURCE & 1:
        return
    with namespaces.inside(init, "ipc"):
        most, longest = _setting("msg_max"), _setting("msgsize_max")
    for one in queues:
        if one.most > most or one.longest > longest:
            raise UnsupportedResource(
                f"the POSIX message queue /{os.fsdecode(one.name)} takes {one.most} messages of"
                f" {one.longest} bytes, the new container allows {most} of {longest}",
                hint="raise fs.mqueue.msg_max and msgsize_max in linux.sysctl of config.json",
            )


def _setting(name: str) -> int:
    with open(f"/proc/sys/fs/mqueue/{name}", encoding="ascii") as file:
        return int(file.read())


def restore(stub: Stub, queues: Sequence[PosixQueue]) -> None:
    """Make all queues in the stub's ipc namespace."""
    for one in queues:
        program = stub.program()
        syscalls.close(program, make(program, one))
        with while_(f"making the POSIX message queue /{os.fsdecode(one.name)}"):
            stub.run(program)


def make(program: Program, one: PosixQueue) -> int:
    """Make a queue, with what is in it; returns its descriptor."""
    size = _MQ_ATTR.pack(0, one.most, one.longest, 0, 0, 0, 0, 0)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    fd = program.call(SYS.MQ_OPEN, one.name, flags, 0o600, size)
    for message in one.messages:
        send(program, fd, message)
    program.call(SYS.FCHOWN, fd, one.uid, one.gid)
    program.call(SYS.FCHMOD, fd, one.mode)
    return fd
