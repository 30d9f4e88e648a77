"""Staying with a process in the container: signals go to it, its terminal is relayed, its exit
status comes back."""

from __future__ import annotations

import os
import select

from woodfrog.kernel.caller import HERE
from woodfrog.kernel.process import (
    PR_SET_CHILD_SUBREAPER,
    pidfd_exit_status,
    pidfd_open,
    pidfd_send_signal,
    prctl,
)
from woodfrog.kernel.signals import signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

# Those that are about ourselves, or can't be caught.
_NOT_FORWARDED = {
    signals.SIGKILL,
    signals.SIGSTOP,
    signals.SIGCHLD,
    signals.SIGURG,
    signals.SIGPIPE,
    signals.SIGWINCH,
    signals.SIGSEGV,
    signals.SIGBUS,
    signals.SIGILL,
    signals.SIGFPE,
    signals.SIGABRT,
    signals.SIGTRAP,
    signals.SIGTTIN,
    signals.SIGTTOU,
}


def adopt_terminal(master: int) -> None:
    """Prepare a terminal that we'll relay, before anything is written to it.

    Shown on a terminal, which we have in raw mode, it ends its lines as ever; in a file or pipe a
    carriage return would be in the way.
    """
    if not (os.isatty(0) and os.isatty(1)):
        from woodfrog.kernel import console

        console.keep_line_ends(master)


def hold_signals() -> None:
    """Let signals wait until somebody is there to forward them to.

    Not SIGINT: whoever sees a start hang wants to end it.
    """
    signals.pthread_sigmask(signals.SIG_BLOCK, set(range(1, 65)) - {signals.SIGINT, 32, 33})


class Attached:
    """A process in the container that we stay with; a `with` block gives the terminal back."""

    def __init__(self, pid: int, master: int, *, is_child: bool, reap: bool = False) -> None:
        self._pid = pid
        self._pidfd = pidfd_open(HERE, pid)
        self._master = master
        self._is_child = is_child
        self._attributes: list[Any] | None = None
        self._size_from = -1
        if reap:
            prctl(HERE, PR_SET_CHILD_SUBREAPER, 1)
        self._reap = reap

    def __enter__(self) -> Attached:
        for number in range(1, 65):
            # What was ignored when we were started (nohup) stays ignored.
            if (
                number in _NOT_FORWARDED
                or 32 <= number < 34
                or signals.getsignal(number) == signals.SIG_IGN
            ):
                continue
            signals.signal(number, self._forward)
        if self._master >= 0:
            self._take_terminal()
        signals.pthread_sigmask(signals.SIG_SETMASK, [])
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        from woodfrog.kernel import console

        if self._attributes is not None:
            console.set_attributes(0, self._attributes)
        if self._master >= 0:
            os.close(self._master)
        os.close(self._pidfd)

    def _forward(self, number: int, frame: object) -> None:
        try:
            pidfd_send_signal(HERE, self._pidfd, number)
        except ProcessLookupError:
            pass

    def _take_terminal(self) -> None:
        from woodfrog.kernel import console

        self._size_from = next((fd for fd in (0, 1, 2) if os.isatty(fd)), -1)
        if self._size_from >= 0:
            self._resize(0, None)
            signals.signal(signals.SIGWINCH, self._resize)
        if os.isatty(0):
            self._attributes = console.set_raw(0)

    def _resize(self, number: int, frame: object) -> None:
        from woodfrog.kernel import console

        try:
            console.set_window_size(self._master, *console.window_size(self._size_from))
        except OSError:
            pass  # the terminal was closed under us

    def wait(self) -> int:
        """Stay until the process ends; returns its exit status, 128 + n after signal n."""
        if self._master >= 0:
            self._relay()
        if self._is_child:
            return exit_code(self._wait_for_child())
        status = status_at_end(self._pid, self._pidfd)
        return 255 if status is None else exit_code(status)

    def _wait_for_child(self) -> int:
        while self._reap:
            pid, status = os.waitpid(-1, 0)
            if pid == self._pid:
                return status
        return os.waitpid(self._pid, 0)[1]

    def _relay(self) -> None:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        poll.register(self._master, select.POLLIN)
        poll.register(0, select.POLLIN)
        ended = False
        while True:
            ready = dict(poll.poll(0 if ended else None))
            if self._master in ready and not self._copy_out():
                return
            if ended and self._master not in ready:
                return
            if 0 in ready and not ended and not self._copy_in():
                poll.unregister(0)
            if self._pidfd in ready and not ended:
                ended = True  # what it has written is still to be read
                poll.unregister(self._pidfd)

    def _copy_out(self) -> bool:
        try:
            data = os.read(self._master, 65536)
        except OSError:  # EIO: nobody has the other end open any more
            data = b""
        rest = data
        while rest:
            try:
                rest = rest[os.write(1, rest) :]
            except OSError:
                break
        if not data:
            # The program may have closed its terminal and live on.
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            poll.poll()
        return bool(data)

    def _copy_in(self) -> bool:
        try:
            data = os.read(0, 65536)
        except OSError:
            return False
        if data:
            os.write(self._master, data)
        elif not _is_device(0):
            os.write(self._master, b"\x04")  # the end of a file or pipe is the end of input
        return bool(data)


def _is_device(descriptor: int) -> bool:
    import stat

    return stat.S_ISCHR(os.fstat(descriptor).st_mode)


def exit_code(status: int) -> int:
    """Return a wait status as shells and engines know it: 128 + n after signal n."""
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def status_at_end(pid: int, pidfd: int) -> int | None:
    """Wait for the end of a process that need not be our child; returns its wait status."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.poll()
    # Either its parent has reaped it, and then the pidfd tells, or it is a zombie still.
    if (status := _zombie_status(pid)) is not None:
        return status
    return pidfd_exit_status(HERE, pidfd)


def _zombie_status(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            fields = file.readall().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(fields[49]) if fields[0] in (b"Z", b"X") else None
