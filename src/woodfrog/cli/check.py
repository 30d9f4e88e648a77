"""woodfrog check"""

from __future__ import annotations

import sys

from woodfrog.cli import policies
from woodfrog.cli.checkpoint import options_of
from woodfrog.cli.flags import Arguments, Command, Flag
from woodfrog.cli.loading import held
from woodfrog.cli.report import printable
from woodfrog.runtime import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def run(arguments: Arguments) -> int:
    """Say whether a container could be saved, or what this kernel offers."""
    return examine(arguments) if arguments.rest else _kernel(arguments)


def examine(arguments: Arguments) -> int:
    """Show everything that keeps a container from being saved; 1 if there is something."""
    with held(arguments) as container:
        container.require("checkpoint")
        policies.settle(arguments, container.state["annotations"], "checkpoint")
        from woodfrog.runtime.checkpoint import examine

        options = options_of(arguments, leave_running=True, replace=False)
        found: dict[str, Any] = examine(container, options)
    obstacles = [
        {"what": what, "hint": hint}
        for what, hint in found["obstacles"]
        # They would be free by then.
        if not (arguments["cuda_checkpoint_path"] and "/dev/nvidia" in what)
    ]
    if arguments.values.get("json"):
        sys.stdout.write(jsontext.write(found | {"obstacles": obstacles}, 2) + "\n")
        return 1 if obstacles else 0
    lines = [f"container {container.id} can be saved"]
    if obstacles:
        lines = [f"container {container.id} cannot be saved:"]
    for one in obstacles:
        lines.append(f"  {one['what']}")
        lines += [f"    hint: {one['hint']}"] if one["hint"] else []
    lines += [f"  not kept: {loss}" for loss in found["losses"]]
    lines.append(
        f"looked at {found['processes']} processes with {found['threads']} threads,"
        f" which stood still for {found['frozen_us'] // 1000} ms"
    )
    sys.stdout.write(printable("\n".join(lines)) + "\n")
    return 1 if obstacles else 0


def _kernel(arguments: Arguments) -> int:
    from woodfrog.engine.offers import offers

    found = offers()
    if arguments["json"]:
        sys.stdout.write(jsontext.write([one._asdict() for one in found], 2) + "\n")
    else:
        width = max(len(one.name) for one in found)
        for one in found:
            state = "yes" if one.is_there else f"no: {one.loss}"
            sys.stdout.write(f"{one.name.ljust(width)}  {state}\n")
    return 1 if any(one.needed and not one.is_there for one in found) else 0


COMMAND = Command(
    "check",
    "[ID]",
    "Say whether a container could be saved, with everything that stands in the way, while it\n"
    "runs on. Without an ID, say what this kernel offers, and what is lost without it.",
    ("woodfrog check web", "woodfrog check   # is this kernel good enough?"),
    (Flag("json", "as JSON"), *policies.of("checkpoint")),
    run,
    least=0,
)
