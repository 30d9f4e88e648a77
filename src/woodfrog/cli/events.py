"""woodfrog events"""

from __future__ import annotations

import sys

from woodfrog.cli.flags import Arguments, Command, Flag
from woodfrog.cli.loading import found
from woodfrog.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from woodfrog.runtime.state import Container

_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def run(arguments: Arguments) -> None:
    """Show what a container uses."""
    from woodfrog.runtime.cgroups import statistics, watching

    interval = duration(arguments["interval"])
    if interval <= 0:
        raise UsageError("duration interval must be greater than 0")
    container = found(arguments)
    container.require("events")
    if arguments["stats"]:
        _show("stats", container, statistics.collect(container.state["cgroup"]))
        return
    for event in watching.follow(container, interval):
        _show("oom" if event is None else "stats", container, event)


def _show(kind: str, container: Container, data: dict[str, Any] | None) -> None:
    from woodfrog.runtime import jsontext

    event: dict[str, Any] = {"type": kind, "id": container.id}
    if data is not None:
        event["data"] = data
    sys.stdout.write(jsontext.write(event) + "\n")
    sys.stdout.flush()


def duration(text: str) -> float:
    """Return the seconds of a duration as Go programs write it: 5s, 100ms, 1m30s."""
    seconds, rest = 0.0, text
    while rest:
        number = rest[: len(rest) - len(rest.lstrip("0123456789."))]
        rest = rest[len(number) :]
        unit = rest[: len(rest) - len(rest.lstrip("nuµmsh"))]
        rest = rest[len(unit) :]
        try:
            seconds += float(number) * _SECONDS[unit]
        except (ValueError, KeyError):
            raise UsageError(f"--interval takes a time such as 5s or 100ms, not {text!r}") from None
    return seconds


COMMAND = Command(
    "events",
    "ID",
    "Show what a container uses, now and then, and tell when it runs out of memory, until it\n"
    "ends. Each line is a JSON object.",
    ("woodfrog events --stats web", "woodfrog events --interval=500ms web"),
    (
        Flag("interval", "how often", value="TIME", default="5s"),
        Flag("stats", "show it once, at once"),
    ),
    run,
)
