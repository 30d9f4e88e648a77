"""Files of namespaces (namespaces(7)), as /proc/PID/ns has them."""

import os
import re
from typing import ClassVar, Self

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.resources.files.base import FileRecord, Row
from woodfrog.resources.files.making import Late, Making
from woodfrog.resources.files.open_file import OpenFile
from woodfrog.resources.files.world import World

_LATE = ("pid", "time")
_TARGET = rb"(cgroup|ipc|mnt|net|pid|time|user|uts):\[\d+\]"


class NamespaceFile(FileRecord, frozen=True, tag="namespace-file"):
    """A namespace; `name` as in /proc/PID/ns, `namespace` its id, 0: the container's own."""

    row: ClassVar[Row] = Row(
        called="namespaces",
        kept=("the container's as the new container's", "those that programs made"),
        refused=("of outside",),
    )
    name: str
    namespace: int = 0

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        return bool(re.fullmatch(_TARGET, file.target))

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        name = _name(file)
        namespace = 0
        if not _is_own(file, world):
            namespace = world.namespaces.links(name).get(file.target.decode(), 0)
            if not namespace:
                raise UnsupportedResource(
                    f"is a namespace, {file.target.decode()}, of outside, which cannot be saved"
                )
        return cls(id=number, flags=file.flags, name=name, namespace=namespace)

    def restore(self, making: Making) -> int:
        if not re.fullmatch(_TARGET, b"%s:[1]" % self.name.encode()):
            raise ImageError("the image has a file of an unknown namespace")
        return making.open_namespace(self.name, self.namespace, self.flags)


class LateNamespaceFile(FileRecord, frozen=True, tag="late-namespace-file"):
    """A nested namespace that comes with processes: one of pids or time."""

    row: ClassVar[Row] = NamespaceFile.row
    late: ClassVar[bool] = True
    name: str
    namespace: int

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        return (
            bool(re.fullmatch(_TARGET, file.target))
            and _name(file) in _LATE
            and not _is_own(file, world)
        )

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        found = NamespaceFile.collect(number, file, world)
        return cls(id=number, flags=file.flags, name=found.name, namespace=found.namespace)

    def restore_late(self, late: Late) -> int:
        if self.name not in _LATE:
            raise ImageError("the image has a file of a namespace that is not made late")
        return late.open_namespace(self.name, self.namespace, self.flags)


def _name(file: OpenFile) -> str:
    return file.target.partition(b":")[0].decode()


def _is_own(file: OpenFile, world: World) -> bool:
    return os.stat(f"/proc/{world.init}/ns/{_name(file)}").st_ino == file.stat.st_ino
