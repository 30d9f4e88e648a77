"""Warm templates: images that lie ready in memory, each held by a process that forks containers.

What is known of one is in a directory beside the containers' (ROOT.templates/NAME): who holds it,
and a socket at which it is asked (runtime/asking.py). `restore --template` has a maker do the work,
which waits for that, or, if the command stays with the container, a fork of the supervisor, to
which it passes signals on.
"""

from __future__ import annotations

import os

from woodfrog.errors import StateError, WoodfrogError
from woodfrog.kernel.signals import signals
from woodfrog.runtime import asking, jsontext
from woodfrog.runtime.asking import Door
from woodfrog.runtime.state import check_id, start_time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from types import FrameType
    from typing import Any

    from woodfrog.engine.template import Template
    from woodfrog.runtime.births import Midwife

_INFORMATION = "template.json"
DROP = b"drop"
# What is passed on to whoever does the work.
_FORWARDED = (
    signals.SIGHUP,
    signals.SIGINT,
    signals.SIGQUIT,
    signals.SIGTERM,
    signals.SIGUSR1,
    signals.SIGUSR2,
    signals.SIGWINCH,
)

_held: Template | None = None  # in the process that holds one, and in its forks
_midwife: Midwife | None = None  # of a maker


def held() -> Template | None:
    """Return the template that this process is, or was forked from."""
    return _held


def hold(template: Template | None) -> None:
    """Be the process that holds a template, or none."""
    global _held
    _held = template


def midwife() -> Midwife | None:
    """Return who makes the first processes of a maker's containers."""
    return _midwife


def work_with(one: Midwife) -> None:
    """Be a maker, with who makes its containers' first processes."""
    global _midwife
    _midwife = one


def work_in_fork() -> None:
    """Go on as a fork of a maker."""
    if _midwife:
        work_with(_midwife.again())


class Place:
    """Where a template is known, whether or not it is there."""

    def __init__(self, root: str, name: str) -> None:
        check_id(name, "name of a template")
        self.name = name
        self.root = root
        self.directory = os.path.join(f"{root}.templates", name)

    def make(self) -> None:
        """Make the directory; raises StateError if the template is there already."""
        if self.information() is not None:
            raise StateError(
                f"there is a template {self.name} already",
                hint=f"`woodfrog warm --drop {self.name}` lets go of it",
            )
        self.remove()
        os.makedirs(self.directory, mode=0o700)

    def remove(self) -> None:
        """Remove the directory, if it is there."""
        for name in (_INFORMATION, asking.TEMPLATE):
            try:
                os.unlink(os.path.join(self.directory, name))
            except FileNotFoundError:
                pass
        try:
            os.rmdir(self.directory)
        except FileNotFoundError:
            pass

    def write(self, information: dict[str, Any]) -> None:
        """Say who holds it, and what."""
        path = os.path.join(self.directory, _INFORMATION)
        with open(path, "x", encoding="utf-8") as file:
            file.write(jsontext.write(information))

    def information(self) -> dict[str, Any] | None:
        """Return what the supervisor has said, or None if there is no supervisor (any more)."""
        try:
            with open(os.path.join(self.directory, _INFORMATION), encoding="utf-8") as file:
                found: dict[str, Any] = jsontext.parse(file.read())
        except (FileNotFoundError, ValueError):
            return None
        supervisor = start_time(found["pid"])
        return found if supervisor and supervisor[1] == found["startTime"] else None

    @property
    def door(self) -> Door:
        """Where the supervisor is asked."""
        return Door(self.directory, asking.TEMPLATE)

    def connect(self) -> socket.socket:
        """Return a connection to the supervisor; raises StateError."""
        connection = self.door.knock()
        if connection is None:
            raise StateError(
                f"there is no template {self.name}",
                hint="`woodfrog warm --list` shows those that are ready",
            )
        return connection


def all_templates(root: str) -> list[Place]:
    """Return those that are ready, by name; what is left of others goes."""
    found = []
    try:
        names = sorted(os.listdir(f"{root}.templates"))
    except FileNotFoundError:
        return []
    for name in names:
        place = Place(root, name)
        if place.information() is not None:
            found.append(place)
        else:
            place.remove()
    return found


def drop(place: Place) -> None:
    """Have the supervisor let go of it; containers that were made from it go on."""
    connection = place.connect()
    connection.send(DROP)
    connection.recv(1)
    connection.close()


def ask(place: Place, words: list[str], *, detached: bool) -> int:
    """Have this command line run where the template is; returns its exit status.

    Detached it goes its way, whatever becomes of us.
    """

    def forward_signals(worker: int) -> None:
        def forward(number: int, frame: FrameType | None) -> None:
            try:
                os.kill(worker, number)
            except ProcessLookupError:
                pass  # it is about to tell

        for number in () if detached else _FORWARDED:
            if signals.getsignal(number) != signals.SIG_IGN:
                signals.signal(number, forward)

    kind = asking.DETACHED if detached else asking.RUN
    status = asking.ask(place.connect(), words, os.environb, forward_signals, kind)
    if status is None:
        raise gone(place)
    return status


def gone(place: Place) -> WoodfrogError:
    """Return what to raise when the supervisor, or who worked for it, has ended."""
    return StateError(
        f"template {place.name} has ended, or who worked for it, or it is of another woodfrog",
        hint=f"`woodfrog warm --drop {place.name}`, then make it anew",
    )
