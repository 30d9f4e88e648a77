"""Which file systems programs may have mounted, and with which options.

What a mount table shows is what mount(2) is given at a restore, so each option is one of a list.
"""

import re

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.kernel import mounts as m
from woodfrog.kernel.procfs.id_maps import IdMaps

# A mount's own attributes, as a mount table calls them.
_NAMES = {
    "ro": m.MOUNT_ATTR_RDONLY,
    "nosuid": m.MOUNT_ATTR_NOSUID,
    "nodev": m.MOUNT_ATTR_NODEV,
    "noexec": m.MOUNT_ATTR_NOEXEC,
    "noatime": m.MOUNT_ATTR_NOATIME,
    "nodiratime": m.MOUNT_ATTR_NODIRATIME,
    "nosymfollow": m.MOUNT_ATTR_NOSYMFOLLOW,
}
ATTRIBUTES = sum(_NAMES.values()) | m.MOUNT_ATTR_STRICTATIME

_FLAGS = {
    "rw": 0,
    "ro": m.MS_RDONLY,
    "sync": m.MS_SYNCHRONOUS,
    "dirsync": m.MS_DIRSYNC,
    "mand": m.MS_MANDLOCK,
    "lazytime": m.MS_LAZYTIME,
    # The label of a security module belongs to the machine.
    "seclabel": 0,
}
_SIZE = r"\d+[kmg%]?"
_PATHS = r"/[^,]*"
# The options of each type, as patterns. Those that are empty belong to the whole machine.
_ALLOWED = {
    "tmpfs": rf"(size|nr_blocks|nr_inodes)={_SIZE}|mode=[0-7]+|[ug]id=\d+|huge=\w+|inode(32|64)"
    r"|noswap",
    "hugetlbfs": rf"(size|min_size|nr_inodes)={_SIZE}|pagesize=\d+[KMG]|mode=[0-7]+|[ug]id=\d+",
    "proc": r"hidepid=\w+|gid=\d+|subset=pid",
    "devpts": r"[ug]id=\d+|(ptmx)?mode=[0-7]+|max=\d+",
    "ramfs": r"mode=[0-7]+",
    "bpf": r"mode=[0-7]+|[ug]id=\d+",
    "mqueue": "",
    "sysfs": "",
    "debugfs": "",
    "tracefs": "",
    "securityfs": "",
    "configfs": "",
    "fusectl": "",
    "binfmt_misc": "",
    "pstore": r"kmsg_bytes=\d+",
    "devtmpfs": rf"(size|nr_blocks|nr_inodes)={_SIZE}|mode=[0-7]+|inode(32|64)|huge=\w+",
    "cgroup2": "nsdelegate|memory_recursiveprot|memory_localevents|favordynmods",
    "cgroup": r"[a-z_]+|name=[\w.-]+",
    "overlay": rf"(lowerdir\+?|datadir\+|upperdir|workdir)={_PATHS}"
    r"|redirect_dir=(on|off|follow|nofollow)|(metacopy|index|nfs_export|xino)=(on|off|auto)"
    r"|userxattr|volatile|fsync=\w+|uuid=(on|off|auto|null)",
}
# Those whose files are gone with them, and so in the image.
IN_MEMORY = ("tmpfs", "ramfs", "hugetlbfs")
# Those whose options belong to the whole machine.
_OF_MACHINE = ("cgroup2", "pstore", "devtmpfs")
_SEPARATOR = r"(?<!\\),"
_COLON = rb"(?<!\\):"
# By which an overlay knows files again that are others after a restore.
_TIED = ("index=on", "nfs_export=on")


def attributes(text: str) -> int:
    """Return the attributes of a mount that a mount table shows, as mount_setattr(2) takes them."""
    words = text.split(",")
    found = sum(_NAMES.get(word, 0) for word in words)
    if not {"relatime", "noatime"} & set(words):
        found |= m.MOUNT_ATTR_STRICTATIME
    return found


def maps_ids(text: str) -> bool:
    """Tell whether a mount that a mount table shows so has an id map of its own."""
    return "idmapped" in text.split(",")


def split(kind: str, shown: str) -> tuple[int, bytes]:
    """Return flags and data for mount(2), by what a mount table shows of a file system."""
    if kind not in _ALLOWED:
        raise UnsupportedResource(
            f"is a mount of {kind}, which cannot be made again",
            hint="have the runtime mount it: in the mounts of config.json, or by the engine",
        )
    flags = 0
    data = []
    for option in re.split(_SEPARATOR, shown):
        if option in _FLAGS:
            flags |= _FLAGS[option]
        elif not re.fullmatch(_ALLOWED[kind], option) or option in _TIED:
            raise UnsupportedResource(
                f"is mounted with the option {option} ({kind}), which cannot be saved"
            )
        elif kind not in _OF_MACHINE:
            data.append(option)
    return flags, ",".join(data).encode("utf-8", "surrogateescape")


def inside(data: bytes, maps: IdMaps) -> bytes:
    """Return options whose users and groups are those of the container's user namespace."""
    found = []
    for option in data.decode("utf-8", "surrogateescape").split(","):
        name, _, number = option.partition("=")
        if name in ("uid", "gid"):
            one = (maps.users if name == "uid" else maps.groups).inside(int(number))
            if one is not None:
                found.append(f"{name}={one}")
        else:
            found.append(option)
    return ",".join(found).encode("utf-8", "surrogateescape")


def check(kind: str, flags: int, data: bytes) -> None:
    """Check a file system of an image before it is made."""
    text = data.decode("utf-8", "surrogateescape")
    allowed = kind in _ALLOWED and all(
        re.fullmatch(_ALLOWED[kind], option) and option not in _TIED
        for option in (re.split(_SEPARATOR, text) if text else ())
    )
    if not allowed or flags & ~sum(_FLAGS.values()) or len(data) >= 4096 or b"\0" in data:
        raise ImageError("the image mounts what no image does")


def layers(data: bytes) -> list[bytes]:
    """Return the directories that an overlay is made of."""
    found = []
    for option in re.split(_SEPARATOR, data.decode("utf-8", "surrogateescape")):
        name, _, value = option.partition("=")
        if name in ("lowerdir", "lowerdir+", "datadir+", "upperdir", "workdir"):
            paths = value.encode("utf-8", "surrogateescape")
            found += [
                re.sub(rb"\\(.)", rb"\1", path)
                for path in (re.split(_COLON, paths) if name == "lowerdir" else [paths])
                # Before those that only hold data there is an empty one.
                if path
            ]
    return found


def volatile(data: bytes) -> bytes:
    """Return the work directory of an overlay that never waits for a disk; empty: it is none."""
    given = re.split(_SEPARATOR, data.decode("utf-8", "surrogateescape"))
    if {"volatile", "fsync=volatile"}.isdisjoint(given):
        return b""
    work = [one.partition("=")[2] for one in given if one.startswith("workdir=")]
    return re.sub(r"\\(.)", r"\1", "".join(work)).encode("utf-8", "surrogateescape")
