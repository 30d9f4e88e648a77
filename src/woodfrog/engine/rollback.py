"""Rollback: a running container goes back to an image in place.

What stands is set back; only what is gone is made anew (remaking.py, rebirth.py). First all is
held, looked at, and compared; a refusal leaves the container running as it was. From then on the
tasks die with us (PTRACE_O_EXITKILL), and a failure ends the container.
"""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from woodfrog.engine import resetting_locks, terminals
from woodfrog.engine.admission import Bounds, admit
from woodfrog.engine.changes import unwritten_since
from woodfrog.engine.checkpoint import try_again
from woodfrog.engine.guardian import Guardian, guarded
from woodfrog.engine.looking import (
    CheckpointOptions,
    Container,
    Looked,
    look,
    losses_of,
    read_backlogs,
)
from woodfrog.engine.obstacles import Obstacles
from woodfrog.engine.plan import Plan
from woodfrog.engine.resetting import ProcessReset, end_extras, remove_ipc, reset_files
from woodfrog.engine.resetting_memory import Contents, SharedReset
from woodfrog.engine.standing import Match
from woodfrog.engine.tracking import Tracker, Tracking, still_noted
from woodfrog.errors import UnsupportedResource, WoodfrogError
from woodfrog.image.chain import Chain, Stored
from woodfrog.remote.held import living_task
from woodfrog.remote.hold import Pause, end_all
from woodfrog.remote.vdso import own_vdso
from woodfrog.resources import known_files, layer_rollback, namespaces, tmpfs
from woodfrog.resources.cpu import CpuCheck
from woodfrog.resources.deleted_files import DeletedFile
from woodfrog.resources.files.base import ACCESS_MODE, O_PATH
from woodfrog.resources.files.deleted import OpenDeletedFile
from woodfrog.resources.files.memfd import MemFd
from woodfrog.resources.files.regular import RegularFile
from woodfrog.resources.known_files import FileValidation
from woodfrog.resources.memory import Source
from woodfrog.resources.overlay import Overlay

if TYPE_CHECKING:
    from woodfrog.engine.rebirth import Rebirth
    from woodfrog.engine.remaking import Remaking


def rollback(
    init: int,
    directory: str,
    *,
    container: Container,
    bounds: Bounds,
    parents: Sequence[str],
    file_validation: str,
    tracker: Tracker,
    pause: Pause | None,
) -> dict[str, object]:
    """Set a container back to directory/checkpoint.img; returns statistics.

    UnsupportedResource and ImageError leave it running as it was, if they carry no `touched`.
    """

    def work(guardian: Guardian) -> dict[str, object]:
        with ExitStack() as undo:
            image = undo.enter_context(Chain(directory, parents))
            return _rollback(
                living_task(init),
                image,
                container,
                bounds,
                FileValidation(file_validation),
                tracker,
                pause,
                guardian,
                undo,
            )

    return guarded(lambda guardian: try_again(lambda: work(guardian)))


