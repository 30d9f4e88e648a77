"""Restore: admit, make a stub, open files, build the tree, fill it, limit it, let it go."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from woodfrog.engine import connections, root_stub
from woodfrog.engine.admission import Bounds
from woodfrog.engine.admitting import Admitted, Wishes
from woodfrog.engine.plan import Plan
from woodfrog.engine.restoration import Restoration
from woodfrog.engine.stages import Stage
from woodfrog.errors import MORE_DESCRIPTORS, UnsupportedResource
from woodfrog.image.chain import Chain
from woodfrog.remote.program import ProgramError

if TYPE_CHECKING:
    from woodfrog.engine.tracking import Tracking

__all__ = ["Bounds", "Wishes", "restore", "silence_for"]


def restore(init: int, directory: str, wishes: Wishes) -> dict[str, object]:
    """Turn the waiting init of a created container into the image's processes.

    A refusal before anything was touched carries `touched = False`; then init still waits. After
    any other failure all its processes have ended. Returns statistics.
    """
    began = time.monotonic()
    with ExitStack() as undo:
        try:
            admitted = Admitted(init, directory, wishes, undo)
        except Exception as error:
            error.touched = False  # type: ignore[attr-defined]
            raise
        admitted_at = time.monotonic()
        reader, plan, tracker = admitted.reader, admitted.plan, wishes.tracker
        tracking: Tracking | None = None
        if tracker:
            from woodfrog.engine.tracking import Tracking

            tracking = undo.enter_context(Tracking())
        try:
            if plan.layer and admitted.overlay:
                from woodfrog.resources import layer

                layer.restore(plan.layer, admitted.overlay, admitted.pages, admitted.base)
            sockets = plan.files_of("tcp-socket")
            if "network" not in wishes.bounds.new_namespaces:
                connections.refuse_taken(init, sockets, plan.networks)
            silence = wishes.silence or connections.Silence(init, sockets, plan.networks)
            with silence:
                statistics = _restore(init, admitted, silence, tracking, undo)
        except BaseException as error:
            root_stub.end(init)
            admitted.background.abandon()
            if isinstance(error, ProgramError) and error.opened:
                raise _cannot_open(error) from error
            if isinstance(error, ProgramError) and error.errno == errno.EADDRNOTAVAIL:
                error.add_note("the container's TCP connections need the address that they had")
                error.add_note("--tcp-close restores them as reset")
            raise
        if tracking and tracker:
            tracking.keep(tracker, init)
            tracking.settle(tracker, reader.digest, reader.identity)
    statistics["admit_us"] = int((admitted_at - began) * 1e6)
    statistics["restore_us"] = int((time.monotonic() - began) * 1e6)
    statistics["page_bytes"] = reader.page_bytes
    statistics["losses"] = admitted.losses
    return statistics


def silence_for(init: int, directory: str, parents: Sequence[str] = ()) -> connections.Silence:
    """Drop what comes for an image's connections, before a new container can be reached.

    Its network namespace is that of `init`: a new one, without a network yet.
    """
    with Chain(directory, parents) as reader:
        plan = Plan(reader)
    return connections.Silence(init, plan.files_of("tcp-socket"), plan.networks)


def _cannot_open(error: ProgramError) -> UnsupportedResource:
    """Say which file the new container lacks."""
    reason = os.strerror(error.errno or 0)
    found = UnsupportedResource(
        f"cannot open {os.fsdecode(error.opened)} in the new container: {reason}",
        hint=MORE_DESCRIPTORS
        if error.errno == errno.EMFILE
        else "a container needs the files that it had open or mapped, where they were;"
        " bring what it had written along",
    )
    for note in getattr(error, "__notes__", ()):
        found.add_note(note)
    return found


def _restore(
    init: int,
    admitted: Admitted,
    silence: connections.Silence,
    tracking: Tracking | None,
    undo: ExitStack,
) -> dict[str, object]:
    """Go through the stages; returns how long each took in microseconds, and what is missing."""
    started = time.monotonic()
    marks: dict[str, object] = {}

    def mark(stage: Stage) -> None:
        nonlocal started
        now = time.monotonic()
        marks[f"{stage.name.lower()}_us"] = int((now - started) * 1e6)
        started = now

    restoration = Restoration(init, admitted, silence, tracking, undo)
    restoration.make_root()
    mark(Stage.ROOT)
    restoration.make_files()
    mark(Stage.FILES)
    restoration.make_tree()
    mark(Stage.TREE)
    restoration.make_bodies()
    mark(Stage.BODY)
    restoration.connect()
    mark(Stage.CONNECT)
    restoration.limit()
    mark(Stage.LIMITS)
    restoration.let_go()
    mark(Stage.GO)
    restoration.close()
    marks["missing"] = restoration.missing
    return marks
