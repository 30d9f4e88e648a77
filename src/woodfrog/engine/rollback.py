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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from woodfrog.engine import resetting_locks, signal_room, terminals
from woodfrog.engine.admission import Bounds, admit
from woodfrog.engine.changes import unwritten_since
from woodfrog.engine.checkpoint import try_again
from woodfrog.engine.guardian import Guardian, guarded
from woodfrog.engine.irrecoverable import lost_since
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
from woodfrog.engine.putting_back import Contents
from woodfrog.engine.resetting import ProcessReset, end_extras, remove_ipc, reset_files
from woodfrog.engine.resetting_memory import SharedReset
from woodfrog.engine.standing import Match
from woodfrog.engine.tracking import Noted, Tracker, Tracking, still_noted
from woodfrog.errors import UnsupportedResource, WoodfrogError
from woodfrog.image.chain import Chain, Stored
from woodfrog.remote.held import living_task
from woodfrog.remote.hold import Pause, end_all
from woodfrog.remote.vdso import own_vdso
from woodfrog.resources import ids, known_files, layer_rollback, namespaces, tmpfs
from woodfrog.resources.cpu import CpuCheck
from woodfrog.resources.deleted_files import DeletedFile
from woodfrog.resources.files.deleted import OpenDeletedFile
from woodfrog.resources.files.memfd import MemFd
from woodfrog.resources.files.open_file import ACCESS_MODE, O_PATH
from woodfrog.resources.files.regular import RegularFile
from woodfrog.resources.known_files import FileValidation
from woodfrog.resources.memory import Source
from woodfrog.resources.mount_tree.looking import NOT_MOUNTED
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
            tracking = undo.enter_context(Tracking())
            one = _Rollback(living_task(init), image, container, bounds, tracker)
            with ExitStack() as hold:
                one.look(hold, pause, guardian)
                one.compare(hold, FileValidation(file_validation))
                one.borrow(hold, guardian)
                one.set_back(tracking)
            one.keep_noting(tracking)
            return one.statistics()

    return guarded(lambda guardian: try_again(lambda: work(guardian)))