def _rollback(
    init: int,
    image: Chain,
    container: Container,
    bounds: Bounds,
    validation: FileValidation,
    tracker: Tracker,
    pause: Pause | None,
    guardian: Guardian,
    undo: ExitStack,
) -> dict[str, object]:
    vdso = own_vdso()
    plan = Plan(image)
    admit(plan, bounds, vdso, CpuCheck.STRICT)
    if plan.container.uid_map:
        raise UnsupportedResource("a rollback of a container with a user namespace is not possible")
    known = tracker.known()
    tracking = undo.enter_context(Tracking())
    began = time.monotonic()
    with ExitStack() as hold:
        obstacles = Obstacles()
        # What leads outside now is left alone, or closed: nothing of it goes anywhere.
        options = CheckpointOptions(
            leave_running=True, tcp_established=True, tcp_skip_in_flight=True, unix_close=True
        )
        noted = still_noted(known)
        without_root = msgspec.structs.replace(container, rootfs="")
        with ExitStack() as lent:
            looked = look(
                hold,
                init,
                without_root,
                options,
                pause,
                obstacles,
                guardian,
                noted.keys(),
                lent=lent,
                wanted={record.pid for record in plan.processes},
            )
        obstacles.raise_if_any()
        read_backlogs(looked)
        match = Match(plan, looked, obstacles)
        resetting_locks.refuse_taken(match, looked, obstacles)
        obstacles.raise_if_any()
        closed = _closed_to_outside(match, plan, may_close=bounds.tcp_close)
        # Such files as it doesn't bring must be as they were.
        known_files.refuse_changed(init, plan.own_files, plan.growing_files, validation)
        believed = noted if known and known.image == image.digest else {}
        trusted = bool(believed) and known is not None and known.file == image.identity
        resets = [
            ProcessReset(one, match.pairs, unwritten_since(one.now, believed), vdso)
            for one in match.processes
        ]
        needed = {one.path for one in match.remade.values() if isinstance(one, RegularFile)}
        needed.update(path for reset in resets for path in reset.memory.files)
        programs = {one.memory.executable for one in match.lost}
        mapped = (mapping for one in match.lost for mapping in one.memory.mappings)
        needed |= programs | {one.path for one in mapped if one.source is Source.FILE}
        known_files.refuse_missing(
            init,
            sorted(needed - plan.brought_files),
            programs,
            but_root=bool(plan.layer and container.rootfs),
        )
        shared = _look_at_objects(plan, looked, match, hold)
        files = _look_at_files(plan, image, container, bounds, looked, hold)
        writes = [one for reset in resets for one in reset.memory.writes]
        writes += (one for reset in shared for one in reset.writes)
        contents = Contents(image, writes, trusted=trusted)
        for memory in shared:
            memory.refuse_if_changed(contents)
        remaking = None
        if not match.has_all_files:
            from woodfrog.engine.remaking import Remaking

            remaking = Remaking(init, plan, match, looked, bounds, vdso, hold)
        rebirth = None
        if (match.lost or match.lost_zombies) and remaking:
            from woodfrog.engine.rebirth import Rebirth

            rebirth = Rebirth(plan, match, image, bounds, vdso, remaking)
        lent = hold.enter_context(ExitStack())
        for reset in resets:
            lent.enter_context(reset.lend())
        guardian.check()
        collected = time.monotonic()
        lent.pop_all()
        try:
            names = "uts" in bounds.new_namespaces
            _set_back(
                init,
                plan,
                looked,
                match,
                resets,
                shared,
                files,
                contents,
                remaking,
                rebirth,
                names=names,
            )
            if known:
                tracking.take_over(tracker)
                for one in match.processes:
                    tracking.begin(one.now, vdso)
            for reset in resets:
                reset.let_live()
            if rebirth:
                rebirth.let_go()
        except BaseException as error:
            if rebirth:
                rebirth.end()
            if remaking:
                remaking.end()
            end_all(looked.tree, init)
            failed = WoodfrogError(
                f"the rollback failed half-way, and the container has ended: {error}"
            )
            for note in getattr(error, "__notes__", ()):
                failed.add_note(note)
            failed.touched = True  # type: ignore[attr-defined]
            raise failed from error
    if known:
        tracking.keep(tracker, init)
        tracking.settle(tracker, image.digest, known.file if trusted else ())
    return {
        "written_bytes": contents.written,
        "looked_at_bytes": contents.looked_at,
        "look_us": int((collected - began) * 1e6),
        "frozen_us": int((looked.tree.let_go - began) * 1e6),
        "processes": len(resets),
        "processes_made_anew": len(match.lost),
        "files_made_anew": len(match.remade),
        "losses": losses_of(match.remade.values()) + closed,
        "missing": remaking.missing if remaking else [],
    }


def _closed_to_outside(match: Match, plan: Plan, *, may_close: bool) -> list[str]:
    """Say how many connections to others have gone on since; refuse those unless they may close."""
    closed = 0
    for record in plan.files_of("tcp-socket"):
        connection = record.connection
        if record.id in match.remade and connection is not None and connection.outside:
            closed += 1
            if not may_close:
                peer = socket.inet_ntop(record.family, connection.remote)
                raise UnsupportedResource(
                    f"a TCP connection to {peer} port {connection.remote_port}, outside the"
                    " container, has gone on or was closed since",
                    hint="--tcp-close sets it back as reset, so that programs connect anew",
                )
    return [f"{closed} TCP connections to the outside are set back as reset"] if closed else []


