"""woodfrog restore --template: by the process that holds the template, or as a fork of it."""

from __future__ import annotations

import os

from woodfrog.cli import keeper
from woodfrog.errors import StateError, UsageError
from woodfrog.runtime import templates
from woodfrog.runtime.state import Container, UnknownContainer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from woodfrog.cli.flags import Arguments
    from woodfrog.engine.template import Template

_NOT_WITH = ("image_path", "work_path", "parent", "background", "preserve_fds")
_NOT_WITH_COUNT = ("console_socket", "pid_file", "pidfd_socket")


def run(arguments: Arguments, thaw: Callable[[Arguments, str, Template | None], int]) -> int:
    """Make one container, or several; `thaw` makes one in this process."""
    template, common = templates.held(), arguments.common
    if template is None and common.asked == keeper.BEGUN:
        raise templates.gone(templates.Place(common.root, arguments["template"]))
    _check(arguments)
    if template is None:
        place = templates.Place(common.root, arguments["template"])
        detached = arguments["detach"] or arguments["count"] is not None
        return templates.ask(place, common.words, detached=detached)
    directory = template.reader.directory
    if arguments["count"] is None:
        return thaw(arguments, directory, template)
    return _make_several(arguments, lambda: thaw(arguments, directory, template))


def _check(arguments: Arguments) -> None:
    for key in (*_NOT_WITH, *(_NOT_WITH_COUNT if arguments["count"] is not None else ())):
        if key in arguments.given:
            flag = "--count" if key in _NOT_WITH_COUNT else "--template"
            raise UsageError(f"--{key.replace('_', '-')} has no meaning with {flag}")
    if arguments["count"] is not None and arguments["count"] < 1:
        raise UsageError("--count must be at least 1")
    id = arguments.rest[0]
    try:
        Container.load(arguments.common.root, id)
    except UnknownContainer:
        return
    raise StateError(
        f"container {id} exists: --template makes a new one, whose first process is forked from it",
        hint="restore into that container with --image-path, or take another id",
    )


def _make_several(arguments: Arguments, make: Callable[[], int]) -> int:
    """Make containers side by side, by one process more than there are processors.

    For a third of the time a maker waits, for the init that it guides and who gives birth to it.
    Each is a process of its own: one whose clone fails takes what all its children tell.
    """
    count = arguments["count"]
    arguments.values["detach"] = True
    makers = min(len(os.sched_getaffinity(0)) + 1, count)
    if makers == 1:
        return _make_some(arguments, range(1, count + 1), make)
    begun = []
    for first in range(1, makers + 1):
        pid = os.fork()
        if pid:
            begun.append(pid)
            continue
        status = 1
        try:
            templates.work_in_fork()
            status = _make_some(arguments, range(first, count + 1, makers), make)
        finally:
            os._exit(status)
    statuses = [os.waitpid(pid, 0)[1] for pid in begun]
    return 1 if any(statuses) else 0


def _make_some(arguments: Arguments, numbers: range, make: Callable[[], int]) -> int:
    """Make those of these numbers, one after the other; whatever fails, the others are made."""
    from woodfrog.cli import report

    id, failed = arguments.rest[0], 0
    for number in numbers:
        arguments.rest[0] = f"{id}-{number}"
        try:
            failed |= make()
        except Exception as error:
            report.failure(error, arguments.common)
            failed = 1
    return failed
