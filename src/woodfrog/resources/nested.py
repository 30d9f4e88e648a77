"""Nested namespaces: those that programs in the container made, beside or below its own."""

from collections.abc import Collection, Iterable, Mapping
from typing import ClassVar

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.image.record import Record
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.capability import CAP_SETFCAP, CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN, NAMES
from woodfrog.kernel.namespaces import FLAGS
from woodfrog.kernel.procfs.mountinfo import read_mounts
from woodfrog.remote.seccomp import Filters
from woodfrog.resources import file_entry, file_maker, posix_queues, sysctls, sysv_ipc
from woodfrog.resources.mount_tree import records as mount_records
from woodfrog.resources.mount_tree import unprivileged
from woodfrog.resources.mount_tree.admitting import refuse_wider_ids as refuse_wider_mapped
from woodfrog.resources.mount_tree.records import MountTree
from woodfrog.resources.network import records as network_records
from woodfrog.resources.network.records import Network
from woodfrog.resources.packet_filters import legacy, nftables, tracked
from woodfrog.resources.packet_filters.legacy import LegacyTable
from woodfrog.resources.packet_filters.nftables import Nftables
from woodfrog.resources.packet_filters.tracked import Tracked
from woodfrog.resources.posix_queues import PosixQueue
from woodfrog.resources.shared_memory import SharedMemory
from woodfrog.resources.sysv_ipc import MessageQueue, Semaphores
from woodfrog.resources.sysv_memory import Segment

_LONGEST_NAME = 64
_MOST = 10_000
# File systems that may be mounted in a user namespace (FS_USERNS_MOUNT).
_BY_ANYBODY = ("tmpfs", "proc", "sysfs", "mqueue", "devpts", "cgroup", "cgroup2", "overlay")
_DEEPEST = 33  # create_user_ns() of the kernel


class Namespace(Record, frozen=True):
    """A nested namespace. Others refer to it by its `id`, which none of another kind has either.

    `owner` is the user namespace that it belongs to; 0: the container's own.
    """

    id: int
    owner: int
    # As /proc/PID/ns calls its kind.
    name: ClassVar[str]


class UtsNamespace(Namespace, frozen=True, tag="uts-namespace"):
    """Host and domain name."""

    name = "uts"
    hostname: bytes
    domainname: bytes


class IpcNamespace(Namespace, frozen=True, tag="ipc-namespace"):
    """System V IPC, POSIX message queues, and the settings (sysctl) that were changed."""

    name = "ipc"
    settings: list[tuple[str, bytes]]
    queues: list[PosixQueue]
    objects: list[Semaphores | MessageQueue | Segment]


class NetworkNamespace(Namespace, frozen=True, tag="network-namespace"):
    """What is in it: changed settings (sysctl), what was set up, packet filters, connections."""

    name = "net"
    settings: list[tuple[str, bytes]]
    network: Network | None
    rules: Nftables | None
    tables: list[LegacyTable]
    tracked: Tracked | None = None

    @property
    def is_set_up(self) -> bool:
        """Whether there is anything in it."""
        found = self.settings or self.network or self.rules or self.tables or self.tracked
        return bool(found)


class CgroupNamespace(Namespace, frozen=True, tag="cgroup-namespace"):
    """Control groups from the container's own on, or from those in `roots`.

    These are paths below the container's own by the names of the hierarchies (see cgroups.py).
    """

    name = "cgroup"
    roots: list[tuple[str, bytes]] = []


class TimeNamespace(Namespace, frozen=True, tag="time-namespace"):
    """How far its clocks are ahead of the container's own, in nanoseconds."""

    name = "time"
    monotonic_ns: int
    boottime_ns: int


class PidNamespace(Namespace, frozen=True, tag="pid-namespace"):
    """Process ids; `parent` is the pid namespace above, 0: the container's own.

    `is_unborn`: it is for children that haven't been made yet. `has_ended`: its first process has,
    and nobody can be born there any more.
    """

    name = "pid"
    parent: int
    is_unborn: bool
    has_ended: bool = False


