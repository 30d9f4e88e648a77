"""What the processes of an image are called in the container's pid namespace and those below."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from woodfrog.errors import ImageError
from woodfrog.resources.process import Process, Zombie

if TYPE_CHECKING:
    from woodfrog.resources.nested import AnyNamespace, PidNamespace

Member = Process | Zombie

_HIGHEST_PID = 1 << 22
_DEEPEST = 32  # MAX_PID_NS_LEVEL of the kernel


class Pids:
    """The pid namespaces of an image by their ids, and who has which id in them."""

    def __init__(self, members: Sequence[Member], namespaces: Iterable[AnyNamespace]) -> None:
        self._members = members
        self.namespaces: Mapping[int, PidNamespace] = _pid_namespaces(list(namespaces))

    def check(self) -> None:
        """Check that all have ids, one in each pid namespace that they are in.

        One with nobody in it must have ended, or be for somebody's future children; all others have
        a first one.
        """
        begun = {one.pid_namespace for one in self._members if one.is_first}
        for namespace in self.namespaces.values():
            self._level(namespace.id)
            if (namespace.id in begun) == (namespace.is_unborn or namespace.has_ended):
                raise ImageError("a pid namespace of the image lacks its first process, or has one")
        for one in self._members:
            found = [one.ids]
            if one.nested_ids:
                found.append([one.group, *one.nested_ids.group])
                found.append([one.session, *one.nested_ids.session])
            if isinstance(one, Process):
                found += [thread.ids for thread in one.threads]
            level = self._level(one.pid_namespace)
            for ids in found:
                if len(ids) != level + 1 or any(not 0 <= pid < _HIGHEST_PID for pid in ids):
                    raise ImageError(f"process {one.pid} of the image has impossible ids")

    def _level(self, namespace: int) -> int:
        """Return how deep a pid namespace is nested; 0: it is the container's own."""
        level = 0
        while namespace:
            if namespace not in self.namespaces or level == _DEEPEST:
                raise ImageError("a pid namespace of the image hangs in the air")
            namespace = self.namespaces[namespace].parent
            level += 1
        return level

    def is_within(self, inner: int, outer: int) -> bool:
        """Tell whether a pid namespace is another one, or nested in it."""
        while inner not in (outer, 0):
            inner = self.namespaces[inner].parent
        return inner == outer

    def seen_by(self, viewer: Member, number: int) -> int:
        """Return what a process calls a task or group of this id in the container.

        0: it doesn't see it from its pid namespace.
        """
        level = len(viewer.ids) - 1
        if not level:
            return number
        found = 0
        for one in self._members:
            tasks = [one.ids]
            if isinstance(one, Process):
                tasks += [thread.ids for thread in one.threads]
            for ids in tasks:
                if ids[0] == number and self.is_within(one.pid_namespace, viewer.pid_namespace):
                    return ids[level]
            # The first process of a group may have ended.
            groups = [one.group, *(one.nested_ids.group if one.nested_ids else ())]
            if groups[0] == number and self.is_within(one.pid_namespace, viewer.pid_namespace):
                found = groups[level]
        return found


def numbers_of(one: Member) -> list[int]:
    """Return all numbers that a process's pid namespaces have for it and what it belongs to."""
    found = list(one.ids)
    if one.nested_ids:
        found += [*one.nested_ids.group, *one.nested_ids.session]
    if isinstance(one, Process):
        found += [number for thread in one.threads for number in thread.ids]
    return found


def group_ids(one: Member) -> list[int]:
    """Return the ids of a process's group, in the pid namespaces that see it."""
    return [one.group, *(filter(None, one.nested_ids.group) if one.nested_ids else ())]


def session_ids(one: Member) -> list[int]:
    """Return those of its session."""
    return [one.session, *(filter(None, one.nested_ids.session) if one.nested_ids else ())]


def _pid_namespaces(found: list[AnyNamespace]) -> dict[int, PidNamespace]:
    if not found:
        return {}
    from woodfrog.resources.nested import PidNamespace

    return {one.id: one for one in found if isinstance(one, PidNamespace)}
