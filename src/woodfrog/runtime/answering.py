"""Running command lines for those who ask, in forks of a process in which all code is loaded.

Only who could do the same by itself is answered: root, with no fewer rights than we have, in the
namespaces and the root directory that we are in. What it sends: see runtime/asking.py.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import sys

from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.process import PR_SET_NAME, pidfd_open
from woodfrog.kernel.procfs.reading import read_file
from woodfrog.kernel.procfs.status import read_status
from woodfrog.kernel.signals import signals
from woodfrog.runtime import asking
from woodfrog.runtime.asking import PACKAGE, RUN, SENT, Door, Worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import NoReturn

_FOLDERS = ("", "cli", "engine", "image", "kernel", "remote", "resources", "runtime")
_HEADER = struct.Struct("<2I")
_PATIENCE_S = 1.0
_PEER = struct.Struct("3i")
_SO_PEERPIDFD = 77
_NAMESPACES = ("mnt", "user", "pid", "net", "ipc", "uts", "cgroup", "time")


def load_all(first: Iterable[str]) -> Iterator[None]:
    """Have all in memory that a command may need, `first` these modules; step by step."""
    import codecs
    import gc
    import importlib
    import pkgutil

    import woodfrog

    for name in first:
        importlib.import_module(name)
        yield
    for module in pkgutil.walk_packages(woodfrog.__path__, "woodfrog."):
        if module.name not in sys.modules and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
            yield
    from woodfrog.engine import asking_processes, plan
    from woodfrog.remote.vdso import own_vdso

    plan.prepare()
    asking_processes.usual()
    own_vdso()
    codecs.lookup("ascii")
    yield
    gc.collect()
    gc.freeze()


def listen(door: Door) -> socket.socket:
    """Return the socket of a door, where we answer from now on."""
    return socket.socket(fileno=door.open())


class Request:
    """Somebody at the door, who is to be answered; ends with the `with` block."""

    def __init__(self, listening: socket.socket) -> None:
        self.connection, _ = listening.accept()
        self.message = b""
        self.descriptors: list[int] = []

    def __enter__(self) -> Request:
        try:
            if _is_like_us(self.connection):
                self.connection.settimeout(_PATIENCE_S)
                found = socket.recv_fds(self.connection, 16, SENT)
                self.message, self.descriptors = found[0], found[1]
                self.connection.settimeout(None)
        except OSError:
            pass  # it has gone again
        return self

    def __exit__(self, *error: object) -> None:
        self.connection.close()
        for descriptor in self.descriptors:
            os.close(descriptor)

    @property
    def is_command(self) -> bool:
        """Tell whether a command line shall run."""
        return self.asks_for(RUN)

    def asks_for(self, kind: bytes) -> bool:
        """Tell whether a command line shall run, by who is meant by `kind`."""
        return self.message == kind and len(self.descriptors) == SENT


class Workers:
    """The forks that run command lines, and the pipe that tells when a child has ended."""

    def __init__(self, run: Callable[[list[str]], int]) -> None:
        """`run` runs a command line and returns its exit status."""
        self._run = run
        self.code = Code()
        self._pids: set[int] = set()
        self.awake, self._wakes = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        import signal

        signal.set_wakeup_fd(self._wakes, warn_on_full_buffer=False)
        signals.signal(signals.SIGCHLD, lambda number, frame: None)

    def fork(self, request: Request, close: Callable[[], None]) -> None:
        """Start one, which calls `close` first."""
        asked = os.getpid()
        pid = os.fork()
        if pid:
            self._pids.add(pid)
            return
        worker = Worker(request.connection.fileno(), -1, asked, -1)
        self._work(request, worker, close)

    def _work(self, request: Request, worker: Worker, close: Callable[[], None]) -> NoReturn:
        status = 1
        try:
            self._change_into_command(request, close)
            asking.become(worker)
            words = take(request.descriptors[0], self.code)
            worker.begin()
            status = self._run(words)
            sys.stdout.flush()
            os.write(worker.connection, status.to_bytes(4, "little"))
        finally:
            os._exit(status)

    def _change_into_command(self, request: Request, close: Callable[[], None]) -> None:
        """Have the descriptors and the directory of the command that has asked."""
        HERE.call(SYS.PRCTL, PR_SET_NAME, b"woodfrog\0", 0, 0, 0)
        self.leave()
        close()
        os.fchdir(request.descriptors[1])
        for number, descriptor in enumerate(request.descriptors[2:]):
            os.dup2(descriptor, number, inheritable=True)

    def leave(self) -> None:
        """In a fork: hear of nobody's end."""
        import signal

        signal.set_wakeup_fd(-1)
        signals.signal(signals.SIGCHLD, signals.SIG_DFL)
        os.close(self.awake)
        os.close(self._wakes)

    def reap(self) -> Iterator[tuple[int, int]]:
        """Take the ends of all children; gives (pid, wait status) of those that aren't workers."""
        try:
            os.read(self.awake, 4096)
        except BlockingIOError:
            pass
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid in self._pids:
                self._pids.remove(pid)
            else:
                yield pid, status


