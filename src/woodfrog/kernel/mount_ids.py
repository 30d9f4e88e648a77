"""Id maps of mounts (mount_setattr(2), MOUNT_ATTR_IDMAP), which statmount(2) tells."""

import errno
import os
import struct
from collections.abc import Iterator

from woodfrog.kernel import features
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.procfs.id_maps import IdMap, IdMaps

_NS_GET_MNTNS_ID = 0x8008B705
# struct mnt_id_req: size, mount, what is asked, mount namespace.
_REQUEST = struct.Struct("<IIQQQ")
_LSMT_ROOT = (1 << 64) - 1
_MNT_BASIC, _MNT_UIDMAP, _MNT_GIDMAP = 0x2, 0x2000, 0x4000
_AT_ONCE = 1024
_MOST_BYTES = 1 << 20
# In struct statmount: what is told, the id as in mountinfo, how many maps where in the text.
_MASK_AT, _OLD_ID_AT, _MAPS_AT, _TEXT_AT = 8, 56, 152, 512
_MAPS = struct.Struct("<4I")


def id_maps(pid: int) -> dict[int, IdMaps]:
    """Return the maps of those mounts that a process sees and that have any, by their ids.

    Ids outside are ours. Before Linux 6.15 the kernel tells none.
    """
    if not features.wanted(features.MOUNT_ID_MAPS):
        return {}
    namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        number = bytearray(8)
        HERE.call(SYS.IOCTL, namespace, _NS_GET_MNTNS_ID, number)
        return dict(_look(int.from_bytes(number, "little")))
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EINVAL, errno.ENOSYS):
            raise
        return {}
    finally:
        os.close(namespace)


def _look(namespace: int) -> Iterator[tuple[int, IdMaps]]:
    for mount in _list(namespace):
        told = _told(namespace, mount)
        if int.from_bytes(told[_MASK_AT : _MASK_AT + 8], "little") & _MNT_UIDMAP:
            number = int.from_bytes(told[_OLD_ID_AT : _OLD_ID_AT + 4], "little")
            users, users_at, groups, groups_at = _MAPS.unpack_from(told, _MAPS_AT)
            text = bytes(told[_TEXT_AT:])
            if users or groups:
                yield number, IdMaps(_map(text, users_at, users), _map(text, groups_at, groups))


def _told(namespace: int, mount: int) -> bytearray:
    """Return the struct statmount of a mount, with its text; zeros if it has gone since."""
    told = bytearray(_TEXT_AT + 4096)
    asked = _MNT_BASIC | _MNT_UIDMAP | _MNT_GIDMAP
    request = _REQUEST.pack(_REQUEST.size, 0, mount, asked, namespace)
    while True:
        try:
            HERE.call(SYS.STATMOUNT, request, told, len(told), 0)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return bytearray(_TEXT_AT)
            if error.errno != errno.EOVERFLOW or len(told) > _MOST_BYTES:
                raise
            told = bytearray(2 * len(told))
        else:
            return told


def _map(text: bytes, start: int, count: int) -> IdMap:
    lines = text[start:].split(b"\0", count)[:count]
    return IdMap.of_text(b"\n".join(lines).decode())


def _list(namespace: int) -> Iterator[int]:
    last = 0
    while True:
        found = bytearray(8 * _AT_ONCE)
        request = _REQUEST.pack(_REQUEST.size, 0, _LSMT_ROOT, last, namespace)
        count = HERE.call(SYS.LISTMOUNT, request, found, _AT_ONCE, 0)
        ids = struct.unpack_from(f"<{count}Q", found)
        yield from ids
        if count < _AT_ONCE:
            return
        last = ids[-1]
