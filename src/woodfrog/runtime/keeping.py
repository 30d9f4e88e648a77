"""The keeper of a container: it has the descriptors by which the kernel notes what is written to.

It is a fork of a command of ours, so it can have the next checkpoints and rollbacks of the
container done, too, by a worker (runtime/keeper_worker.py) that need not load anything for them.
It stays until the container ends, or until it has nothing to keep any more.
"""

from __future__ import annotations

import os
import select
import socket

from woodfrog.errors import StateError
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.process import PR_SET_NAME, pidfd_open
from woodfrog.runtime import answering, asking, keeper_worker
from woodfrog.runtime.answering import Request
from woodfrog.runtime.asking import KEEPER, RUN, Door

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

# What it is told: to close what it has; to take these (the first is the container's first process);
# to stay with them.
_FORGET, _KEEP, _STAY = b"forget", b"keep", b"stay"
_MOST_AT_ONCE = 200  # SCM_MAX_FD is 253


class Link:
    """A command's connection to a keeper, which is `pid`; all raise StateError if it has ended."""

    def __init__(self, channel: socket.socket, pid: int) -> None:
        self.channel = channel
        self.pid = pid

    def forget(self) -> None:
        """Have it close all that it keeps."""
        self._tell(_FORGET, [])

    def keep(self, init: int, descriptors: list[int]) -> list[int]:
        """Have it take descriptors; returns what it calls them."""
        pidfd = pidfd_open(HERE, init)
        try:
            self._tell(_KEEP, [pidfd])
        finally:
            os.close(pidfd)
        numbers = []
        for first in range(0, len(descriptors), _MOST_AT_ONCE):
            some = descriptors[first : first + _MOST_AT_ONCE]
            self._tell(_KEEP, some)
            data = self.channel.recv(4 * _MOST_AT_ONCE)
            numbers += [
                int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)
            ]
        if len(numbers) < len(descriptors):
            raise _gone()
        return numbers

    def stay(self) -> None:
        """Have it stay with what it keeps now."""
        self._tell(_STAY, [])

    def close(self) -> None:
        """Leave it; what it was given and not told to stay with, it closes."""
        self.channel.close()

    def _tell(self, message: bytes, descriptors: list[int]) -> None:
        try:
            asking.send(self.channel, message, descriptors)
        except (BrokenPipeError, ConnectionResetError):
            raise _gone() from None


def _gone() -> StateError:
    return StateError(
        "the container's keeper has ended, who has the kernel note what it writes to",
        hint="try again",
    )


def start(directory: str, run: Callable[[list[str]], int]) -> Link:
    """Start a keeper for the container whose state is in a directory, which stays if it is told so.

    `run` is what runs a command line in it.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        try:
            if os.fork() == 0:
                _become_keeper(directory, run, theirs)
        finally:
            os._exit(0)
    theirs.close()
    os.waitpid(child, 0)
    pid = int.from_bytes(ours.recv(4), "little")
    return Link(ours, pid)


def of_worker(worker: asking.Worker) -> Link:
    """Return the connection that a keeper's worker has to it."""
    return Link(socket.socket(fileno=os.dup(worker.channel)), worker.asked)


def _become_keeper(
    directory: str, run: Callable[[list[str]], int], channel: socket.socket
) -> NoReturn:
    try:
        from woodfrog.engine.staying import leave_everything
        from woodfrog.runtime import templates

        leave_everything(but={channel.fileno()})
        HERE.call(SYS.PRCTL, PR_SET_NAME, b"woodfrog-keeper\0", 0, 0, 0)
        if template := templates.held():
            template.drop()  # whose memory we have as a fork
        channel.send(os.getpid().to_bytes(4, "little"))
        kept = _Kept(channel)
        while kept.hear():
            if kept.are_settled:
                break
        if kept.are_settled:
            _Keeper(directory, run, kept).stay()
    finally:
        os._exit(0)


