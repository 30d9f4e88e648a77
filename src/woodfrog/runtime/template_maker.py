"""Who makes a template's clones: a process that runs one detached command after the other.

It is forked when the template is ready, so that a clone finds all code loaded, and pages of its
own to work in.
"""

from __future__ import annotations

import gc
import os
import socket
import sys

from woodfrog.runtime import answering, births, templates
from woodfrog.runtime.answering import open_descriptors, take_over
from woodfrog.runtime.asking import SENT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from woodfrog.runtime.answering import Code

IDLE = b"idle"


def serve(requests: socket.socket, run: Callable[[list[str]], int], code: Code) -> NoReturn:
    """Run the command lines that come, until the supervisor wants no more, or one has failed."""
    template = templates.held()
    assert template
    template.leave_memory()
    templates.work_with(births.Midwife(requests))
    known = open_descriptors()
    while True:
        # A connection to who asks comes before what that has sent.
        message, descriptors, _, _ = socket.recv_fds(requests, 16, 1 + SENT)
        if not message:
            os._exit(0)
        with socket.socket(fileno=descriptors[0]) as connection:
            status = _answer(connection, descriptors[1:], run, code)
        if status:
            os._exit(status)  # what it has left goes with us
        take_over(os.open("/", os.O_PATH), [os.open("/dev/null", os.O_RDWR)] * 3)
        if open_descriptors() != known:
            os._exit(1)
        requests.send(IDLE)
        gc.collect()


def _answer(
    connection: socket.socket, descriptors: list[int], run: Callable[[list[str]], int], code: Code
) -> int:
    """Run the command line that somebody has sent, and tell how it ended."""
    request, directory, *stdio = descriptors
    take_over(directory, stdio)
    words = answering.take(request, code)
    os.close(request)
    try:
        connection.send(os.getpid().to_bytes(4, "little"))
    except BrokenPipeError:
        return 1  # nobody waits any more
    status = run(words)
    sys.stdout.flush()
    try:
        connection.send(status.to_bytes(4, "little"))
    except BrokenPipeError:
        pass  # the containers are there all the same
    return status
