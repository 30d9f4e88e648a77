"""ADMIT: an image is read and checked, and compared with the new container that it shall become."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec

from woodfrog.engine import (
    connections,
    reading_pages,
)
from woodfrog.engine.admission import Bounds, admit
from woodfrog.engine.background import Background
from woodfrog.engine.making_network import Networking
from woodfrog.engine.plan import Plan
from woodfrog.image.chain import Chain
from woodfrog.kernel.capability import CAP_SYS_RESOURCE
from woodfrog.remote.vdso import own_vdso
from woodfrog.resources import (
    ids,
    known_files,
)
from woodfrog.resources.container import ContainerRecord
from woodfrog.resources.cpu import CpuCheck
from woodfrog.resources.known_files import FileValidation

if TYPE_CHECKING:
    from woodfrog.engine.filling import Teller
    from woodfrog.engine.template import Template
    from woodfrog.engine.tracking import Tracker
    from woodfrog.resources.file_entry import Entry
    from woodfrog.resources.overlay import Overlay
    from woodfrog.resources.tmpfs import Tmpfs


def _anything(container: ContainerRecord) -> None:
    pass


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What the caller of a restore wants.

    `accept` may refuse what the image says of its container; `silence` is what `silence_for` has
    begun. With a `teller` the processes run before their memory is there, which is filled in
    meanwhile. `parents` are directories in which images may be that this one builds on; with
    `direct` pages are read past the page cache. With a
    `tracker` what is written to is noted from then on. With a `template` of the image, of which the
    init is a fork, memory is shared with that.
    """

    bounds: Bounds
    clock: str = "container"
    cpu_check: str = CpuCheck.STRICT
    file_validation: str = FileValidation.BUILD_ID
    accept: Callable[[ContainerRecord], None] = _anything
    silence: connections.Silence | None = None
    teller: Teller | None = None
    parents: Sequence[str] = ()
    direct: bool = False
    tracker: Tracker | None = None
    template: Template | None = None


class PageCheck:
    """Checks the page store beside the copying."""

    def __init__(self, reader: Chain, *, begin: bool) -> None:
        self._failure: BaseException | None = None
        self._reader = reader
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._begun = begin
        if begin:
            self._thread.start()

    def _run(self) -> None:
        try:
            self._reader.verify_own_pages()
        except BaseException as error:
            self._failure = error

    def result(self) -> None:
        """Wait for the end; raises ImageError."""
        if self._begun:
            self._thread.join()
        if self._failure is not None:
            raise self._failure


class Admitted:
    """An image that the new container may become, and what was opened to find that out.

    All of it is closed when `undo` unwinds. `pages` is our descriptor of the page store, which
    begins at `base` of it.
    """

    def __init__(self, init: int, directory: str, wishes: Wishes, undo: ExitStack) -> None:
        """Refuse what must be refused; nothing has been touched then."""
        bounds, template = wishes.bounds, wishes.template
        self.wishes = wishes
        self.reader = (
            template.reader if template else Chain(directory, wishes.parents, direct=wishes.direct)
        )
        if template is None:
            undo.callback(self.reader.close)
        self.plan = template.plan if template else Plan(self.reader)
        self.vdso = template.vdso if template else own_vdso()
        self.validation = FileValidation(wishes.file_validation)
        plan = self.plan
        admit(plan, bounds, self.vdso, CpuCheck(wishes.cpu_check))
        self.losses = list(plan.container.losses)
        if bounds.tcp_listen_only:
            self._give_up_waiting()
        wishes.accept(plan.container)
        ids.refuse_others(plan.container.uid_map, plan.container.gid_map, ids.maps_of(init))
        # The files of those that are to be filled, and what is missing in them.
        self.tmpfs: list[tuple[Tmpfs, list[Entry]]] = []
        self.networking = Networking(plan, bounds, undo)
        self._refuse_wider(init, bounds)
        known_files.refuse_changed(init, plan.own_files, plan.growing_files, self.validation)
        self.overlay: Overlay | None = None
        if plan.layer:
            from woodfrog.resources import layer
            from woodfrog.resources.overlay import Overlay

            self.overlay = undo.enter_context(Overlay(init, writable=True))
            layer.refuse_wider(plan.layer, self.overlay, bounds.bounding)
            # What can't be undone begins only with an image that is right to the last byte.
            self.reader.verify_pages()
        self.background = Background(init, self.reader, plan, wishes.teller, undo)
        if template is None:
            # Whoever fills pages in checks them, too.
            self.reader.leave_out(reading_pages.ranges(plan.pages))
        self.check = PageCheck(self.reader, begin=template is None)
        self.pages, self.base = self.reader.open_pages()

    def _give_up_waiting(self) -> None:
        from woodfrog.resources.files import tcp_socket

        given_up = tcp_socket.without_waiting(self.plan.files)
        self.plan.files |= given_up
        if given_up:
            self.losses.append("TCP connections that nobody has accepted are given up")

    def _refuse_wider(self, init: int, bounds: Bounds) -> None:
        """Refuse what the new container may not have in its namespaces and file systems."""
        plan = self.plan
        _refuse_wider_ipc(init, plan, bounds)
        if plan.namespaces:
            from woodfrog.resources import nested

            nested.refuse_wider(
                init, plan.namespaces.values(), bounding=bounds.bounding, seccomp=bounds.seccomp
            )
        for files in plan.tmpfs:
            if files.destination in bounds.tmpfs:
                from woodfrog.resources import tmpfs

                missing = tmpfs.refuse_wider(init, files, bounds.bounding)
                self.tmpfs.append((files, missing))
        if plan.sysctls:
            from woodfrog.resources import sysctls

            sysctls.refuse_wider(init, plan.sysctls, bounds.new_namespaces, bounds.bounding)
        self.networking.refuse_wider(init)
        if plan.mounts:
            from woodfrog.resources.mount_tree import admitting as mount_admitting

            mount_admitting.refuse_wider(
                init,
                plan.mounts,
                new="mount" in bounds.new_namespaces,
                bounding=bounds.bounding,
                seccomp=bounds.seccomp,
                own=bounds.tmpfs,
            )


def _refuse_wider_ipc(init: int, plan: Plan, bounds: Bounds) -> None:
    for number, queues, objects in plan.ipc():
        if not queues and not objects:
            continue
        from woodfrog.resources import posix_queues, sysv_ipc

        new = number != 0 or "ipc" in bounds.new_namespaces
        # In a namespace that a program has made, it may set the limits, too.
        bounding = bounds.bounding | (1 << CAP_SYS_RESOURCE if number else 0)
        posix_queues.refuse_wider(init, queues, new=new, bounding=bounding)
        sysv_ipc.refuse_wider(
            init,
            objects,
            new=new,
            bounding=bounding,
            may_lock=bounds.rlimits.get("RLIMIT_MEMLOCK", (None,))[0],
        )
