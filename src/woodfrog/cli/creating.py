"""The flags that create, run and restore share, and what they come to."""

from __future__ import annotations

import os

from woodfrog.cli.flags import Flag
from woodfrog.cli.report import Debugger, warner
from woodfrog.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from woodfrog.cli.flags import Arguments
    from woodfrog.runtime.create import Request

FLAGS = (
    Flag("bundle", "the directory with config.json", short="b", value="DIR", default="."),
    Flag("console-socket", "hand the terminal to the unix socket at this path", value="PATH"),
    Flag("pid-file", "write the container's pid to this file", value="FILE"),
    Flag("no-new-keyring", "keep the session keyring of the caller"),
    Flag(
        "preserve-fds", "pass on so many descriptors from 3 up", value="N", number=True, default=0
    ),
    Flag("no-pivot", "enter the root without pivot_root, where / is a ramfs; less secure"),
    Flag(
        "fs-restore-image-path",
        "",
        value="DIR",
        refused="an image's files are restored with its processes (checkpoint --with-rootfs);"
        " without them, unpack what `woodfrog tar rootfs-upper` writes",
    ),
    Flag("pidfd-socket", "hand a pidfd to the unix socket at this path", value="PATH"),
)


def request(arguments: Arguments) -> Request:
    """Return what is to be created; reads the bundle's config."""
    from woodfrog.runtime import spec
    from woodfrog.runtime.create import Request

    common = arguments.common
    bundle = os.path.realpath(arguments["bundle"])
    text = spec.read(os.path.join(bundle, "config.json"))
    wanted = Request(common.root, arguments.rest[0], bundle, text)
    if b"org.woodfrog." in text:
        _check_annotations(wanted.config)
    fill(wanted, arguments)
    return wanted


def _check_annotations(config: Any) -> None:
    """Refuse policies that nobody could follow, now rather than when they are needed."""
    from woodfrog.cli import policies

    annotations = config.get("annotations") or {}
    policies.annotated({name: str(value) for name, value in annotations.items()})


def fill(wanted: Request, arguments: Arguments) -> None:
    """Take over the shared flags."""
    wanted.console_socket = arguments["console_socket"] or ""
    wanted.pid_file = arguments["pid_file"] or ""
    wanted.new_keyring = not arguments["no_new_keyring"]
    wanted.pidfd_socket = arguments["pidfd_socket"] or ""
    wanted.pivot = not arguments["no_pivot"]
    wanted.notify_socket = os.environ.get("NOTIFY_SOCKET", "")
    wanted.listen_fds = _listen_fds()
    wanted.preserve_fds = arguments["preserve_fds"]
    check_descriptors(wanted.listen_fds, wanted.preserve_fds)
    wanted.systemd_cgroup = arguments.common.systemd_cgroup
    wanted.options = arguments.common.recorded()
    wanted.warn = warner(arguments.common)
    debug = Debugger(arguments.common)
    wanted.debug, wanted.debug_descriptor = debug, debug.descriptor


def _listen_fds() -> int:
    """Return how many sockets a service manager has opened for us to pass on."""
    count, pid = os.environ.get("LISTEN_FDS", ""), os.environ.get("LISTEN_PID", "")
    return int(count) if count.isdigit() and pid in ("", str(os.getpid())) else 0


def check_descriptors(before: int, preserved: int) -> None:
    """Raise UsageError unless all descriptors that are to be passed on are open."""
    if preserved < 0:
        raise UsageError("--preserve-fds takes a number that is not negative")
    for descriptor in range(3, 3 + before + preserved):
        try:
            os.fstat(descriptor)
        except OSError:
            name = "LISTEN_FDS" if descriptor < 3 + before else f"--preserve-fds={preserved}"
            raise UsageError(f"{name}: descriptor {descriptor} is not open") from None


def refuse_lost_terminal(wanted: Request, config: dict[str, object], detach: bool) -> None:
    """Refuse a terminal that nobody would hold: detached, and no console socket."""
    process = config.get("process")
    terminal = isinstance(process, dict) and process.get("terminal")
    if terminal and detach and not wanted.console_socket:
        raise UsageError(
            "the config asks for a terminal: detached, that needs --console-socket",
            hint="set process.terminal to false, or stay attached",
        )
