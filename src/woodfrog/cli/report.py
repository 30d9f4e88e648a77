"""What the user sees: errors and warnings, on stderr and in the log that --log names."""

from __future__ import annotations

import errno
import os

from woodfrog.errors import MORE_DESCRIPTORS, WoodfrogError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from woodfrog.cli.flags import Common


def explain(error: BaseException) -> str:
    """Return an error as lines for people: what, while doing what, and what to do."""
    lines = [f"woodfrog: {summary(error)}"]
    lines += [f"  {note}" for note in getattr(error, "__notes__", ())]
    if hint := _hint(error):
        lines.append(f"  hint: {hint}")
    return "\n".join(lines) + "\n"


def summary(error: BaseException) -> str:
    """Return an error as one line."""
    if isinstance(error, WoodfrogError):
        return str(error)
    if isinstance(error, OSError):
        name = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        return f"{name}{error.strerror or error}"
    return f"internal error: {type(error).__name__}: {error}"


def _hint(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno == errno.EMFILE:
        return MORE_DESCRIPTORS
    return str(getattr(error, "hint", ""))


def printable(text: str) -> str:
    """Return a text without what a terminal would obey: names in it may be a container's."""
    return "".join(one if one.isprintable() or one in "\n\t" else ascii(one)[1:-1] for one in text)


def _say(text: str) -> None:
    """Write to stderr, if that can be: containerd gives a pod's first process one to read from."""
    try:
        os.write(2, printable(text).encode())
    except OSError:
        pass


def failure(error: BaseException, common: Common) -> None:
    """Tell an error to the user and to the log."""
    text = summary(error)
    for note in getattr(error, "__notes__", ()):
        text += f" ({note})"
    if hint := _hint(error):
        text += f" (hint: {hint})"
    # Who gives a log is an engine, and of what stands here it may pass on but one line.
    _say(f"woodfrog: {text}\n" if common.log else explain(error))
    if common.debug:
        import traceback

        _say("".join(traceback.format_exception(error)))
        for frame in getattr(error, "frames", ()):
            _say(f"  in the container: {frame}\n")
    elif not isinstance(error, (WoodfrogError, OSError)):
        _say("  hint: this is a mistake in woodfrog; --debug shows where\n")
    log("error", text, common)


def tell(text: str) -> None:
    """Tell the user something that is neither an error nor a warning."""
    _say(f"woodfrog: {text}\n")


def warner(common: Common) -> Callable[[str], None]:
    """Return what tells a warning to the user, or to the log if there is one.

    (An engine gives a log; our stderr is then the container's, and would be in its output.)
    """

    def warn(text: str) -> None:
        if common.log:
            log("warning", text, common)
        else:
            _say(f"woodfrog: warning: {text}\n")

    return warn


class Debugger:
    """Tells with --debug what happens, on stderr or in the log; else it does nothing.

    Processes that are already in the container tell, too: it has a descriptor of its own.
    """

    def __init__(self, common: Common) -> None:
        self.descriptor = -1
        self._format = common.log_format
        if not common.debug:
            return
        if common.log:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self.descriptor = os.open(common.log, flags, 0o644)
        else:
            self.descriptor = os.dup(2)

    def __call__(self, text: str) -> None:
        if self.descriptor >= 0:
            os.write(self.descriptor, _line("debug", text, self._format))


def log(level: str, text: str, common: Common) -> None:
    """Append a line to the log, in the format that engines read."""
    if not common.log:
        return
    try:
        with open(common.log, "ab", buffering=0) as file:
            file.write(_line(level, text, common.log_format))
    except OSError as error:
        _say(f"woodfrog: cannot write the log {common.log}: {error.strerror}\n")


def _line(level: str, text: str, format: str) -> bytes:
    import time

    from woodfrog.runtime import jsontext

    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if format == "json":
        line = jsontext.write({"level": level, "msg": text, "time": when})
    else:
        line = f"time={jsontext.write(when)} level={level} msg={jsontext.write(text)}"
    return line.encode() + b"\n"
