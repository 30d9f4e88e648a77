"""What comes with the notification that a process waits for at a POSIX message queue.

No kernel tells, but the notification itself. So it is caused, taken from the held process before
that sees it, and waited for anew.
"""

import os
import re
import select
import socket
import struct
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from msgspec.structs import replace

from woodfrog.engine.collected import scratch_in
from woodfrog.errors import UnsupportedResource
from woodfrog.kernel import ptrace
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.remote.held import Held, HeldProcess
from woodfrog.remote.vdso import Vdso
from woodfrog.resources import queue_notices
from woodfrog.resources.files import socket_options
from woodfrog.resources.files.open_file import O_PATH, OpenFile
from woodfrog.resources.queue_notices import QueueNotice, Waiting
from woodfrog.resources.signals import SIGCONT, SIGKILL, STOPPING

_INFO = struct.Struct("<3i12xQ")  # si_signo, si_errno, si_code, si_value


class AskedQueues:
    """See resources.queue_notices.Notices."""

    def __init__(self, tree: Held, vdso: Vdso) -> None:
        self._processes = {one.group: one for one in tree.processes}
        self._vdso = vdso
        # By processes, as we see them, and the queues' inodes.
        self._found: dict[int, dict[int, QueueNotice]] = defaultdict(dict)

    def of(self, held: HeldProcess) -> list[QueueNotice]:
        """See the protocol."""
        return sorted(self._found[held.group].values(), key=lambda one: one.descriptor)

    @contextmanager
    def caused(self, fd: int, name: bytes, waiting: Waiting) -> Iterator[Callable[[], None]]:
        """See the protocol."""
        held = self._processes.get(waiting.pid)
        number = _number(held, os.fstat(fd)) if held else -1
        reason = _reason_against(held, number, waiting)
        if held and not reason and waiting.how == queue_notices.SIGEV_THREAD:
            reason = _reason_against_thread(held)
        if reason or held is None:
            raise UnsupportedResource(
                f"has a process that waits for a notification by the POSIX message queue"
                f" /{os.fsdecode(name)} (mq_notify) {reason}, which cannot be saved yet"
            )
        notice = QueueNotice(descriptor=number, how=waiting.how, signal=waiting.signal, value=0)
        is_caused = False

        def cause() -> None:
            nonlocal notice, is_caused
            HERE.call(SYS.MQ_TIMEDSEND, fd, b"", 0, 0, 0)
            is_caused = True
            HERE.call(SYS.MQ_TIMEDRECEIVE, fd, bytearray(longest(fd)), longest(fd), 0, 0)
            if notice.how == queue_notices.SIGEV_SIGNAL and waiting.signal:
                told = self._taken(held, waiting.signal)
                if told is None:
                    # It has executed another program since: who waits is told nothing any more.
                    notice = replace(notice, how=queue_notices.SIGEV_NONE)
                else:
                    notice = replace(notice, value=told)
            elif notice.how == queue_notices.SIGEV_THREAD:
                by, cookie = _cookie(held)
                notice = replace(notice, socket=by, cookie=cookie)

        try:
            yield cause
        finally:
            if is_caused and notice.is_possible:
                with scratch_in(held, self._vdso) as scratch:
                    program = scratch.program()
                    queue_notices.register(program, notice)
                    scratch.run(program)
                self._found[held.group][os.fstat(fd).st_ino] = notice

    def _taken(self, held: HeldProcess, signal: int) -> int | None:
        """Take the signal from a process; returns what came with it, None if none came."""
        queued = ptrace.pending_signals(held.pid, shared=True)
        infos = [_INFO.unpack_from(info) for info in queued]
        ours = signal, queue_notices.SI_MESGQ
        values = [value for number, _, code, value in infos if (number, code) == ours]
        if not values:
            return None
        if _mask(held.leader.path, "SigBlk") >> signal - 1 & 1:
            with scratch_in(held, self._vdso) as scratch:
                program = scratch.program()
                wanted = (1 << signal - 1).to_bytes(8, "little")
                program.expect(program.call(SYS.RT_SIGTIMEDWAIT, wanted, 0, bytes(16), 8), signal)
                scratch.run(program)
        else:
            held.leader.tracee.catch_signal(signal)
        return int(values[0])


