"""All kinds of records, by the tags that images name them by.

The module of a kind is imported when the first record or file of the kind is met: a container has
few kinds, and to make the classes of all takes longer than many a restore.
"""

import os
import socket
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache, reduce
from importlib import import_module
from itertools import islice
from operator import or_
from typing import Any

from woodfrog.errors import ImageError
from woodfrog.kernel import fuse
from woodfrog.remote.descriptors import fetch
from woodfrog.resources.files.base import FileRecord
from woodfrog.resources.files.open_file import BY_PATH, OpenFile

_CLASSES = {
    "container": "container.ContainerRecord",
    "process": "process.Process",
    "zombie": "process.Zombie",
    "shared-memory": "shared_memory.SharedMemory",
    "deleted-file": "deleted_files.DeletedFile",
    "sysv-semaphores": "sysv_ipc.Semaphores",
    "sysv-message-queue": "sysv_ipc.MessageQueue",
    "sysv-shared-memory": "sysv_memory.Segment",
    "uts-namespace": "nested.UtsNamespace",
    "ipc-namespace": "nested.IpcNamespace",
    "network-namespace": "nested.NetworkNamespace",
    "cgroup-namespace": "nested.CgroupNamespace",
    "time-namespace": "nested.TimeNamespace",
    "pid-namespace": "nested.PidNamespace",
    "user-namespace": "nested.UserNamespace",
    "mount-namespace": "nested.MountNamespace",
    "files-within": "nested.FilesWithin",
    "posix-message-queue": "posix_queues.PosixQueue",
    "tmpfs": "tmpfs.Tmpfs",
    "layer": "layer.Layer",
    "mount-tree": "mount_tree.records.MountTree",
    "sysctls": "sysctls.Sysctls",
    "keyring": "keyrings.Keyring",
    "network": "network.records.Network",
    "nftables": "packet_filters.nftables.Nftables",
    "iptables": "packet_filters.legacy.LegacyTable",
    "conntrack": "packet_filters.tracked.Tracked",
    "cgroups": "cgroups.Hierarchy",
    "known-file": "known_files.KnownFile",
    "pre-dump": "pre_dumped.PreDumped",
}

_BY_TYPE = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "link",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket file",
}
_PATHS = tuple(_BY_TYPE.values())
_DEVICE = ("character device",)
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
_UNIX, _INTERNET = ("socket 1",), ("socket 2", "socket 10")  # AF_UNIX, AF_INET, AF_INET6
_NETLINK, _PACKET = ("socket 16",), ("socket 17",)  # AF_NETLINK, AF_PACKET
_MOST_LOOKED_AT = 500
_ANYTHING: tuple[str, ...] = ()

# Open files, in the order in which they are asked: the first kind that recognises a file collects
# it. Only those are asked that a file looks like (see `_look`); any descriptor may be stdio.
_FILES: dict[str, tuple[str, tuple[str, ...]]] = {
    "memfd": ("files.memfd.MemFd", ("memfd",)),
    "pty-master": ("files.pty.PtyMaster", _DEVICE),
    "pty": ("files.pty.Pty", _DEVICE),
    "controlling-terminal": ("files.pty.ControllingTerminal", _DEVICE),
    "hung-up-terminal": ("files.pty.HungUpTerminal", _DEVICE),
    "terminal": ("files.terminal.Terminal", _DEVICE),
    "nameless-path": ("files.nameless_path.NamelessPath", ("nameless path",)),
    "stdio": ("files.stdio.Stdio", _ANYTHING),
    "message-queue": ("files.message_queue.MessageQueueFile", ("file",)),
    "detached-file": ("files.detached.DetachedFile", _PATHS),
    "proc-file": ("files.proc_file.ProcFile", _PATHS),
    "deleted": ("files.deleted.OpenDeletedFile", _PATHS),
    "regular": ("files.regular.RegularFile", _PATHS),
    "pipe": ("files.pipe.PipeEnd", ("pipe",)),
    "fifo": ("files.fifo.Fifo", ("fifo",)),
    "eventfd": ("files.eventfd.EventFd", ("anon_inode:[eventfd]",)),
    "epoll": ("files.epoll.Epoll", ("anon_inode:[eventpoll]",)),
    "timerfd": ("files.timerfd.TimerFd", ("anon_inode:[timerfd]",)),
    "signalfd": ("files.signalfd.SignalFd", ("anon_inode:[signalfd]",)),
    "inotify": ("files.inotify.Inotify", ("anon_inode:inotify",)),
    "fanotify": ("files.fanotify.Fanotify", ("anon_inode:[fanotify]",)),
    "io-uring": ("files.io_uring.IoUring", ("anon_inode:[io_uring]",)),
    "polled-io-uring": ("files.io_uring.PolledIoUring", ("anon_inode:[io_uring]",)),
    "pidfd": ("files.pidfd.PidFd", ("anon_inode:[pidfd]",)),
    "late-namespace-file": ("files.namespace_file.LateNamespaceFile", _NAMESPACES),
    "namespace-file": ("files.namespace_file.NamespaceFile", _NAMESPACES),
    "unix-socket": ("files.unix_socket.UnixSocketFile", _UNIX),
    "tcp-socket": ("files.tcp_socket.TcpSocket", _INTERNET),
    "inet-datagram-socket": ("files.inet_datagram.InetDatagramSocket", _INTERNET),
    "netlink-socket": ("files.netlink_socket.NetlinkSocket", _NETLINK),
    "packet-socket": ("files.packet_socket.PacketSocket", _PACKET),
    "bpf-map": ("files.bpf_map.BpfMap", ("anon_inode:bpf-map",)),
    "tun-queue": ("files.tun_queue.TunQueue", _DEVICE),
}


