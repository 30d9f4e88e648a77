"""Which namespaces the tasks of a held container are in, where those are not its own."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from woodfrog.engine.obstacles import Obstacles
from woodfrog.errors import UnsupportedResource
from woodfrog.kernel import namespaces as ns
from woodfrog.kernel import user_namespace
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.netlink.messages import socket_in
from woodfrog.kernel.procfs.id_maps import IdMap
from woodfrog.kernel.procfs.mountinfo import read_mounts
from woodfrog.remote.held import Held, HeldTask
from woodfrog.resources import cgroup_roots, ids, namespaces, sysctls
from woodfrog.resources.files.open_file import OpenFile
from woodfrog.resources.membership import Membership
from woodfrog.resources.mount_tree.records import BOUND

if TYPE_CHECKING:
    from woodfrog.resources import nested
    from woodfrog.resources.nested import AnyNamespace

_FUTURE = "_for_children"
_OF_PROCESSES = ("cgroup", "ipc", "mnt", "net", "time", "user", "uts", "pid")
# What threads of one process may have each for itself. Threads can't be made while it differs
# where children would be.
_OF_THREADS = ("cgroup", "ipc", "mnt", "net", "uts")
# What must belong to the container's own user namespace.
_UNOWNED = ("time",)
# All kinds; each may also be open only, without being in use.
_KINDS = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
_SIOCGSKNS = 0x894C
_SO_NETNS_COOKIE = 71


def any_in(pids: Iterable[int]) -> bool:
    """Tell whether some of these running processes are in other namespaces than the first one."""
    own: list[str] = []
    for pid in pids:
        try:
            found = [_link(f"/proc/{pid}", name) for name in _OF_PROCESSES]
        except OSError:
            continue  # it has ended
        own = own or found
        if found != own:
            return True
    return False


class Found:
    """A nested namespace, by a descriptor of ours; `link` is what /proc/PID/ns reads for it."""

    def __init__(self, number: int, link: str, descriptor: int, owner: int = 0) -> None:
        self.number = number
        self.owner = owner
        self.link = link
        self.name = link.partition(":")[0]
        self.descriptor = descriptor


class Namespaces:
    """All nested namespaces of a held container, and who is in which."""

    def __init__(self, init: int, tree: Held, obstacles: Obstacles) -> None:
        self._own = {name: _link(f"/proc/{init}", name) for name in _OF_PROCESSES}
        self._inside = {process.group for process in tree.processes}
        self._inside |= {zombie.pid for zombie in tree.zombies}
        self._found: dict[str, Found] = {}
        self._outside: dict[str, set[str]] = {}
        self._of: dict[int, dict[str, int]] = {}
        # What /proc/PID/ns reads of the process that is being looked at.
        self._links: dict[str, str] = {}
        with socket_in(init, socket.AF_UNIX, socket.SOCK_DGRAM, 0) as one:
            self._cookie = _cookie(one.fileno())
        self._known_cookies = {self._cookie}
        self.records: list[AnyNamespace] = []
        try:
            for process in tree.processes:
                with obstacles.at(process.name):
                    for task in process.tasks:
                        self._look_at(task)
            for zombie in tree.zombies:
                link = _link(f"/proc/{zombie.pid}", "pid")
                with obstacles.at(f"process {zombie.namespace_pid}, which has ended"):
                    if link not in ("", self._own["pid"]):
                        number = self._number(link, f"/proc/{zombie.pid}/ns/pid")
                        self._of[zombie.pid] = {"pid": number}
        except BaseException:
            self.close()
            raise

    def _look_at(self, task: HeldTask) -> None:
        is_leader = task is task.process.leader
        of = self._of[task.pid] = dict(self.of(task.process.leader.pid)) if not is_leader else {}
        if is_leader:
            self._links = {}
        for name in _OF_PROCESSES if is_leader else _OF_THREADS:
            link = self._links[name] = _link(task.path, name)
            if link != self._own[name]:
                of[name] = self._number(link, f"{task.path}/ns/{name}")
            else:
                of.pop(name, None)
        for name in ("pid", "time"):
            of.pop(name + _FUTURE, None)
            link = _link(task.path, name + _FUTURE)
            if name == "pid" and not link:
                of[name + _FUTURE] = self._unborn(task)
            elif link != self._links[name]:
                of[name + _FUTURE] = self._number(link, f"{task.path}/ns/{name}{_FUTURE}")

    def look_at(self, files: list[OpenFile]) -> None:
        """Learn of namespaces in which nobody is, but that are open, or that sockets are in."""
        for file in files:
            link = os.fsdecode(file.target)
            name = link.partition(":")[0]
            if name in _KINDS and link.startswith(f"{name}:[") and link != self._own[name]:
                self._number(link, file.link)
            elif name == "socket" and _cookie(file.descriptor) not in self._known_cookies:
                self._look_at_network(file.descriptor)

    def look_at_mounts(self, view: int, given: Collection[bytes]) -> None:
        """Learn of namespaces that are bound to files where `view` is, but for those `given`."""
        for mount in read_mounts(view):
            link = os.fsdecode(mount.root)
            name, _, number = link.partition(":")
            if mount.type == "nsfs" and name in BOUND and mount.root not in given:
                path = f"/proc/{view}/root{os.fsdecode(mount.point)}"
                is_seen = number == f"[{os.stat(path).st_ino}]"  # nothing covers it
                if is_seen and link != self._own[name]:
                    self._number(link, path)

    @property
    def bound(self) -> dict[str, int]:
        """Return the ids of namespaces that may be bound to files, 0: the container's own."""
        found = {self._own[name]: 0 for name in BOUND}
        return found | {link: one.number for link, one in self._found.items() if one.name in BOUND}

    def _look_at_network(self, descriptor: int) -> None:
        """Learn of the network namespace of a socket, unless it came from outside with it."""
        namespace = fcntl.ioctl(descriptor, _SIOCGSKNS)
        self._known_cookies.add(_cookie(descriptor))
        try:
            path = f"/proc/self/fd/{namespace}"
            link = os.readlink(path)
            if link not in self._links_outside("net"):
                self._number(link, path)
        finally:
            os.close(namespace)

    def _unborn(self, task: HeldTask) -> int:
        """Return the id of a pid namespace that a task has made, in which nobody has been yet."""
        from woodfrog.resources import nested

        number = len(self._found) + 1
        of = self.of(task.process.leader.pid)
        parent, owner = of.get("pid", 0), of.get("user", 0)
        self._found[f"pid: of the children of {task.pid}"] = Found(number, "pid:", -1)
        self.records.append(
            nested.PidNamespace(id=number, owner=owner, parent=parent, is_unborn=True)
        )
        return number

    def _number(self, link: str, path: str) -> int:
        """Return the id of a nested namespace, which `path` leads to."""
        if link not in self._found:
            name = link.partition(":")[0]
            if name not in _KINDS:
                raise UnsupportedResource(
                    f"is in another {name or 'pid'} namespace than the container's first process,"
                    " which cannot be saved yet"
                )
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                owner = self._owner(descriptor)
                if owner and name in _UNOWNED:
                    raise UnsupportedResource(
                        f"is in a {name} namespace of a user namespace that a program made, which"
                        " cannot be saved yet"
                    )
                self._found[link] = Found(len(self._found) + 1, link, descriptor, owner)
            except BaseException:
                os.close(descriptor)
                raise
            self._refuse_outside(self._found[link])
        return self._found[link].number

    def _owner(self, descriptor: int) -> int:
        """Return the id of the user namespace that a namespace belongs to, or is nested in."""
        try:
            owner = ns.owner_of(HERE, descriptor)
        except PermissionError:
            raise UnsupportedResource("is in a namespace that was made outside") from None
        try:
            path = f"/proc/self/fd/{owner}"
            link = os.readlink(path)
            if link == self._own["user"]:
                return 0
            if not ns.is_nested(HERE, path, self._own["user"]):
                raise UnsupportedResource("is in a namespace that was made outside")
            return self._number(link, path)
        finally:
            os.close(owner)

    def _refuse_outside(self, found: Found) -> None:
        """Refuse a namespace that somebody outside has, too."""
        if found.link in self._links_outside(found.name):
            raise UnsupportedResource(
                f"is in a {found.name} namespace that others outside the container are in, too",
                hint="end what has joined it from outside, or take its mount away",
            )

    def _links_outside(self, name: str) -> set[str]:
        """Return the namespaces of a kind that others are in, or that are mounted somewhere."""
        if name not in self._outside:
            self._outside[name] = _links_outside(name, self._inside)
        return self._outside[name]

    def of(self, pid: int) -> Membership:
        """Return the nested namespaces that a task is in."""
        return self._of.get(pid, {})  # nothing, if it was refused

    def of_socket(self, descriptor: int) -> int:
        """Return the id of the network namespace that a socket, by a descriptor of ours, is in.

        0: the container's own, or one of outside, as a socket has that was accepted from there.
        """
        if _cookie(descriptor) == self._cookie:
            return 0
        namespace = fcntl.ioctl(descriptor, _SIOCGSKNS)
        try:
            found = self._found.get(os.readlink(f"/proc/self/fd/{namespace}"))
            return found.number if found else 0
        finally:
            os.close(namespace)

    def descriptors(self, name: str) -> Iterator[tuple[int, int]]:
        """Yield the id of each nested namespace of a kind, and a descriptor of ours for it."""
        for found in self._found.values():
            if found.name == name:
                yield found.number, found.descriptor

    def in_others(self, name: str) -> frozenset[int]:
        """Return the tasks that are not in the container's own namespace of a kind."""
        return frozenset(pid for pid, of in self._of.items() if name in of)

    def owner(self, number: int) -> int:
        """Return the id of the user namespace that a nested namespace belongs to."""
        return next((one.owner for one in self._found.values() if one.number == number), 0)

    def links(self, name: str) -> dict[str, int]:
        """Return the ids of the nested namespaces of a kind by what /proc/PID/ns reads for them."""
        return {link: one.number for link, one in self._found.items() if one.name == name}

    def collect(self, init: int, usual: sysctls.Usual, places: Mapping[str, str]) -> None:
        """Read what belongs to the namespaces themselves.

        `places` are the directories of the container's cgroups by the names of their hierarchies.
        """
        for found in self._found.values():
            if found.name == "mnt":
                continue  # see places
            if found.name == "pid" and found.descriptor >= 0:
                self.records.append(self._pid_namespace(found))
            elif found.descriptor >= 0:
                self.records.append(_record(found, init, usual, self._of, places))
        self.records.sort(key=lambda record: record.id)

    def _pid_namespace(self, found: Found) -> nested.PidNamespace:
        from woodfrog.resources import nested

        has_ended = not any(of.get("pid") == found.number for of in self._of.values())
        if has_ended and found.owner:
            raise UnsupportedResource(
                "has a pid namespace that has ended, of a user namespace that a program made, which"
                " cannot be saved yet"
            )
        above = ns.parent_of(HERE, found.descriptor)
        try:
            parent = self._found.get(os.readlink(f"/proc/self/fd/{above}"))
        finally:
            os.close(above)
        number = parent.number if parent else 0
        return nested.PidNamespace(
            id=found.number,
            owner=found.owner,
            parent=number,
            is_unborn=False,
            has_ended=has_ended,
        )

    def close(self) -> None:
        """Close what was opened."""
        for found in self._found.values():
            if found.descriptor >= 0:
                os.close(found.descriptor)
        self._found.clear()


