"""Telling a container that it is about to be frozen, or has been thawed: by a program inside."""

from __future__ import annotations

import os
import select
import sys

from woodfrog.errors import StateError, WoodfrogError
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.process import pidfd_open
from woodfrog.kernel.signals import signals
from woodfrog.runtime import cgroups, interrupted, lifecycle
from woodfrog.runtime import exec as execs
from woodfrog.runtime.state import PAUSED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from woodfrog.runtime.state import Container

# The variable by which gVisor's programs know: save, restore or resume.
_VARIABLE = "GVISOR_SAVE_RESTORE_AUTO_EXEC_MODE"


class Announcement:
    """A program in the container that is run before it is frozen and after it is thawed."""

    def __init__(self, command: str, timeout: int) -> None:
        self._words = command.split()
        self._timeout = timeout  # seconds

    def tell(self, container: Container, mode: str) -> None:
        """Run it: `save` before a freeze; when it goes on, `restore`, or `resume` in the old one.

        A container that is paused runs for so long.
        """
        with container.lock():
            container.reload()
            paused = container.status() == PAUSED
            if paused:
                # Should we be killed, the next command pauses it again.
                container.state["pausedForCheckpoint"] = True
                container.save()
                interrupted.mark(container)
                cgroups.freeze(container.state["cgroup"], False)
        try:
            self._run(container, mode)
        finally:
            if paused:
                with container.lock():
                    container.reload()
                    interrupted.finish(container)

    def _run(self, container: Container, mode: str) -> None:
        request = execs.Request(self._process(container, mode), lifecycle.config_of(container))
        if seccomp := (request.config.get("linux") or {}).get("seccomp"):
            from woodfrog.runtime.seccomp import compile

            request.seccomp = compile(seccomp)
        name = f"{self._words[0]} ({mode})"
        sys.stdout.flush()
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            request.stdio = (null, 2, 2)
            pid, _ = execs.begin(container, request)
        finally:
            os.close(null)
        status = self._wait(pid)
        if status is None:
            raise StateError(
                f"{name} did not end within {self._timeout} s",
                hint="--save-restore-exec-timeout gives it more time",
            )
        if code := os.waitstatus_to_exitcode(status):
            how = f"was killed by signal {-code}" if code < 0 else f"failed with exit status {code}"
            raise WoodfrogError(f"{name} {how}")

    def _process(self, container: Container, mode: str) -> dict[str, Any]:
        process: dict[str, Any] = dict(lifecycle.config_of(container)["process"])
        process["args"] = self._words
        process["terminal"] = False
        process["env"] = [*(process.get("env") or []), f"{_VARIABLE}={mode}"]
        return process

    def _wait(self, pid: int) -> int | None:
        """Return the wait status; None if it took too long. In the end the program has ended."""
        in_time = False
        pidfd = pidfd_open(HERE, pid)
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            in_time = bool(poll.poll(self._timeout * 1000))
        finally:
            os.close(pidfd)
            if not in_time:
                os.kill(pid, signals.SIGKILL)
            status = os.waitpid(pid, 0)[1]
        return status if in_time else None