class _Rollback:
    """A rollback by steps, in the order in which they stand here; `set_back` is the first to touch.

    `_began`, `_ready`: when these have begun, and when it was known what is to be done.
    """

    # Since `look`. `_noted` are the processes whose writes are noted.
    _looked: Looked
    _match: Match
    _noted: dict[int, Noted]

    # Since `compare`. The image is `_trusted` if nobody has written to its file.
    _trusted = False
    _closed: list[str]
    _resets: list[ProcessReset]
    _shared: list[SharedReset]
    _files: list[Callable[[], None]]
    _contents: Contents
    _remaking: Remaking | None = None
    _rebirth: Rebirth | None = None
    _ready = 0.0

    def __init__(
        self, init: int, image: Chain, container: Container, bounds: Bounds, tracker: Tracker
    ) -> None:
        """Read and admit the image."""
        self._init = init
        self._image = image
        self._container = container
        self._bounds = bounds
        self._tracker = tracker
        self._vdso = own_vdso()
        self._plan = Plan(image)
        admit(self._plan, bounds, self._vdso, CpuCheck.STRICT)
        self._maps = ids.maps_of(init)
        ids.refuse_others(self._plan.container.uid_map, self._plan.container.gid_map, self._maps)
        self._known = tracker.known()
        self._began = time.monotonic()

    def look(self, hold: ExitStack, pause: Pause | None, guardian: Guardian) -> None:
        """Hold the container, and see what of the image still stands."""
        obstacles = Obstacles()
        # What leads outside now is left alone, or closed: nothing of it goes anywhere.
        options = CheckpointOptions(
            leave_running=True, tcp_established=True, tcp_skip_in_flight=True, unix_close=True
        )
        self._noted = still_noted(self._known)
        without_root = msgspec.structs.replace(self._container, rootfs="")
        looked = self._looked = look(
            hold,
            self._init,
            without_root,
            options,
            pause,
            obstacles,
            guardian,
            self._noted.keys(),
            lent=hold,
            wanted={record.pid for record in self._plan.processes},
        )
        looked.add_flags(obstacles)
        obstacles.raise_if_any()
        # What clients have sent that nobody has accepted need not be read: those come anew.
        read_backlogs(looked, of_unix=False)
        self._match = Match(self._plan, looked, obstacles, self._maps)
        resetting_locks.refuse_taken(self._match, looked, obstacles)
        obstacles.raise_if_any()
        self._closed = _closed_to_outside(self._match, self._plan, may_close=self._bounds.tcp_close)

    def compare(self, hold: ExitStack, validation: FileValidation) -> None:
        """Find out what is to be done, and read what is to be written."""
        plan, image, match, known = self._plan, self._image, self._match, self._known
        signal_room.refuse_lack(match.processes)
        # Such files as it doesn't bring must be as they were.
        there = [*plan.own_files, *plan.files_in_new_mounts]
        known_files.refuse_changed(self._init, there, plan.growing_files, validation)
        believed = self._noted if known and known.image == image.digest else {}
        self._trusted = bool(believed) and known is not None and known.file == image.identity
        self._resets = [
            ProcessReset(one, match.pairs, unwritten_since(one.now, believed), self._vdso)
            for one in match.processes
        ]
        self._refuse_missing_files()
        self._shared = _look_at_objects(plan, self._looked, match, hold)
        self._files = _look_at_files(plan, image, self._container, self._bounds, self._looked, hold)
        writes = [one for reset in self._resets for one in reset.memory.writes]
        writes += (one for reset in self._shared for one in reset.writes)
        self._contents = Contents(image, writes, trusted=self._trusted)
        for memory in self._shared:
            memory.refuse_if_changed(self._contents)
        self._compare_what_is_gone(hold)

    def _refuse_missing_files(self) -> None:
        """Refuse if files are missing that are to be opened, mapped or executed again."""
        plan, match = self._plan, self._match
        needed = {one.path for one in match.remade.values() if isinstance(one, RegularFile)}
        needed.update(path for reset in self._resets for path in reset.memory.files)
        programs = {one.memory.executable for one in match.lost}
        mapped = (mapping for one in match.lost for mapping in one.memory.mappings)
        needed |= programs | {one.path for one in mapped if one.source is Source.FILE}
        needed -= plan.brought_files
        if plan.mounts:
            needed -= {path for path in needed if plan.mounts.is_brought(path)}
        known_files.refuse_missing(
            self._init,
            sorted(needed),
            programs,
            but_root=bool(plan.layer and self._container.rootfs),
        )

    def _compare_what_is_gone(self, hold: ExitStack) -> None:
        """See whether files and processes that are gone can be made anew."""
        plan, match, bounds, vdso = self._plan, self._match, self._bounds, self._vdso
        if not match.has_all_files:
            from woodfrog.engine.remaking import Remaking

            self._remaking = Remaking(self._init, plan, match, self._looked, bounds, vdso, hold)
        if (match.lost or match.lost_zombies) and self._remaking:
            from woodfrog.engine.rebirth import Rebirth

            self._rebirth = Rebirth(plan, match, self._image, bounds, vdso, self._remaking)

    def borrow(self, hold: ExitStack, guardian: Guardian) -> None:
        """Have each process lend us memory for good: the last that may fail without harm."""
        lent, obstacles = hold.enter_context(ExitStack()), Obstacles()
        for one in self._match.extra_processes:
            one.give_scratch_back()
        for reset in self._resets:
            with obstacles.at(reset.one.held.name):
                reset.lend(lent)
        obstacles.raise_if_any()
        guardian.check()
        self._ready = time.monotonic()
        lent.pop_all()

    def set_back(self, tracking: Tracking) -> None:
        """Do it, and note from now on what is written to. A failure ends the container."""
        try:
            self._set_back()
            if self._known:
                tracking.take_over(self._tracker)
                for one in self._match.processes:
                    tracking.begin(one.now, self._vdso)
            for reset in self._resets:
                reset.let_live()
            if self._rebirth:
                self._rebirth.let_go()
        except BaseException as error:
            if self._rebirth:
                self._rebirth.end()
            if self._remaking:
                self._remaking.end()
            end_all(self._looked.tree, self._init)
            failed = WoodfrogError(
                f"the rollback failed half-way, and the container has ended: {error}"
            )
            for note in getattr(error, "__notes__", ()):
                failed.add_note(note)
            failed.touched = True  # type: ignore[attr-defined]
            raise failed from error

    def _set_back(self) -> None:
        init, match, looked, resets = self._init, self._match, self._looked, self._resets
        for reset in resets:
            reset.hold_for_good()
        end_extras(looked, match, resets)
        remove_ipc(init, match.extra_ipc)
        if self._remaking:
            self._remaking.make_way()
        for reset in resets:
            reset.close_extras(match)
        for put_back in self._files:
            put_back()
        if self._remaking:
            self._remaking.make([(reset.one, reset.stub) for reset in resets])
        if self._rebirth:
            self._rebirth.make({reset.one.then.pid: reset.stub for reset in resets})
        if self._remaking:
            self._remaking.own_files([(reset.one, reset.stub) for reset in resets])
        for reset in resets:
            if reset.one.then.foreground_group != reset.one.now.fields["foreground_group"]:
                terminals.set_foreground(reset.stub, self._plan, reset.one.then)
        for one in self._shared:
            one.arrange()
        for reset in resets:
            reset.arrange()
        self._contents.put()
        if "uts" in self._bounds.new_namespaces:
            _set_names(init, self._plan)
        reset_files(looked, match)
        resetting_locks.reset(resets, match)
        for reset in resets:
            reset.finish(match)
        if self._rebirth:
            self._rebirth.settle()
        if self._remaking:
            self._remaking.complete()

    def keep_noting(self, tracking: Tracking) -> None:
        """Give what is noted to the keeper, if there is one; the container runs."""
        if self._known:
            tracking.keep(self._tracker, self._init)
            file = self._known.file if self._trusted else ()
            tracking.settle(self._tracker, self._image.digest, file)

    def statistics(self) -> dict[str, object]:
        """Return figures for people."""
        contents, match = self._contents, self._match
        return {
            "written_bytes": contents.written,
            "looked_at_bytes": contents.looked_at,
            "look_us": int((self._ready - self._began) * 1e6),
            "frozen_us": int((self._looked.tree.let_go - self._began) * 1e6),
            "processes": len(self._resets),
            "processes_made_anew": len(match.lost),
            "files_made_anew": len(match.remade),
            "losses": losses_of(match.remade.values()) + self._closed,
            "missing": self._remaking.missing if self._remaking else [],
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
    world, found = looked.world, set()
    for process in looked.processes:
        for mapping in process.space.mappings:
            if mapping.writable and mapping.source is Source.SYSV:
                found.add(world.ipc.memory(world.ipc_of(process.held.pid), mapping.object))
            elif mapping.writable:
                found.add(mapping.object)
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
    resets: list[Callable[[], None]] = []
    for one in _file_systems_in_memory(plan, bounds, looked):
        if one.look(stored, bounds.bounding):
            resets.append(partial(one.run, *image.open_pages()))
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
            resets.append(partial(layer_rollback.roll_back, overlay, found, *image.open_pages()))
    return resets


def _file_systems_in_memory(plan: Plan, bounds: Bounds, looked: Looked) -> Iterator[tmpfs.Rollback]:
    """Go through those of the config, and those that programs have mounted."""
    view, mounts = looked.world.view, looked.mounts
    for record in plan.tmpfs:
        if record.destination not in bounds.tmpfs:
            continue  # nothing that the container has of its own: an image could name any place
        copy = mounts.copy_of(record.destination) if mounts else None
        if copy == NOT_MOUNTED:
            raise lost_since(f"{record.where} is there no more")
        yield tmpfs.Rollback(view, record.where, record.destination, record.entries, copy)
    if not plan.mounts or not mounts:
        return
    if mounts.late:
        raise lost_since("programs have mounted terminals or the files of unix sockets")
    for number, mount, copy in mounts.in_memory():
        point = os.fsdecode(mount.point)
        entries = plan.mounts.bases[number].entries
        yield tmpfs.Rollback(view, f"the file system at {point}", point, entries, copy)


def _set_names(init: int, plan: Plan) -> None:
    """Set back the host and domain name, which are the container's own."""
    hostname, domainname = plan.container.hostname, plan.container.domainname
    with namespaces.inside(init, "uts"):
        now = namespaces.names()
    if now[0] != hostname:
        namespaces.set_hostname(init, hostname)
    if now[1] != domainname:
        namespaces.set_domainname(init, domainname)