def _record(
    found: Found,
    init: int,
    usual: sysctls.Usual,
    members: Collection[int],
    places: Mapping[str, str],
) -> AnyNamespace:
    from woodfrog.resources import nested

    match found.name:
        case "uts":
            with namespaces.within(found.descriptor, "uts"):
                hostname, domainname = namespaces.names()
            return nested.UtsNamespace(
                id=found.number, owner=found.owner, hostname=hostname, domainname=domainname
            )
        case "ipc":
            with namespaces.within(found.descriptor, "ipc"):
                settings = sysctls.changed_here("ipc", usual)
            # What is in it is known only when all that shows it has been looked at.
            return nested.IpcNamespace(
                id=found.number, owner=found.owner, settings=settings, queues=[], objects=[]
            )
        case "net":
            # What is in it is known only together with all others.
            return nested.NetworkNamespace(
                id=found.number,
                owner=found.owner,
                settings=[],
                network=None,
                rules=None,
                tables=[],
            )
        case "user":
            return _user_namespace(found, init)
        case "cgroup":
            roots = cgroup_roots.collect(found.descriptor, init, members, places)
            return nested.CgroupNamespace(id=found.number, owner=found.owner, roots=roots)
        case _:
            ours, theirs = namespaces.own_offsets(init), namespaces.offsets_in(found.descriptor)
            return nested.TimeNamespace(
                id=found.number,
                owner=found.owner,
                monotonic_ns=theirs[0] - ours[0],
                boottime_ns=theirs[1] - ours[1],
            )


