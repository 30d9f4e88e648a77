"""woodfrog kill"""

from __future__ import annotations

from woodfrog.cli.flags import Arguments, Command, Flag
from woodfrog.cli.loading import found
from woodfrog.errors import UsageError


def run(arguments: Arguments) -> None:
    """Send a signal."""
    from woodfrog.runtime import lifecycle

    number = _number((arguments.rest[1:] or ["TERM"])[0])
    # No lock: a signal must get through while another command waits for something.
    lifecycle.kill(found(arguments), number, everything=arguments["all"])


def _number(text: str) -> int:
    from woodfrog.kernel.signals import signals

    if text.isdigit():
        number = int(text)
    else:
        name = "SIG" + text.upper().removeprefix("SIG")
        base, _, offset = name.partition("+")
        found = getattr(signals, base, None)
        number = found + int(offset or 0) if isinstance(found, int) and "_" not in base else -1
    if not 0 <= number < 65:
        raise UsageError(f"unknown signal {text!r}", hint="name it like TERM, SIGTERM or 15")
    return number


COMMAND = Command(
    "kill",
    "ID [SIGNAL]",
    "Send a signal (TERM unless named) to the first process of a container.",
    ("woodfrog kill web KILL", "woodfrog kill --all web 9"),
    (Flag("all", "send it to every process of the container", short="a"),),
    run,
    most=2,
)