class UserNamespace(Namespace, frozen=True, tag="user-namespace"):
    """Users, groups and capabilities; `owner` is the user namespace above.

    `uid` has all rights in it. The maps are runs of ids: first inside, first in the container's
    user namespace, how many.
    """

    name = "user"
    uid: int
    user_map: list[tuple[int, int, int]]
    group_map: list[tuple[int, int, int]]
    setgroups: bool  # whether those in it may set their groups


class MountNamespace(Namespace, frozen=True, tag="mount-namespace"):
    """Mounts; what differs from those of `origin`, a mount namespace that it can be made of.

    `late` comes on top of that, when there are processes: procs that show nested pid namespaces,
    and what is mounted in them.
    """

    name = "mnt"
    origin: int
    tree: MountTree | None
    late: MountTree | None


AnyNamespace = (
    UtsNamespace
    | IpcNamespace
    | NetworkNamespace
    | CgroupNamespace
    | TimeNamespace
    | PidNamespace
    | MountNamespace
    | UserNamespace
)


class FilesWithin(Record, frozen=True, tag="files-within"):
    """Open files, by their ids, that are made again within these nested namespaces."""

    namespaces: dict[str, int]
    files: list[int]


def by_id(found: Iterable[AnyNamespace]) -> dict[int, AnyNamespace]:
    """Return the nested namespaces of an image by their ids."""
    namespaces: dict[int, AnyNamespace] = {}
    for one in found:
        if one.id in namespaces or not 0 < one.id <= _MOST:
            raise ImageError("the image has two namespaces of one id, or too many")
        namespaces[one.id] = one
    return namespaces


def check(
    found: Iterable[AnyNamespace],
    memory: Mapping[int, SharedMemory],
    page_bytes: int,
    *,
    deleted: Collection[int] = (),
) -> None:
    """Check all nested namespaces of an image.

    `memory` is its shared memory by ids, `deleted` are the ids of files without any name.
    """
    found = list(found)
    mounts: set[int] = {0}
    pids = {
        one.id
        for one in found
        if isinstance(one, PidNamespace) and not (one.is_unborn or one.has_ended)
    }
    kinds = {one.id: one.name for one in found}
    for one in found:
        match one:
            case UtsNamespace():
                if max(len(one.hostname), len(one.domainname)) > _LONGEST_NAME:
                    raise ImageError("a namespace of the image has an impossible host name")
            case TimeNamespace():
                if max(abs(one.monotonic_ns), abs(one.boottime_ns)) >= 1 << 62:
                    raise ImageError("a namespace of the image has impossible clocks")
            case IpcNamespace():
                sysctls.check_ipc(one.settings)
                posix_queues.check(one.queues)
                sysv_ipc.check(one.objects, memory)
            case CgroupNamespace():
                for _, path in one.roots:
                    file_entry.check_path(path, "the cgroups of the image")
            case UserNamespace():
                runs = (*one.user_map, *one.group_map)
                if len(runs) > _MOST or any(not _is_run(*run) for run in runs):
                    raise ImageError("a user namespace of the image has impossible maps")
            case MountNamespace():
                if one.origin not in mounts:
                    raise ImageError("a mount namespace of the image is made of none before it")
                mounts.add(one.id)
                if one.tree:
                    mount_records.check(
                        one.tree, page_bytes, nested=True, namespaces=kinds, deleted=deleted
                    )
                if one.late:
                    mount_records.check(
                        one.late,
                        page_bytes,
                        nested=True,
                        shown=pids,
                        namespaces=kinds,
                    )
            case NetworkNamespace():
                sysctls.check_network(one.settings)
                if one.network:
                    network_records.check(one.network)
                if one.rules:
                    nftables.check(one.rules)
                legacy.check(one.tables)
                if one.tracked:
                    tracked.check(one.tracked)
            case _:
                pass


def _is_run(inside: int, outside: int, size: int) -> bool:
    most = (1 << 32) - 1
    return min(inside, outside, size - 1) >= 0 and max(inside, outside) + size <= most


