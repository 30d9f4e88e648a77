"""Hooks: programs that the config names, run at given moments with the state on their stdin."""

from __future__ import annotations

import os
import select

from woodfrog.errors import WoodfrogError
from woodfrog.kernel.signals import signals
from woodfrog.runtime import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from woodfrog.runtime.state import Container


def listed(config: dict[str, Any], moment: str) -> list[dict[str, Any]]:
    """Return the hooks that the config has for a moment."""
    return (config.get("hooks") or {}).get(moment) or []


def state_of(container: Container, status: str) -> dict[str, Any]:
    """Return the state that a hook reads from its stdin."""
    state = container.state
    return {
        "ociVersion": state["ociVersion"],
        "id": container.id,
        "status": status,
        "pid": container.pid,
        "bundle": state["bundle"],
        "annotations": state["annotations"],
    }


def run(
    config: dict[str, Any],
    moment: str,
    state: dict[str, Any],
    environment: dict[str, str] | None = None,
) -> None:
    """Run the hooks of a moment, one after the other; the first that fails is an error.

    A hook that lists no variables gets `environment`, or ours.
    """
    hooks = listed(config, moment)
    text = jsontext.write(state).encode() if hooks else b""
    for number, hook in enumerate(hooks):
        _run_one(hook, f"{moment} hook #{number}", text, environment)


def run_all(config: dict[str, Any], moment: str, state: dict[str, Any]) -> list[str]:
    """Run the hooks of a moment although some fail; returns what went wrong."""
    failures = []
    for number, hook in enumerate(listed(config, moment)):
        try:
            _run_one(hook, f"{moment} hook #{number}", jsontext.write(state).encode(), None)
        except WoodfrogError as error:
            failures.append(str(error))
    return failures


def _run_one(
    hook: dict[str, Any], name: str, state: bytes, environment: dict[str, str] | None
) -> None:
    path = hook.get("path") or ""
    what = f"error running {name}: {path}"
    env = dict(entry.partition("=")[::2] for entry in hook.get("env") or ())
    timeout = hook.get("timeout")
    said = os.memfd_create("hook-output", os.MFD_CLOEXEC)
    stdin = os.memfd_create("hook-state", os.MFD_CLOEXEC)
    try:
        os.write(stdin, state)
        os.lseek(stdin, 0, os.SEEK_SET)
        try:
            pid = os.posix_spawn(
                path,
                hook.get("args") or [path],
                env or environment or os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, stdin, 0),
                    (os.POSIX_SPAWN_DUP2, said, 1),
                    (os.POSIX_SPAWN_DUP2, said, 2),
                ],
                setsigmask=[],
                setsigdef=[signals.SIGPIPE, signals.SIGXFSZ],
            )
        except OSError as error:
            raise WoodfrogError(f"{what} cannot be run: {error.strerror}") from None
        status = _wait(pid, timeout)
        if status is None:
            raise WoodfrogError(f"{what} did not end within its timeout of {timeout} s")
        if code := os.waitstatus_to_exitcode(status):
            how = f"failed with exit status {code}"
            if code < 0:
                reason = signals.strsignal(-code) or "an unknown signal"
                how = f"was killed by signal {-code}: {reason.lower()}"
            os.lseek(said, 0, os.SEEK_SET)
            tail = os.read(said, 4096).decode(errors="replace").strip()
            raise WoodfrogError(f"{what} {how}" + (f": {tail}" if tail else ""))
    finally:
        os.close(said)
        os.close(stdin)


def _wait(pid: int, timeout: int | None) -> int | None:
    if timeout:
        pidfd = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            if not poll.poll(timeout * 1000):
                os.kill(pid, signals.SIGKILL)
                os.waitpid(pid, 0)
                return None
        finally:
            os.close(pidfd)
    return os.waitpid(pid, 0)[1]