class _Kept:
    """What is kept, and the command that we are told by."""

    def __init__(self, channel: socket.socket | None) -> None:
        self.channel = channel
        self.init = -1
        self.descriptors: list[int] = []
        self.are_settled = False

    def hear(self) -> bool:
        """Do what we are told next; tell whether there may be more."""
        assert self.channel
        try:
            message, descriptors, _, _ = socket.recv_fds(self.channel, 16, _MOST_AT_ONCE)
        except OSError:
            message, descriptors = b"", []
        if message == _FORGET:
            self.close()
        elif message == _KEEP and self.init < 0:
            [self.init] = descriptors
        elif message == _KEEP:
            self.descriptors += descriptors
            self.channel.send(b"".join(one.to_bytes(4, "little") for one in descriptors))
        elif message == _STAY:
            self.are_settled = True
        else:
            self.channel.close()
            self.channel = None
            if not self.are_settled:
                self.close()
            return False
        return True

    def pid(self) -> int:
        """Return the pid of the container's first process, or -1 if that isn't known."""
        try:
            with open(f"/proc/self/fdinfo/{self.init}", encoding="ascii") as file:
                return int(file.read().partition("\nPid:")[2].split()[0])
        except FileNotFoundError:
            return -1

    def close(self) -> None:
        """Close all that is kept, and the container's pidfd, which comes anew with more."""
        self.are_settled = False
        for descriptor in (*self.descriptors, self.init):
            if descriptor >= 0:
                os.close(descriptor)
        self.descriptors.clear()
        self.init = -1


class _Keeper:
    """Keeps what it has, and has requests done, one after the other."""

    def __init__(self, directory: str, run: Callable[[list[str]], int], kept: _Kept) -> None:
        self._run = run
        self._kept = kept
        self._listening = answering.listen(Door(directory, KEEPER))
        self._code = answering.Code()
        self._requests: socket.socket | None = None
        self._worker = 0
        self._has_worked = False
        self._start_worker()

    def stay(self) -> None:
        """Do so until the container has ended, or there is nothing to keep."""
        kept = self._kept
        while kept.channel or (kept.are_settled and not _ended(kept.init)):
            poll = select.poll()
            if self._requests:
                poll.register(self._requests, select.POLLIN)
            if kept.channel:
                # One after the other: nobody else could have the container's lock.
                poll.register(kept.channel, select.POLLIN)
            else:
                poll.register(self._listening, select.POLLIN)
                if kept.are_settled:
                    poll.register(kept.init, select.POLLIN)
            ready = [descriptor for descriptor, _ in poll.poll()]
            if self._requests and self._requests.fileno() in ready:
                self._worker_ended()
            if kept.channel and kept.channel.fileno() in ready:
                kept.hear()
            elif self._listening.fileno() in ready and not kept.channel:
                self._answer()

    def _answer(self) -> None:
        with Request(self._listening) as request:
            if not request.is_command:
                return
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                given = (request.connection.fileno(), theirs.fileno(), *request.descriptors)
                if not self._pass_on(given):
                    self._worker_ended()
                    self._pass_on(given)
            self._kept.channel = ours

    def _pass_on(self, descriptors: Sequence[int]) -> bool:
        """Give the worker something to do; tell whether it is there to take it."""
        requests = self._requests or self._start_worker()
        self._has_worked = True
        try:
            socket.send_fds(requests, [RUN], descriptors)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def _start_worker(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        keeper, init = os.getpid(), self._kept.pid()
        self._worker = os.fork()
        if self._worker == 0:
            ours.close()
            self._listening.close()
            if self._kept.channel:
                self._kept.channel.close()
            self._kept.close()
            keeper_worker.serve(theirs, keeper, init, self._run, self._code)
        theirs.close()
        self._requests = ours
        self._has_worked = False
        return ours

    def _worker_ended(self) -> None:
        """Have another worker, unless the last one could do nothing: it waits to be needed."""
        if self._requests:
            self._requests.close()
            self._requests = None
            os.waitpid(self._worker, 0)
        if self._has_worked:
            self._start_worker()


def _ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
