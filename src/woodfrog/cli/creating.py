"""The flags that create, run and restore share, and what they come to."""

from __future__ import annotations

import os

from woodfrog.cli.flags import Flag
from woodfrog.cli.report import warner
from woodfrog.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
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
    Flag("no-pivot", "", refused="the root is always entered by pivot_root"),
    Flag("pidfd-socket", "", value="PATH", refused="not done yet"),
)


def request(arguments: Arguments) -> Request:
    """Return what is to be created; reads the bundle's config."""
    from woodfrog.runtime import spec
    from woodfrog.runtime.create import Request

    common = arguments.common
    bundle = os.path.realpath(arguments["bundle"])
    text = spec.read(os.path.join(bundle, "config.json"))
    if b"org.woodfrog." in text:
        _check_annotations(text)
    wanted = Request(common.root, arguments.rest[0], bundle, text)
    fill(wanted, arguments)
    return wanted


def _check_annotations(text: bytes) -> None:
    """Refuse policies that nobody could follow, now rather than when they are needed."""
    from woodfrog.cli import policies
    from woodfrog.runtime import spec

    annotations = spec.parse(text, "config.json").get("annotations") or {}
    policies.annotated({name: str(value) for name, value in annotations.items()})


def fill(wanted: Request, arguments: Arguments) -> None:
    """Take over the shared flags."""
    wanted.console_socket = arguments["console_socket"] or ""
    wanted.pid_file = arguments["pid_file"] or ""
    wanted.new_keyring = not arguments["no_new_keyring"]
    wanted.preserve_fds = arguments["preserve_fds"]
    if wanted.preserve_fds < 0:
        raise UsageError("--preserve-fds takes a number that is not negative")
    for descriptor in range(3, 3 + wanted.preserve_fds):
        try:
            os.fstat(descriptor)
        except OSError:
            raise UsageError(
                f"--preserve-fds={wanted.preserve_fds}: descriptor {descriptor} is not open"
            ) from None
    wanted.options = arguments.common.recorded()
    wanted.warn = warner(arguments.common)


def refuse_lost_terminal(wanted: Request, config: dict[str, object], detach: bool) -> None:
    """Refuse a terminal that nobody would hold: detached, and no console socket."""
    process = config.get("process")
    terminal = isinstance(process, dict) and process.get("terminal")
    if terminal and detach and not wanted.console_socket:
        raise UsageError(
            "the config asks for a terminal: detached, that needs --console-socket",
            hint="set process.terminal to false, or stay attached",
        )
