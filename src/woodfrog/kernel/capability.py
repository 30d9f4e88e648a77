"""Capabilities: their names, and the sets of the calling thread."""

from __future__ import annotations

import struct

from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.process import prctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from woodfrog.kernel.caller import Caller

# In the order of their numbers (include/uapi/linux/capability.h).
NAMES = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
]
CAP_AUDIT_CONTROL = NAMES.index("CAP_AUDIT_CONTROL")
CAP_BPF = NAMES.index("CAP_BPF")
CAP_DAC_OVERRIDE = NAMES.index("CAP_DAC_OVERRIDE")
CAP_IPC_LOCK = NAMES.index("CAP_IPC_LOCK")
CAP_MKNOD = NAMES.index("CAP_MKNOD")
CAP_NET_ADMIN = NAMES.index("CAP_NET_ADMIN")
CAP_NET_RAW = NAMES.index("CAP_NET_RAW")
CAP_SETFCAP = NAMES.index("CAP_SETFCAP")
CAP_SETGID = NAMES.index("CAP_SETGID")
CAP_SETPCAP = NAMES.index("CAP_SETPCAP")
CAP_SETUID = NAMES.index("CAP_SETUID")
CAP_SYS_ADMIN = NAMES.index("CAP_SYS_ADMIN")
CAP_SYS_CHROOT = NAMES.index("CAP_SYS_CHROOT")
CAP_SYS_NICE = NAMES.index("CAP_SYS_NICE")
CAP_SYS_PTRACE = NAMES.index("CAP_SYS_PTRACE")
CAP_SYS_RESOURCE = NAMES.index("CAP_SYS_RESOURCE")
CAP_WAKE_ALARM = NAMES.index("CAP_WAKE_ALARM")

_VERSION_3 = 0x20080522
_PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4


def capget(on: Caller) -> tuple[int, int, int]:
    """Return the effective, permitted and inheritable masks."""
    header = struct.pack("Ii", _VERSION_3, 0)
    data = bytearray(24)
    on.call(SYS.CAPGET, bytearray(header), data)
    low_e, low_p, low_i, high_e, high_p, high_i = struct.unpack("6I", data)
    return low_e | high_e << 32, low_p | high_p << 32, low_i | high_i << 32


def capset(on: Caller, *, effective: int, permitted: int, inheritable: int) -> None:
    """Set the effective, permitted and inheritable masks."""
    masks = (effective, permitted, inheritable)
    data = struct.pack("6I", *(m & 0xFFFFFFFF for m in masks), *(m >> 32 for m in masks))
    on.call(SYS.CAPSET, bytearray(struct.pack("Ii", _VERSION_3, 0)), data)


class LimitedTo:
    """Have the calling thread use no other capabilities for as long: what it opens notes them.

    A class, because contextlib takes 3 ms of each `create`.
    """

    def __init__(self, mask: int) -> None:
        self._mask = mask

    def __enter__(self) -> None:
        self._before, permitted, inheritable = capget(HERE)
        effective = self._before & self._mask
        capset(HERE, effective=effective, permitted=permitted, inheritable=inheritable)

    def __exit__(self, *error: object) -> None:
        _, permitted, inheritable = capget(HERE)
        capset(HERE, effective=self._before, permitted=permitted, inheritable=inheritable)


def bounding_set(on: Caller) -> int:
    """Return the bounding mask; bits that this kernel doesn't know are zero."""
    mask = 0
    for number in range(64):
        try:
            mask |= prctl(on, _PR_CAPBSET_READ, number) << number
        except OSError:
            break
    return mask


def limit_bounding_set(on: Caller, mask: int) -> None:
    """Drop every capability that is not in `mask` from the bounding set."""
    for number in range(64):
        if not mask >> number & 1:
            try:
                prctl(on, PR_CAPBSET_DROP, number)
            except OSError:
                if number < len(NAMES) and prctl(on, _PR_CAPBSET_READ, number):
                    raise
                break


def set_ambient(on: Caller, mask: int) -> None:
    """Make `mask` the ambient set; each must be permitted and inheritable."""
    prctl(on, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    for number in range(64):
        if mask >> number & 1:
            prctl(on, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number)