def check_owners(found: Mapping[int, AnyNamespace]) -> None:
    """Check that namespaces belong to user namespaces that the image has, one above the other."""
    for one in found.values():
        owner, level = one.owner, 0
        while owner:
            above = found.get(owner)
            level += 1
            if not isinstance(above, UserNamespace) or level > _DEEPEST:
                raise ImageError("a namespace of the image belongs to nobody")
            owner = above.owner


def refuse_wider(
    init: int, found: Iterable[AnyNamespace], *, bounding: int, seccomp: bytes | None
) -> None:
    """Refuse namespaces that the new container, of which `init` waits, could not make itself."""
    found = list(found)
    names = sorted({one.name for one in found})
    # Whoever has made a user namespace may make others in it.
    privileged = any(one.name != "user" and not one.owner for one in found)
    if privileged and not bounding >> CAP_SYS_ADMIN & 1:
        raise UnsupportedResource(
            f"the image has namespaces of its own ({', '.join(names)}), which the new container may"
            " not make (CAP_SYS_ADMIN)",
            hint="add CAP_SYS_ADMIN to process.capabilities of config.json",
        )
    for one in found:
        if isinstance(one, MountNamespace):
            _refuse_wider_mounts(init, one, bounding, seccomp)
        if isinstance(one, UserNamespace) and not one.owner:
            _refuse_wider_ids(one, bounding)
    filters = Filters([seccomp] if seccomp is not None else [], strict=False)
    for name in names:
        if not filters.allow(SYS.UNSHARE, [FLAGS[name], 0, 0, 0, 0, 0]):
            raise UnsupportedResource(
                f"the image has namespaces of its own ({name}), which the new container's seccomp"
                " profile forbids",
                hint="allow unshare(2) in linux.seccomp of config.json",
            )
    mounts = any(isinstance(one, MountNamespace) and (one.tree or one.late) for one in found)
    if mounts and not filters.allow(SYS.MOUNT, [None] * 6):
        raise UnsupportedResource(
            "the image has mounts in namespaces of their own, which the new container's seccomp"
            " profile forbids",
            hint="allow mount(2) in linux.seccomp of config.json",
        )


def _refuse_wider_ids(one: UserNamespace, bounding: int) -> None:
    """Refuse users and groups that could not have been mapped (user_namespaces(7)).

    In those of another one the kernel allows no more than that has.
    """
    wanted = []
    if one.user_map and [run[1:] for run in one.user_map] != [(one.uid, 1)]:
        wanted.append(CAP_SETUID)
    if one.group_map and (one.setgroups or [run[2] for run in one.group_map] != [1]):
        wanted.append(CAP_SETGID)
    if any(outside == 0 for _, outside, _ in one.user_map):
        wanted.append(CAP_SETFCAP)
    if lacked := [NAMES[number] for number in wanted if not bounding >> number & 1]:
        raise UnsupportedResource(
            "the image has a user namespace with users or groups that the new container may not"
            f" map ({', '.join(lacked)})",
            hint="add that to process.capabilities of config.json",
        )


def _refuse_wider_mounts(
    init: int, one: MountNamespace, bounding: int, seccomp: bytes | None
) -> None:
    """Refuse what those could not have mounted or made that a mount namespace belongs to."""
    rights = 0 if one.owner else bounding
    if one.owner and not bounding >> CAP_SYS_ADMIN & 1:
        mounts = read_mounts(init)
        if one.tree:
            unprivileged.refuse_wider(one.tree, mounts, known=not one.origin)
        if one.late:
            unprivileged.refuse_wider(one.late, mounts, known=False)
    for tree in (one.tree, one.late):
        if tree:
            refuse_wider_mapped(tree, rights, seccomp)
    for base in (base for tree in (one.tree, one.late) if tree for base in tree.bases):
        file_maker.refuse_wider(base.entries, None, rights, f"a {base.type} of the image")
        made = base.given is None and not base.namespace
        if one.owner and made and base.type not in _BY_ANYBODY:
            raise UnsupportedResource(
                f"the image has a {base.type} in a user namespace, where nobody may mount that"
            )
