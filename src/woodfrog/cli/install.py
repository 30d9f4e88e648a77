"""woodfrog install"""

from __future__ import annotations

import sys

from woodfrog.cli.flags import Arguments, Command, Flag
from woodfrog.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from woodfrog.install.editing import Change, Edit, Wanted

ENGINES = ("docker", "podman", "containerd")


def run(arguments: Arguments) -> int:
    """Make woodfrog known to an engine."""
    from woodfrog.install.editing import Wanted, own_command

    wanted = Wanted(
        name=arguments["name"],
        command=arguments["runtime"] or own_command(),
        arguments=tuple(arguments["runtime_arg"]),
        default=arguments["default"],
    )
    engine, edits = edits_of(arguments, wanted)
    return carry_out(arguments, [edit.install() for edit in edits], engine.AFTERWARDS)


def edits_of(arguments: Arguments, wanted: Wanted) -> tuple[ModuleType, list[Edit]]:
    """Return the engine's module, and what of its files we touch."""
    from importlib import import_module

    name = arguments.rest[0]
    if name not in ENGINES:
        raise UsageError(f"unknown engine {name}", hint=f"one of {', '.join(ENGINES)}")
    engine = import_module(f"woodfrog.install.{name}")
    return engine, engine.edits(wanted, arguments["config"] or engine.PATH)


def carry_out(arguments: Arguments, planned: Sequence[Change], afterwards: str) -> int:
    """Show the changes, ask, and make them."""
    changes = [change for change in planned if change]
    if not changes:
        sys.stdout.write("nothing to do: it is so already\n")
        return 0
    sys.stdout.write("".join(change.diff() for change in changes))
    if arguments["dry_run"]:
        return 0
    if not arguments["yes"]:
        if not sys.stdin.isatty():
            raise UsageError("nothing is changed: nobody is there to ask", hint="give --yes")
        sys.stdout.write("make these changes? [y/N] ")
        sys.stdout.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            sys.stdout.write("nothing is changed\n")
            return 1
    for change in changes:
        change.apply()
    sys.stdout.write(f"done; {afterwards}\n")
    return 0


ASKING = (Flag("dry-run", "only show the changes"), Flag("yes", "don't ask", short="y"))

FLAGS = (
    Flag("config", "the engine's configuration, where it isn't the usual file", value="FILE"),
    Flag("name", "what the engine calls this runtime", value="NAME", default="woodfrog"),
    *ASKING,
)

COMMAND = Command(
    "install",
    "|".join(ENGINES),
    "Make woodfrog known to an engine by editing its configuration. The changes are shown first;\n"
    "`woodfrog uninstall` takes them back.",
    (
        "woodfrog install docker --yes --runtime-arg=--tcp-close",
        "woodfrog install podman --default --dry-run",
    ),
    (
        *FLAGS,
        Flag("default", "make it the runtime of containers that ask for none"),
        Flag("runtime", "the woodfrog to call (default this one)", value="FILE"),
        Flag(
            "runtime-arg",
            "have the engine give this flag before each command (repeat it for more)",
            value="FLAG",
            many=True,
        ),
    ),
    run,
)
