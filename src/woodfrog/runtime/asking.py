"""Having another process of ours run a command line: one in which all of our code is loaded.

Whoever asks sends the command line, environment, umask, directory and standard descriptors. A fork
of the process that is asked then is the command (runtime/answering.py): it writes to our
descriptors itself, and what comes back is its exit status. The launcher asks in the same way
(runtime/code/ask_x86_64.S).

The request is a memfd: the umask and the number of words (both u32, little-endian), then strings,
each with a 0 behind it: the directory of our code, the words, the environment.
"""

from __future__ import annotations

import posix

from woodfrog.kernel.sockets import sockets

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping

# The socket at which a container's keeper is asked, if there is one.
KEEPER = "keeper"
# ... and that at which a template is.
TEMPLATE = "socket"
RUN = b"run"
# What asks a template for clones that don't need whoever asks any more.
DETACHED = b"detached"
# The request, the directory, and three standard descriptors.
SENT = 5
_MOST_WAITING = 128
# The directory of our code.
PACKAGE = __file__.rsplit("/", 2)[0]

_worker: Worker | None = None


class Worker:
    """What a fork that works for somebody knows of that."""

    def __init__(self, connection: int, channel: int, asked: int, init: int) -> None:
        self.connection = connection  # to whoever has asked
        self.channel = channel  # to the process that was asked, or -1
        self.asked = asked  # its pid
        self.init = init  # the first process of the one container that it works on, or -1
        self._has_begun = False

    def begin(self) -> None:
        """Say that this is going to be done here; from then on nobody else will do it."""
        if not self._has_begun:
            self._has_begun = True
            posix.write(self.connection, posix.getpid().to_bytes(4, "little"))


def worker() -> Worker | None:
    """Return what is known if this process works for somebody."""
    return _worker


def become(one: Worker) -> None:
    """Be a process that works for somebody."""
    global _worker
    _worker = one


class NotHere(BaseException):
    """A worker can't do what it was asked for; whoever asked has to do it itself.

    No Exception: nobody but the worker's own loop is to deal with it.
    """


class Door:
    """A socket in a directory, at which a process of ours is asked."""

    def __init__(self, directory: str, name: str) -> None:
        self._directory = directory
        self._name = name

    def open(self) -> int:
        """Return a listening socket for the process that answers, in the place of an older one."""
        listening = _socket()
        with _At(self._directory) as directory:
            path, new = f"{directory}/{self._name}", f"{directory}/{self._name}.new"
            try:
                posix.unlink(new)
            except FileNotFoundError:
                pass
            listening.bind(new)
            posix.chmod(new, 0o600)
            listening.listen(_MOST_WAITING)
            posix.rename(new, path)
        return listening.detach()

    def knock(self) -> socket.socket | None:
        """Return a connection to who answers there, or None if nobody does."""
        connection = _socket()
        try:
            with _At(self._directory) as directory:
                connection.connect(f"{directory}/{self._name}")
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            connection.close()
            return None
        return connection


class _At:
    """A short path to a directory: that of a socket has room for 107 bytes."""

    def __init__(self, directory: str) -> None:
        self._descriptor = posix.open(directory, posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)

    def __enter__(self) -> str:
        return f"/proc/self/fd/{self._descriptor}"

    def __exit__(self, *error: object) -> None:
        posix.close(self._descriptor)


def _socket() -> socket.socket:
    return sockets.socket(sockets.AF_UNIX, sockets.SOCK_SEQPACKET | sockets.SOCK_CLOEXEC)


def send(connection: socket.socket, message: bytes, descriptors: list[int]) -> None:
    """Send a message with descriptors."""
    numbers = b"".join(one.to_bytes(4, "little") for one in descriptors)
    rights = [(sockets.SOL_SOCKET, sockets.SCM_RIGHTS, numbers)] if numbers else []
    connection.sendmsg([message], rights)


def ask(
    connection: socket.socket,
    words: list[str],
    environ: Mapping[bytes, bytes],
    began: Callable[[int], None],
    kind: bytes = RUN,
) -> int | None:
    """Have a command line run; returns its exit status, or None if it has ended without one.

    `kind` tells who is to do it, where there are several. `began` is called with the pid of who
    does it, as soon as that has begun for good.
    """
    here = posix.open(".", posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
    request = posix.memfd_create("woodfrog-request")
    try:
        umask = posix.umask(0)
        posix.umask(umask)
        strings = [one.encode("utf-8", "surrogateescape") for one in (PACKAGE, *words)]
        strings += [name + b"=" + value for name, value in environ.items()]
        numbers = b"".join(one.to_bytes(4, "little") for one in (umask, len(words)))
        posix.write(request, numbers + b"".join(one + b"\0" for one in strings))
        send(connection, kind, [request, here, 0, 1, 2])
    except (BrokenPipeError, ConnectionResetError):
        return None
    finally:
        posix.close(request)
        posix.close(here)
    pid = _receive(connection)
    if pid is None:
        return None
    began(pid)
    return _receive(connection)


def _receive(connection: socket.socket) -> int | None:
    try:
        data = connection.recv(4)
    except ConnectionResetError:
        return None
    return int.from_bytes(data, "little") if data else None
