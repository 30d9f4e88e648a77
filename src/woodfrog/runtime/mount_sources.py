"""Where bind mounts come from: opened by the init, or for it by the outside half.

In a user namespace the init is nobody on the host: paths can be closed to it, and only the host's
root may map the ids of a mount. The outside half does both, in the init's own mount namespace,
since a source may be what an earlier mount shows.
"""

from __future__ import annotations

import errno
import os

from woodfrog.errors import SpecError, WoodfrogError
from woodfrog.kernel import mounts as m
from woodfrog.kernel import namespaces as ns
from woodfrog.kernel.caller import HERE
from woodfrog.runtime import id_maps
from woodfrog.runtime.mount_options import Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from woodfrog.kernel.procfs.id_maps import IdMaps
    from woodfrog.runtime.channel import Channel

_ROOT = -1  # the position of the container's root directory


def maps_ids(config: dict[str, Any]) -> bool:
    """Tell whether a mount of the config shows other ids than its source."""
    sources = Sources(config, "", "")
    return any(map(sources.is_mapped, range(len(config.get("mounts") or []))))


class Sources:
    """The sources of a config's mounts, opened as they are needed."""

    def __init__(
        self,
        config: dict[str, Any],
        bundle: str,
        rootfs: str,
        ask: Callable[[int], int] | None = None,
    ) -> None:
        self._mounts = config.get("mounts") or []
        self.label: str = (config.get("linux") or {}).get("mountLabel") or ""
        self._bundle = bundle
        self.rootfs = rootfs
        self._ask = ask

    def mount(self, position: int) -> dict[str, Any]:
        """Return the config's mount."""
        found: dict[str, Any] = self._mounts[position]
        return found

    def path(self, position: int) -> str:
        """Return the source's path; relative ones are in the bundle."""
        if position == _ROOT:
            return self.rootfs
        return os.path.join(self._bundle, self._mounts[position].get("source") or "")

    def is_mapped(self, position: int) -> bool:
        """Tell whether the mount shows other user and group ids than its source."""
        mount = self._mounts[position]
        if mount.get("uidMappings") or mount.get("gidMappings"):
            return True
        return Options(mount.get("options") or []).map_ids

    def open(self, position: int = _ROOT) -> int:
        """Return a descriptor (O_PATH) of a source, or of the container's root directory."""
        try:
            return os.open(self.path(position), os.O_PATH | os.O_CLOEXEC)
        except PermissionError:
            if not self._ask:
                raise
            return self._ask(position)
        except FileNotFoundError:
            if position == _ROOT:
                raise
            destination = self._mounts[position]["destination"]
            raise SpecError(
                f"the source of the mount at {destination} does not exist: {self.path(position)}"
            ) from None

    def tree(self, position: int) -> int:
        """Return a copy of a source's mount with mapped ids, attached nowhere yet."""
        assert self._ask
        return self._ask(position)


class Host:
    """What opens sources for an init, on the outside; its requests come by the channel."""

    def __init__(self, sources: Sources, *, in_user_namespace: bool) -> None:
        import socket

        self._sources = sources
        self._in_user_namespace = in_user_namespace
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._namespaces: dict[IdMaps, int] = {}

    @property
    def descriptor(self) -> int:
        """What the init needs."""
        return self._theirs.fileno()

    def close(self) -> None:
        """Close all that is open for it."""
        self._ours.close()
        self._theirs.close()
        for descriptor in self._namespaces.values():
            os.close(descriptor)

    def asker(self, channel: Channel) -> Callable[[int], int]:
        """Return what the init asks for a source by its position (inside)."""
        import socket

        def ask(position: int) -> int:
            channel.send(step="source", position=position)
            said, descriptors, _, _ = socket.recv_fds(self._theirs, 4096, 1)
            if not descriptors:
                number = abs(int(said))
                raise OSError(number, os.strerror(number))
            os.set_inheritable(descriptors[0], False)
            return descriptors[0]

        return ask

    def answer(self, pid: int, position: int) -> None:
        """Open a source in the mount namespace of the init `pid`, and send it there (outside)."""
        ids = -1
        if position != _ROOT and self._sources.is_mapped(position):
            ids = self._ids(pid, position)
        namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        child = os.fork()
        if child == 0:
            number = errno.EIO
            try:
                ns.setns(HERE, namespace, ns.CLONE_NEWNS)
                self._open_and_send(position, ids)
                number = 0
            except OSError as error:
                number = error.errno or errno.EIO
            finally:
                os._exit(number)
        os.close(namespace)
        if number := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            self._ours.send(str(number).encode())

    def _open_and_send(self, position: int, ids: int) -> None:
        import socket

        path = self._sources.path(position)
        if ids < 0:
            source = os.open(path, os.O_PATH | os.O_CLOEXEC)
        else:
            source = self._map(position, path, ids)
        socket.send_fds(self._ours, [b"here"], [source])

    def _map(self, position: int, path: str, ids: int) -> int:
        options = Options(self._sources.mount(position).get("options") or [])
        tree = m.clone_tree(HERE, path, recursive=bool(options.flags & m.MS_REC))
        m.mount_setattr(
            HERE,
            tree,
            set_=m.MOUNT_ATTR_IDMAP,
            clear=0,
            recursive=options.map_ids_below,
            ids=ids,
        )
        return tree

    def _ids(self, pid: int, position: int) -> int:
        """Return a user namespace that has the maps of a mount: the container's own if none."""
        maps = id_maps.of_config(self._sources.mount(position), f"mounts[{position}]")
        if maps is None:
            if not self._in_user_namespace:
                raise WoodfrogError(
                    f"mounts[{position}]: id-mapped mounts must have both uid and gid mappings"
                    " specified",
                    hint="without a user namespace there are none to take over",
                )
            return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        if maps not in self._namespaces:
            from woodfrog.runtime.user_namespace import make

            self._namespaces[maps] = make(maps)
        return self._namespaces[maps]