class Code:
    """What we have loaded: it may have been replaced since, or whoever asks may be of another."""

    def __init__(self) -> None:
        self._place = _file(PACKAGE)
        self._changed = self._look()

    def is_that_of(self, package: bytes) -> bool:
        """Tell whether it is what now lies in this directory."""
        try:
            return _file(package) == self._place and self._look() == self._changed
        except OSError:
            return False

    def _look(self) -> list[int]:
        return [os.stat(f"{PACKAGE}/{folder}").st_mtime_ns for folder in _FOLDERS]


def _file(path: str | bytes) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def take(descriptor: int, code: Code) -> list[str]:
    """Take over environment and umask of the command that has asked; returns its words.

    Raises NotHere if it has other code than this.
    """
    request = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    umask, count = _HEADER.unpack_from(request)
    package, *strings, _ = request[_HEADER.size :].split(b"\0")
    if not code.is_that_of(package):
        raise asking.NotHere
    os.environb.clear()
    for entry in strings[count:]:
        name, _, value = entry.partition(b"=")
        os.environb[name] = value
    os.umask(umask)
    return [word.decode("utf-8", "surrogateescape") for word in strings[:count]]


def take_over(directory: int, stdio: list[int]) -> None:
    """Be in this directory, and have these standard descriptors; they are closed."""
    os.fchdir(directory)
    for number, descriptor in enumerate(stdio):
        os.dup2(descriptor, number, inheritable=True)
    for descriptor in {directory, *stdio}:
        os.close(descriptor)


def open_descriptors() -> int:
    """Return how many descriptors we have."""
    return len(os.listdir("/proc/self/fd"))


def _is_like_us(connection: socket.socket) -> bool:
    """Tell whether who has connected is root, where we are, and with no fewer rights."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    pid, user, _ = _PEER.unpack(data)
    try:
        pidfd = _peer(connection, pid)
    except OSError:
        return False
    try:
        alike = user == os.geteuid() and _place(str(pid)) == _place("self") and _has_our_rights(pid)
        # If it is there still, then all of that was its own, and not of another one of its pid.
        return alike and not select.select([pidfd], [], [], 0)[0]
    except OSError:
        return False
    finally:
        os.close(pidfd)


def _peer(connection: socket.socket, pid: int) -> int:
    """Return a pidfd of who has connected."""
    try:
        return connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:  # before Linux 6.5
            raise
    return pidfd_open(HERE, pid)


def _has_our_rights(pid: int) -> bool:
    """Tell whether a process of root's has all capabilities that we have, and the same bounds."""
    theirs, ours = read_status(f"/proc/{pid}"), read_status("/proc/self")
    for name in ("CapEff", "CapBnd"):
        if int(ours[name], 16) & ~int(theirs[name], 16):
            return False
    bounds = ("NoNewPrivs", "Seccomp", "Seccomp_filters")
    return [theirs.get(name, "") for name in bounds] == [
        ours.get(name, "") for name in bounds
    ] and _label(str(pid)) == _label("self")


def _label(pid: str) -> bytes:
    """Return what Linux security modules know of a process."""
    try:
        return read_file(f"/proc/{pid}/attr/current")
    except OSError:
        return b""  # there are none


def _place(pid: str) -> list[object]:
    found: list[object] = []
    for name in _NAMESPACES:
        try:
            found.append(os.readlink(f"/proc/{pid}/ns/{name}"))
        except FileNotFoundError:
            found.append(None)  # this kernel doesn't have them, or it has ended
    try:
        root = os.stat(f"/proc/{pid}/root")
    except FileNotFoundError:
        return []
    return [*found, root.st_dev, root.st_ino]