def _user_namespace(found: Found, init: int) -> nested.UserNamespace:
    from woodfrog.resources import nested

    uid_map, gid_map, setgroups = user_namespace.read_all(found.descriptor)
    maps = [IdMap.of_text(uid_map), IdMap.of_text(gid_map)]
    if own := ids.maps_of(init):
        maps = [maps[0].seen_from(own.users), maps[1].seen_from(own.groups)]
    return nested.UserNamespace(
        id=found.number,
        owner=found.owner,
        uid=ns.maker_of(HERE, found.descriptor),
        user_map=maps[0].runs,
        group_map=maps[1].runs,
        setgroups=setgroups.strip() == "allow",
    )


def _cookie(descriptor: int) -> int:
    """Return the number of a socket's network namespace, which no other ever has.

    The call itself: getsockopt() of Python's refuses such options for AF_VSOCK.
    """
    cookie, length = bytearray(8), (8).to_bytes(4, "little")
    HERE.call(SYS.GETSOCKOPT, descriptor, socket.SOL_SOCKET, _SO_NETNS_COOKIE, cookie, length)
    return int.from_bytes(cookie, "little")


def _link(path: str, name: str) -> str:
    try:
        return os.readlink(f"{path}/ns/{name}")
    except FileNotFoundError:
        return ""  # not in this kernel; or a pid namespace in which nobody has been yet


def _links_outside(name: str, inside: set[int]) -> set[str]:
    """Return the namespaces of a kind that others are in, or that are mounted somewhere here."""
    found = {os.fsdecode(mount.root) for mount in read_mounts("self") if mount.type == "nsfs"}
    for pid in os.listdir("/proc"):
        if pid.isdecimal() and int(pid) not in inside:
            try:
                found.add(os.readlink(f"/proc/{pid}/ns/{name}"))
            except OSError:
                continue  # gone, or a zombie
    return found