def _look_at_objects(
    plan: Plan, looked: Looked, match: Match, hold: ExitStack
) -> list[SharedReset]:
    """Compare shared memory and deleted files with the image's."""
    now = {one.number: one for one in looked.world.links.objects.values()}
    writable = _written_by_container(looked)
    found = []
    for then, number in match.pairs.of("object"):
        record = plan.shared.get(then) or plan.deleted.get(then)
        one = now.get(number)
        if record is None or one is None or not stat.S_ISREG(os.fstat(one.fd).st_mode):
            continue
        if isinstance(record, DeletedFile) and record.link:
            continue  # it has a name, and is set back by that, or stays as files do
        # Not by our rights: an image could have it that the container writes to what it only reads.
        access = os.O_RDWR if number in writable else os.O_RDONLY
        fd = os.open(f"/proc/self/fd/{one.fd}", access | os.O_NOATIME | os.O_CLOEXEC)
        hold.callback(os.close, fd)
        found.append(SharedReset(record, one, fd, may_write=number in writable))
    return found


def _written_by_container(looked: Looked) -> set[int]:
    """Return the ids of shared memory and deleted files that the container can write to now."""
    found = {
        mapping.object
        for process in looked.processes
        for mapping in process.space.mappings
        if mapping.writable
    }
    for file in looked.file_records:
        if file.flags & (ACCESS_MODE | O_PATH) in (os.O_WRONLY, os.O_RDWR):
            if isinstance(file, MemFd):
                found.add(file.memory)
            elif isinstance(file, OpenDeletedFile):
                found.add(file.deleted)
    return found


def _look_at_files(
    plan: Plan,
    image: Chain,
    container: Container,
    bounds: Bounds,
    looked: Looked,
    hold: ExitStack,
) -> list[Callable[[], None]]:
    """Compare the files that the image has; return what sets those back that have changed."""
    stored = Stored(image)
    view = looked.world.view
    pages, base = image.open_pages()
    resets: list[Callable[[], None]] = []
    for record in plan.tmpfs:
        if record.destination not in bounds.tmpfs:
            continue  # nothing that the container has of its own: an image could name any place
        reset = tmpfs.look_for_rollback(view, record, stored, bounds.bounding)
        if reset.make or reset.remove:
            resets.append(partial(tmpfs.roll_back, view, record, reset, pages, base))
    if plan.layer:
        overlay = hold.enter_context(Overlay(view, writable=True))
        found = layer_rollback.look(
            plan.layer,
            overlay,
            container.rootfs,
            container.mounts,
            stored,
            bounds.bounding,
            hold,
        )
        if found:
            resets.append(partial(layer_rollback.roll_back, overlay, found, pages, base))
    return resets


def _set_back(
    init: int,
    plan: Plan,
    looked: Looked,
    match: Match,
    resets: list[ProcessReset],
    shared: list[SharedReset],
    files: list[Callable[[], None]],
    contents: Contents,
    remaking: Remaking | None,
    rebirth: Rebirth | None,
    *,
    names: bool,
) -> None:
    """Do it. From here on the container can't go on as it was.

    `names` tells that its host and domain name are its own.
    """
    for reset in resets:
        reset.hold_for_good()
    end_extras(looked, match, resets)
    remove_ipc(init, match.extra_ipc)
    if remaking:
        remaking.make_way()
    for reset in resets:
        reset.close_extras(match)
    for put_back in files:
        put_back()
    if remaking:
        remaking.make([(reset.one, reset.stub) for reset in resets])
    if rebirth:
        rebirth.make({reset.one.then.pid: reset.stub for reset in resets})
    for reset in resets:
        if reset.one.then.foreground_group != reset.one.now.fields["foreground_group"]:
            terminals.set_foreground(reset.stub, plan, reset.one.then)
    for one in shared:
        one.arrange()
    for reset in resets:
        reset.arrange()
    contents.put()
    hostname, domainname = plan.container.hostname, plan.container.domainname
    if names:
        with namespaces.inside(init, "uts"):
            now = namespaces.names()
        if now[0] != hostname:
            namespaces.set_hostname(init, hostname)
        if now[1] != domainname:
            namespaces.set_domainname(init, domainname)
    reset_files(looked, match)
    resetting_locks.reset(resets, match)
    for reset in resets:
        reset.finish(match)
    if rebirth:
        rebirth.settle()
    if remaking:
        remaking.complete()
