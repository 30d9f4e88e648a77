"""Files of namespaces (namespaces(7)), as /proc/PID/ns has them."""

import os
import re
from typing import ClassVar, Self

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.resources.files.base import FileRecord, Making, OpenFile, Row, World

_TARGET = re.compile(rb"(cgroup|ipc|mnt|net|pid|time|user|uts):\[\d+\]")


class NamespaceFile(FileRecord, frozen=True, tag="namespace-file"):
    """A namespace; `name` as in /proc/PID/ns, `namespace` its id, 0: the container's own."""

    row: ClassVar[Row] = Row(
        called="namespaces",
        kept=("the container's as the new container's", "those that programs made"),
        refused=("of outside", "pid and time namespaces that programs made"),
    )
    name: str
    namespace: int = 0

    @classmethod
    def recognises(cls, file: OpenFile, world: World) -> bool:
        return bool(_TARGET.fullmatch(file.target))

    @classmethod
    def collect(cls, number: int, file: OpenFile, world: World) -> Self:
        name = file.target.partition(b":")[0].decode()
        namespace = 0
        if os.stat(f"/proc/{world.init}/ns/{name}").st_ino != file.stat.st_ino:
            namespace = world.namespaces.links(name).get(file.target.decode(), 0)
            if not namespace or name in ("pid", "time"):
                raise UnsupportedResource(
                    f"is a namespace, {file.target.decode()}, of outside, or a {name} namespace"
                    " that a program made, which cannot be saved yet"
                )
        return cls(id=number, flags=file.flags, name=name, namespace=namespace)

    def restore(self, making: Making) -> int:
        if not _TARGET.fullmatch(b"%s:[1]" % self.name.encode()):
            raise ImageError("the image has a file of an unknown namespace")
        return making.open_namespace(self.name, self.namespace, self.flags)
