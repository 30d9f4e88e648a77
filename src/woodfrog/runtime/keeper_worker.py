"""Who does the next checkpoints and rollbacks of a container that has a keeper: a fork of that.

It stays, and loads the code for it while nobody asks for anything, so that a command finds all
there, in memory that is its own already. It ends when a command has failed, and with its keeper;
the keeper then makes another one, if it needs one.
"""

from __future__ import annotations

import gc
import os
import select
import socket
import sys

from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.heap import keep_freed
from woodfrog.kernel.process import PR_SET_NAME, PR_SET_PDEATHSIG, PR_SET_TIMERSLACK, prctl
from woodfrog.kernel.signals import signals
from woodfrog.runtime import answering, asking
from woodfrog.runtime.answering import open_descriptors, take_over
from woodfrog.runtime.asking import SENT, NotHere, Worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import NoReturn

    from woodfrog.runtime.answering import Code

# A rollback needs most that a checkpoint, which has made the keeper, has not loaded.
_FIRST = ("woodfrog.engine.rollback", "woodfrog.cli.rollback", "woodfrog.runtime.rollback")
_NULL = "/dev/null"
_MOST_FREE = 8 << 20
# The pages of a rollback or a small checkpoint, which needs no new memory for them then.
_FREE_FROM_THE_START = 4 << 20


def serve(
    requests: socket.socket,
    keeper: int,
    init: int,
    run: Callable[[list[str]], int],
    code: Code,
) -> NoReturn:
    """Run the command lines that the keeper passes on, until one has failed, or it has ended.

    `init` is the container's first process, `code` tells which code it may be.
    """
    try:
        HERE.call(SYS.PRCTL, PR_SET_NAME, b"woodfrog\0", 0, 0, 0)
        # We sleep for microseconds where tasks are about to stop; not for fifty more.
        prctl(HERE, PR_SET_TIMERSLACK, 1)
        keep_freed(_MOST_FREE)
        _end_with(keeper)
        getting_ready = _get_ready(init)
        asked = select.poll()
        asked.register(requests, select.POLLIN)
        while True:
            known = _await(asked, getting_ready)
            # A connection to who asks, and one to the keeper, come before what was sent.
            message, descriptors, _, _ = socket.recv_fds(requests, 16, 2 + SENT)
            if not message:
                os._exit(0)
            connection, channel, *sent = descriptors
            # What has begun is finished, or found by the next command.
            prctl(HERE, PR_SET_PDEATHSIG, 0)
            status = _answer(Worker(connection, channel, keeper, init), sent, run, code)
            if status:
                os._exit(status)  # what it has left goes with us
            take_over(os.open("/", os.O_PATH), [os.open(_NULL, os.O_RDWR)] * 3)
            os.close(connection)
            os.close(channel)
            if open_descriptors() != known:
                os._exit(1)
            _end_with(keeper)
            if not asked.poll(0):
                gc.collect()
    finally:
        os._exit(1)


def _end_with(keeper: int) -> None:
    """End at once with the keeper from now on, not when we next look whether it is there."""
    prctl(HERE, PR_SET_PDEATHSIG, signals.SIGKILL)
    if os.getppid() != keeper:
        os._exit(0)


def _await(asked: select.poll, getting_ready: Iterator[None]) -> int:
    """Wait for somebody to ask, and get ready meanwhile; returns how many descriptors we have."""
    while not asked.poll(0):
        try:
            next(getting_ready)
        except StopIteration:
            known = open_descriptors()  # there are many by now
            asked.poll()
            return known
    return open_descriptors()


def _get_ready(init: int) -> Iterator[None]:
    from woodfrog.resources import posix_queues, sysctls

    try:
        posix_queues.keep_open(init)
        yield from answering.load_all(_FIRST)
        bytearray(_FREE_FROM_THE_START)
        yield
        usual = sysctls.usual()
        _ = usual.settings
        yield
        if not sysctls.is_read_only(init):
            usual.keep_open(init)
    except OSError:
        pass  # the container has ended


def _answer(
    worker: Worker, descriptors: list[int], run: Callable[[list[str]], int], code: Code
) -> int:
    """Run the command line that somebody has sent, and tell how it ended."""
    request, directory, *stdio = descriptors
    take_over(directory, stdio)
    asking.become(worker)
    try:
        words = answering.take(request, code)
        os.close(request)
        status = run(words)
    except NotHere:
        return 1
    sys.stdout.flush()
    worker.begin()
    os.write(worker.connection, status.to_bytes(4, "little"))
    return status
