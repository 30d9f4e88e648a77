"""What is in a held container's ipc namespaces: POSIX message queues, and System V objects."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec

from woodfrog.engine.collecting_namespaces import Namespaces
from woodfrog.engine.shared_objects import SharedObject
from woodfrog.resources import deleted_files, posix_queues, sysv_ipc
from woodfrog.resources.namespaces import is_ours
from woodfrog.resources.posix_queues import PosixQueue
from woodfrog.resources.queue_notices import Notices

if TYPE_CHECKING:
    from woodfrog.resources.nested import AnyNamespace

# Stands for the device of System V memory, whose inode numbers are those of other files, too.
_SYSV = -1


class Ipc:
    """By the ids of ipc namespaces; 0 is the container's own.

    The contents of System V memory go to `objects`, which has all shared memory. What takes long
    and nobody needs any more is left for `afterwards`.
    """

    def __init__(
        self,
        init: int,
        namespaces: Namespaces,
        objects: dict[tuple[int, int], SharedObject | deleted_files.Found],
        afterwards: ExitStack,
    ) -> None:
        self._init = init
        self._namespaces = namespaces
        self._objects = objects
        self._afterwards = afterwards
        self.sysv: dict[int, sysv_ipc.Found] = {}
        self._queues: dict[int, posix_queues.Found] = {}

    def look_at_posix_queues(self, notices: Notices) -> None:
        """Collect POSIX message queues."""
        for number, descriptor in self._each():
            found = self._queues[number] = posix_queues.Found()
            posix_queues.collect(descriptor, found, notices, self._afterwards)

    def look_at_sysv(self) -> None:
        """Collect System V objects."""
        for number, descriptor in self._each():
            found = self.sysv[number] = sysv_ipc.Found()
            sysv_ipc.collect(descriptor, found)
            for identifier, segment in found.segments.items():
                one = SharedObject(len(self._objects) + 1, os.dup(segment.fd), None)
                self._objects[_SYSV - number, identifier] = one
                segment.contents = one.number

    def memory(self, namespace: int, segment: int) -> int:
        """Return the id of the shared memory that a segment of a namespace is."""
        return self._objects[_SYSV - namespace, segment].number

    def records(self, namespace: int) -> list[PosixQueue | sysv_ipc.AnyObject]:
        """Return what is in a namespace, once all processes have been collected."""
        queues, objects = self._queues.get(namespace), self.sysv.get(namespace)
        return [*(queues.queues if queues else ()), *(objects.records() if objects else ())]

    def semaphores(self, namespace: int) -> tuple[dict[int, list[int]], int]:
        """Return the values of a namespace's semaphores by their sets, and semopm (proc(5))."""
        found = self.sysv.get(namespace)
        return (sysv_ipc.values_of(found.objects), found.most_operations) if found else ({}, 0)

    def furnished(self, namespace: AnyNamespace) -> AnyNamespace:
        """Return the record of a nested namespace with what is in it."""
        from woodfrog.resources.nested import IpcNamespace

        if not isinstance(namespace, IpcNamespace):
            return namespace
        return msgspec.structs.replace(
            namespace,
            queues=self._queues[namespace.id].queues,
            objects=self.sysv[namespace.id].records(),
        )

    def _each(self) -> Iterator[tuple[int, int]]:
        if not is_ours(self._init, "ipc"):
            own = os.open(f"/proc/{self._init}/ns/ipc", os.O_RDONLY | os.O_CLOEXEC)
            try:
                yield 0, own
            finally:
                os.close(own)
        yield from self._namespaces.descriptors("ipc")

    @property
    def queue_devices(self) -> Mapping[int, int]:
        """Return the ids of the namespaces by the devices of their queues."""
        return {found.device: number for number, found in self._queues.items()}

    @property
    def queue_names(self) -> set[bytes]:
        """Return the names of all queues."""
        return {one.name for found in self._queues.values() for one in found.queues}

    def close(self) -> None:
        """Close what was opened."""
        for found in self.sysv.values():
            found.close()
