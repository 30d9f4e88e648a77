"""The options of config.json's mounts, sorted into what mount(2) takes where."""

from __future__ import annotations

import os

from woodfrog.kernel import mounts as m

# Option: (sets the flag, or clears it; the flag).
FLAGS = {
    "defaults": (True, 0),
    "ro": (True, m.MS_RDONLY),
    "rw": (False, m.MS_RDONLY),
    "suid": (False, m.MS_NOSUID),
    "nosuid": (True, m.MS_NOSUID),
    "dev": (False, m.MS_NODEV),
    "nodev": (True, m.MS_NODEV),
    "exec": (False, m.MS_NOEXEC),
    "noexec": (True, m.MS_NOEXEC),
    "sync": (True, m.MS_SYNCHRONOUS),
    "async": (False, m.MS_SYNCHRONOUS),
    "remount": (True, m.MS_REMOUNT),
    "mand": (True, m.MS_MANDLOCK),
    "nomand": (False, m.MS_MANDLOCK),
    "dirsync": (True, m.MS_DIRSYNC),
    "symfollow": (False, m.MS_NOSYMFOLLOW),
    "nosymfollow": (True, m.MS_NOSYMFOLLOW),
    "atime": (False, m.MS_NOATIME),
    "noatime": (True, m.MS_NOATIME),
    "diratime": (False, m.MS_NODIRATIME),
    "nodiratime": (True, m.MS_NODIRATIME),
    "bind": (True, m.MS_BIND),
    "rbind": (True, m.MS_BIND | m.MS_REC),
    "relatime": (True, m.MS_RELATIME),
    "norelatime": (False, m.MS_RELATIME),
    "strictatime": (True, m.MS_STRICTATIME),
    "nostrictatime": (False, m.MS_STRICTATIME),
    "lazytime": (True, m.MS_LAZYTIME),
    "nolazytime": (False, m.MS_LAZYTIME),
    "silent": (True, m.MS_SILENT),
    "loud": (False, m.MS_SILENT),
    "iversion": (True, m.MS_I_VERSION),
    "noiversion": (False, m.MS_I_VERSION),
}

PROPAGATION = {
    name: flag
    for plain, bit in (
        ("private", m.MS_PRIVATE),
        ("shared", m.MS_SHARED),
        ("slave", m.MS_SLAVE),
        ("unbindable", m.MS_UNBINDABLE),
    )
    for name, flag in ((plain, bit), ("r" + plain, bit | m.MS_REC))
}

# Attributes of a mount and of all below it: (attributes to set, attributes to clear).
RECURSIVE = {
    "rro": (m.MOUNT_ATTR_RDONLY, 0),
    "rrw": (0, m.MOUNT_ATTR_RDONLY),
    "rnosuid": (m.MOUNT_ATTR_NOSUID, 0),
    "rsuid": (0, m.MOUNT_ATTR_NOSUID),
    "rnodev": (m.MOUNT_ATTR_NODEV, 0),
    "rdev": (0, m.MOUNT_ATTR_NODEV),
    "rnoexec": (m.MOUNT_ATTR_NOEXEC, 0),
    "rexec": (0, m.MOUNT_ATTR_NOEXEC),
    "rnodiratime": (m.MOUNT_ATTR_NODIRATIME, 0),
    "rdiratime": (0, m.MOUNT_ATTR_NODIRATIME),
    # The kernel wants to know each of the three ways of access times as a change of all.
    "rrelatime": (0, m.MOUNT_ATTR__ATIME),
    "rnorelatime": (0, m.MOUNT_ATTR__ATIME),
    "rnoatime": (m.MOUNT_ATTR_NOATIME, m.MOUNT_ATTR__ATIME),
    "ratime": (0, m.MOUNT_ATTR__ATIME),
    "rstrictatime": (m.MOUNT_ATTR_STRICTATIME, m.MOUNT_ATTR__ATIME),
    "rnostrictatime": (0, m.MOUNT_ATTR__ATIME),
    "rnosymfollow": (m.MOUNT_ATTR_NOSYMFOLLOW, 0),
    "rsymfollow": (0, m.MOUNT_ATTR_NOSYMFOLLOW),
}

# Options that mean more than a flag: what is below is copied into a tmpfs; ids are mapped.
OURS = ("idmap", "ridmap", "tmpcopyup")

# Flags of one mount; all others belong to its file system.
PER_MOUNT = (
    m.MS_RDONLY
    | m.MS_NOSUID
    | m.MS_NODEV
    | m.MS_NOEXEC
    | m.MS_NOATIME
    | m.MS_NODIRATIME
    | m.MS_RELATIME
    | m.MS_STRICTATIME
    | m.MS_NOSYMFOLLOW
)
TIMES = m.MS_NOATIME | m.MS_NODIRATIME | m.MS_RELATIME | m.MS_STRICTATIME
# Those that a user namespace can't take away from a mount that it got from outside.
LOCKABLE = m.MS_RDONLY | m.MS_NOSUID | m.MS_NODEV | m.MS_NOEXEC | TIMES

_ST_NOSYMFOLLOW = 0x2000


def flags_of(descriptor: int) -> int:
    """Return the flags of the mount that a descriptor is in."""
    has = os.fstatvfs(descriptor).f_flag
    flags = 0
    for bit, flag in (
        (os.ST_RDONLY, m.MS_RDONLY),
        (os.ST_NOSUID, m.MS_NOSUID),
        (os.ST_NODEV, m.MS_NODEV),
        (os.ST_NOEXEC, m.MS_NOEXEC),
        (os.ST_NOATIME, m.MS_NOATIME),
        (os.ST_NODIRATIME, m.MS_NODIRATIME),
        (os.ST_RELATIME, m.MS_RELATIME),
        (_ST_NOSYMFOLLOW, m.MS_NOSYMFOLLOW),
    ):
        if has & bit:
            flags |= flag
    # There is no bit for it: it is what is left without the others.
    return flags if flags & (m.MS_NOATIME | m.MS_RELATIME) else flags | m.MS_STRICTATIME


class Options:
    """What a list of mount options comes to."""

    def __init__(self, options: list[str]) -> None:
        self.flags = 0
        self.cleared = 0
        self.propagation: list[int] = []
        self.set_below = 0
        self.clear_below = 0
        self.copy_up = False
        self.map_ids = False
        self.map_ids_below = False
        data = []
        for option in options:
            if option in FLAGS:
                sets, flag = FLAGS[option]
                self.flags = self.flags | flag if sets else self.flags & ~flag
                self.cleared = self.cleared & ~flag if sets else self.cleared | flag
            elif option in PROPAGATION:
                self.propagation.append(PROPAGATION[option])
            elif option in RECURSIVE:
                set_, clear = RECURSIVE[option]
                self.set_below = self.set_below & ~clear | set_
                self.clear_below = self.clear_below & ~set_ | clear
            elif option == "tmpcopyup":
                self.copy_up = True
            elif option in ("idmap", "ridmap"):
                self.map_ids = True
                self.map_ids_below = option == "ridmap"
            else:
                data.append(option)
        self.data = ",".join(data)

    @property
    def is_bind(self) -> bool:
        """Tell whether this makes a directory or file visible in a second place."""
        return bool(self.flags & m.MS_BIND)
