"""A checkpoint works in a child process, so that SIGKILL of the command is only one more failure.

The child holds the container. When its parent is gone, it gives up at the next step and unwinds in
order: the container runs on as before, and nothing is left in it. Should the child be killed as
well, the container's tasks still go on by themselves (see remote/lender.py).
"""

import marshal
import os
import select
from collections.abc import Callable
from typing import NoReturn, TypeVar

from woodfrog.errors import AbandonedError, HolderEndedError
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.process import PR_SET_TIMERSLACK, prctl
from woodfrog.kernel.signals import signals

T = TypeVar("T")
# What a child's answer begins with.
_SUCCEEDED, _FAILED = b"+", b"-"


class _ThereError(Exception):
    """Where an exception was raised in the child, for --debug."""


class Guardian:
    """The child's view of its parent, through a pipe or socket whose other end only that keeps."""

    def __init__(self, parent: int) -> None:
        self._parent = parent

    def check(self) -> None:
        """Go on only if somebody still waits for us; raises AbandonedError. Works in any thread."""
        poll = select.poll()
        # The parent never writes: the other end is closed, or it isn't.
        poll.register(self._parent, select.POLLRDHUP)
        if poll.poll(0):
            raise AbandonedError("the command was killed")


_worker: Guardian | None = None


def be_worker(connection: int) -> None:
    """Be a process that already is apart from its command, which is at the other end."""
    global _worker
    _worker = Guardian(connection)


def ended(status: str) -> HolderEndedError:
    """Return what to raise when who held the container has ended before it was done."""
    return HolderEndedError(
        f"the process that held the container was ended{status}",
        hint="was it the out-of-memory killer? the container goes on by itself",
    )


def guarded(work: Callable[[Guardian], T]) -> T:
    """Have a child do some work and return its result, or raise its exception, as if it were ours.

    The result is of what marshal can write: plain dicts, lists, strings, numbers. (To import pickle
    takes milliseconds, twice.) The exception is picklable.
    """
    if _worker:
        return work(_worker)
    parent_end, our_end = os.pipe()
    result_reader, result_writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(our_end)
        os.close(result_reader)
        _work(work, Guardian(parent_end), result_writer)
    os.close(parent_end)
    os.close(result_writer)
    try:
        with os.fdopen(result_reader, "rb") as file:
            data = file.read()
    finally:
        # If we are interrupted, this tells the child; it unwinds, then we go on.
        os.close(our_end)
        _, status = os.waitpid(child, 0)
    if not data:
        raise ended(f" (wait status {status:#x})")
    if data.startswith(_SUCCEEDED):
        return marshal.loads(data[len(_SUCCEEDED) :])  # type: ignore[no-any-return]
    import pickle

    error, trace = pickle.loads(data[len(_FAILED) :])
    raise error from _ThereError(trace)


def _work(work: Callable[[Guardian], T], guardian: Guardian, result: int) -> NoReturn:
    # The terminal's and a supervisor's signals are for the command; its end tells us.
    for number in (signals.SIGINT, signals.SIGTERM, signals.SIGHUP, signals.SIGPIPE):
        signals.signal(number, signals.SIG_IGN)
    # We sleep for microseconds where tasks are about to stop; not for fifty more.
    prctl(HERE, PR_SET_TIMERSLACK, 1)
    status = 1
    try:
        try:
            data = _SUCCEEDED + marshal.dumps(work(guardian))  # type: ignore[arg-type]
        except BaseException as error:
            import pickle
            import traceback

            trace = "".join(traceback.format_exception(error))
            data = _FAILED + pickle.dumps((error, f"\n{trace}"))
        view = memoryview(data)
        while view:
            view = view[os.write(result, view) :]
        status = 0
    except OSError:
        pass  # nobody waits any more
    finally:
        os._exit(status)