def longest(fd: int) -> int:
    """Return how long a message of a queue may be."""
    about = bytearray(64)
    HERE.call(SYS.MQ_GETSETATTR, fd, 0, about)
    return int(struct.unpack_from("<8q", about)[2])


def _number(held: HeldProcess, queue: os.stat_result) -> int:
    """Return a process's descriptor of a queue; -1 if it has none."""
    directory = f"/proc/{held.pid}/fd"
    for number in sorted(map(int, os.listdir(directory))):
        found = os.stat(f"{directory}/{number}")
        if (found.st_dev, found.st_ino) == (queue.st_dev, queue.st_ino):
            target = os.readlink(os.fsencode(f"{directory}/{number}"))
            if not OpenFile(held.pid, number, target).flags & O_PATH:
                return number
    return -1


def _mask(path: str, name: str) -> int:
    with open(f"{path}/status", encoding="utf-8", errors="replace") as file:
        found = re.search(rf"^{name}:\s*([0-9a-f]+)$", file.read(), re.MULTILINE)
    return int(found[1], 16) if found else 0


def _reason_against(held: HeldProcess | None, number: int, waiting: Waiting) -> str:
    """Say why a process could not wait anew, or its signal not be taken; empty if all is well."""
    if held is None or held.is_headless:
        return "and is outside, or has no first thread any more"
    if number < 0:
        return "and has it not open any more"
    if waiting.how != queue_notices.SIGEV_SIGNAL or not waiting.signal:
        return ""
    if waiting.signal in (SIGKILL, SIGCONT, *STOPPING):
        return f"by signal {waiting.signal}"
    paths = [task.path for task in held.tasks]
    queued = [_mask(path, name) for path in paths for name in ("SigPnd", "ShdPnd")]
    if any(mask >> waiting.signal - 1 & 1 for mask in queued):
        return "while its signal waits already"
    leader, blocked = held.leader.path, _mask(held.leader.path, "SigBlk")
    others = (_mask(leader, "SigPnd") | _mask(leader, "ShdPnd")) & ~blocked
    if not blocked >> waiting.signal - 1 & 1 and (others or held.leader.stopped_by):
        return "while it is stopped, or has other signals"
    return ""


def _reason_against_thread(held: HeldProcess) -> str:
    """Say why what comes by a socket of a process could not be told; empty if it could."""
    found = 0
    for _, one in _netlink_sockets(held):
        found += 1
        if socket_options.ready_for(one.fileno(), select.POLLIN):
            return "by a thread, while one of its netlink sockets has what nobody has read"
    return "" if found else "by a thread, and has no netlink socket for that any more"


def _cookie(held: HeldProcess) -> tuple[int, bytes]:
    """Take what has come by a netlink socket of a process; returns its descriptor, too."""
    for number, one in _netlink_sockets(held):
        if socket_options.ready_for(one.fileno(), select.POLLIN):
            return number, one.recv(queue_notices.COOKIE_BYTES, socket.MSG_DONTWAIT)
    raise UnsupportedResource("a notification by a message queue came by a socket that is closed")


def _netlink_sockets(held: HeldProcess) -> Iterator[tuple[int, socket.socket]]:
    """Yield the netlink sockets of a process, by their descriptors; ours are closed again."""
    directory = f"/proc/{held.pid}/fd"
    for number in sorted(map(int, os.listdir(directory))):
        target = os.readlink(os.fsencode(f"{directory}/{number}"))
        file = OpenFile(held.pid, number, target)
        if not file.target.startswith(b"socket:"):
            continue
        try:
            if file.socket_family == socket.AF_NETLINK:
                with socket.socket(socket.AF_NETLINK, fileno=os.dup(file.descriptor)) as one:
                    yield number, one
        finally:
            file.close()
