"""Files of namespaces (namespaces(7)), as /proc/PID/ns has them."""

import os
import re
from typing import ClassVar, Self

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.resources.files.base import FileRecord, Making, OpenFile, Row, World

_TARGET = re.compile(rb"(cgroup|ipc|mnt|net|pid|time|user|uts):\[\d+\]")


class NamespaceFile(FileRecord, frozen=True, tag="namespace-file"):
    """One of the container's own namespaces; `name` as in /proc/PID/ns."""

    row: ClassVar[Row] = Row(
        called="the container's namespaces",
        kept=("as the new container's",),
        refused=("others",),
    )
    name: str

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        return bool(_TARGET.fullmatch(file.target))

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        name = file.target.partition(b":")[0].decode()
        if os.stat(f"/proc/{world.init}/ns/{name}").st_ino != file.stat.st_ino:
            raise UnsupportedResource(
                f"is a namespace, {file.target.decode()}, other than the container's own ones,"
                " which cannot be saved yet"
            )
        return cls(id=number, flags=file.flags, name=name)

    def restore(self, making: Making) -> int:
        if not _TARGET.fullmatch(b"%s:[1]" % self.name.encode()):
            raise ImageError("the image has a file of an unknown namespace")
        return making.open_namespace(self.name, self.flags)