@cache
def record_class(tag: str) -> Any:
    """Return the class of the records with a tag; raises ImageError."""
    place = _CLASSES.get(tag) or _FILES.get(tag, ("",))[0]
    if not place:
        raise ImageError(f"the image has records of an unknown kind, {tag!r}")
    module, _, name = place.rpartition(".")
    return getattr(import_module(f"woodfrog.resources.{module}"), name)


def all_classes() -> Any:
    """Return the classes of all records, in one union."""
    return union([*_CLASSES, *_FILES])


def union(tags: Iterable[str]) -> Any:
    """Return the classes of records with these tags, in one union; raises ImageError."""
    return reduce(or_, map(record_class, dict.fromkeys(tags)))


def has_all() -> bool:
    """Tell whether all classes are there, as `all_classes` makes them."""
    return record_class.cache_info().currsize >= len(_CLASSES) + len(_FILES)


def file_kinds() -> list[type[FileRecord]]:
    """Return all kinds of open files, in the order in which they are asked."""
    return [record_class(tag) for tag in _FILES]


def likely_kinds(file: OpenFile) -> Iterator[type[FileRecord]]:
    """Go through the kinds that a file may be of, in the order in which they are asked."""
    look = _look(file.target, lambda: file.stat.st_mode, lambda: file.socket_family)
    return map(record_class, _tags(look))


def prepare(pids: Iterable[int]) -> set[str]:
    """Import the kinds of what running processes have open, so that they are held the shorter.

    What is met only then is imported then. Returns what the files look like.
    """
    looks = set()
    for pid, name in islice(_descriptors(pids), _MOST_LOOKED_AT):
        link = f"/proc/{pid}/fd/{name}"
        with suppress(OSError):  # it may be closed by now
            looks.add(
                _look(
                    os.readlink(os.fsencode(link)),
                    lambda link=link: fuse.look(link).mode,  # type: ignore[misc]
                    lambda pid=pid, name=name: _family(pid, int(name)),  # type: ignore[misc]
                )
            )
    for look in looks:
        for tag in _tags(look):
            record_class(tag)
    return looks


def _descriptors(pids: Iterable[int]) -> Iterator[tuple[int, str]]:
    for pid in pids:
        with suppress(OSError):
            yield from ((pid, name) for name in os.listdir(f"/proc/{pid}/fd"))


def _family(pid: int, number: int) -> int:
    with socket.socket(fileno=fetch(pid, number)) as one:
        return int(one.family)


@cache
def _tags(look: str) -> list[str]:
    return [tag for tag, (_, looks) in _FILES.items() if look in looks or looks is _ANYTHING]


def _look(target: bytes, mode: Callable[[], int], family: Callable[[], int]) -> str:
    """Tell what a file looks like: by its magic link, and the type of its inode or socket."""
    if target.startswith(b"/memfd:"):
        return "memfd"
    if target.startswith(b"/"):
        return _BY_TYPE[stat.S_IFMT(mode())]
    if target.startswith(BY_PATH):
        return "nameless path"
    kind = target.partition(b":")[0]
    if kind == b"socket":
        return f"socket {family()}"
    return os.fsdecode(target if kind == b"anon_inode" else kind)
