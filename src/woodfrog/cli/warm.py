"""woodfrog warm"""

from __future__ import annotations

import os

from woodfrog.cli.flags import Arguments, Command, Flag
from woodfrog.cli.images import PARENT_FLAG
from woodfrog.cli.list import write_table
from woodfrog.errors import UsageError

_OF_CLONES = (
    "cli.cloning",
    "cli.loading",
    "cli.restore",
    "cli.rights",
    "runtime.restore",
    "runtime.cgroups.limits_v1",
    "runtime.cgroups.limits_v2",
    "runtime.cgroups.devices",
    "runtime.seccomp",
    "engine.restore",
    "engine.forked_stub",
    "kernel.fork",
)


def run(arguments: Arguments) -> None:
    """Load an image into memory, or show or let go of those that are."""
    from woodfrog.runtime import templates
    from woodfrog.runtime.templates import Place

    root = arguments.common.root
    if arguments["list"]:
        if arguments.rest:
            raise UsageError("warm --list takes no name")
        found = [place.information() for place in templates.all_templates(root)]
        write_table(
            ("NAME", "PID", "MIB", "IMAGE"),
            [one | {"mib": one["bytes"] >> 20} for one in found if one],
        )
        return
    if not arguments.rest:
        raise UsageError("warm: a template needs a NAME")
    place = Place(root, arguments.rest[0])
    if arguments["drop"]:
        templates.drop(place)
        return
    if not (directory := arguments["image_path"]):
        raise UsageError("warm: --image-path is missing: the directory of checkpoint.img")
    from woodfrog.cli.main import main
    from woodfrog.runtime import template_supervisor

    image = os.path.abspath(directory)
    template_supervisor.start(place, image, arguments["parent"], main, _load_code)


def _load_code() -> None:
    """Import what a clone needs as a rule."""
    import importlib

    for name in _OF_CLONES:
        importlib.import_module(f"woodfrog.{name}")


COMMAND = Command(
    "warm",
    "[NAME]",
    "Load an image into the memory of a process that stays. `restore --template=NAME` then forks\n"
    "containers from it: they begin at once, and share all memory that none of them writes to.",
    (
        "woodfrog warm --image-path=/srv/images/web web",
        "woodfrog restore --template=web -b /srv/web --count=100 web",
    ),
    (
        Flag("image-path", "the directory of checkpoint.img", value="DIR"),
        PARENT_FLAG,
        Flag("list", "show those that are ready"),
        Flag("drop", "let go of it; containers made from it go on"),
    ),
    run,
    least=0,
    most=1,
)
