"""An open file of a held process, as it is found."""

from __future__ import annotations

import os
import socket
from functools import cached_property
from typing import Any

from woodfrog.kernel.procfs.fdinfo import read_fdinfo
from woodfrog.remote.descriptors import fetch

# Flags that open(2) and fcntl(F_SETFL) take, and that fdinfo shows.
ACCESS_MODE = 0o3
O_CLOEXEC = 0o2000000
O_PATH = 0o10000000
O_TMPFILE = 0o20200000
_LARGEFILE = 0o100000
_SO_DOMAIN = 39
CREATION_FLAGS = 0o100 | 0o200 | 0o400 | 0o1000 | O_CLOEXEC  # CREAT EXCL NOCTTY TRUNC

# What magic links of some kinds read.
EPOLL = b"anon_inode:[eventpoll]"
IO_URING = b"anon_inode:[io_uring]"
BPF_MAP = b"anon_inode:bpf-map"
# What has no path, and how the target of such a one begins that was opened by O_PATH.
_NAMELESS = (b"pipe:", b"socket:", b"anon_inode:")
BY_PATH = b"O_PATH of "
# Device numbers of pseudoterminals' slaves.
PTS_MAJORS = range(136, 144)


class OpenFile:
    """An open file of a held process, found at one of its descriptors."""

    def __init__(self, pid: int, fd: int, target: bytes) -> None:
        self.pid = pid
        self.fd = fd
        self.target = target
        self.fdinfo, self.lines = read_fdinfo(pid, fd)
        flags = int(self.fdinfo["flags"], 8)
        self.cloexec = bool(flags & O_CLOEXEC)
        self.flags = flags & ~O_CLOEXEC & ~_LARGEFILE
        if flags & O_PATH and target.startswith(_NAMELESS):
            # It only names what others are, and nothing else can be asked of it.
            self.target = BY_PATH + target
        self.position = int(self.fdinfo["pos"])
        self.mnt_id = int(self.fdinfo.get("mnt_id", "0"))
        self.inode = int(self.fdinfo.get("ino", "0"))
        # Every descriptor that names this file: (pid as we see it, number).
        self.holders: list[tuple[int, int]] = [(pid, fd)]
        # Its id in the image; files in the queue of a unix socket, by the number of the message.
        self.number = 0
        # Its kind is made when processes stand.
        self.is_late = False
        self.in_flight: dict[int, list[OpenFile]] = {}
        # All messages in that queue: empty ones show only at the first look.
        self.messages: list[Any] = []

    @property
    def has_write_lease(self) -> bool:
        """Tell whether others who open the file would break a lease (fcntl(2), F_SETLEASE)."""
        leases = (line for line in self.lines if " LEASE " in line)
        return any(" BREAKING " in line or " WRITE " in line for line in leases)

    @property
    def link(self) -> str:
        """The magic link that leads to the file."""
        return f"/proc/{self.pid}/fd/{self.fd}"

    @cached_property
    def descriptor(self) -> int:
        """Our own descriptor for the file."""
        return fetch(self.pid, self.fd)

    @cached_property
    def stat(self) -> os.stat_result:
        """The file's inode."""
        return os.stat(self.link)

    @cached_property
    def socket_family(self) -> int:
        """The address family of a socket."""
        # Left to itself, Python asks for the name, which not every kind has.
        with socket.socket(socket.AF_UNIX, fileno=os.dup(self.descriptor)) as one:
            return int(one.getsockopt(socket.SOL_SOCKET, _SO_DOMAIN))

    def renew(self, target: bytes, descriptor: int) -> None:
        """Be another file, that has taken this one's place at all of its descriptors."""
        self.close()
        self.target = target
        self.__dict__["descriptor"] = descriptor
        self.__dict__.pop("stat", None)

    def close(self) -> None:
        """Close our own descriptor, if there is one."""
        if "descriptor" in self.__dict__:
            os.close(self.__dict__.pop("descriptor"))
