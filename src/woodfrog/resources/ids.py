"""Users and groups of a container with a user namespace: an image has them as they are inside."""

import struct
from collections.abc import Callable
from typing import TypeVar

import msgspec

from woodfrog.errors import UnsupportedResource
from woodfrog.image.record import Record, tag_of
from woodfrog.kernel.procfs.id_maps import IdMaps, read_id_maps
from woodfrog.resources import namespaces
from woodfrog.resources.file_entry import Attribute

_USERS = {"uid", "euid", "cuid", "uids"}
_GROUPS = {"gid", "cgid", "gids", "groups"}
_OWNERS = {"name_owner"}  # a user and a group
FIELDS = _USERS | _GROUPS | _OWNERS
# Records with ids may have this property: in which fields there is nobody that they could name.
_UNOWNED = "unowned"
# And this one: what stands in their own fields for somebody whom the user namespace lacks.
_STRANGER = "stranger"

# struct posix_acl_xattr_entry: tag, permissions, id; the ids are those of named users and groups.
_ACL_ENTRY = struct.Struct("<HHI")
_ACL_USER, _ACL_GROUP = 0x02, 0x08
# struct vfs_ns_cap_data: revision and flags, masks, root of the user namespace where it counts.
_CAPABILITY = struct.Struct("<I16sI")
_REVISION, _REVISION_2, _REVISION_3 = 0xFF000000, 0x02000000, 0x03000000

Translate = Callable[[int], int]
R = TypeVar("R", bound=msgspec.Struct)


def maps_of(init: int) -> IdMaps | None:
    """Return the maps of a container's own user namespace, None if it has ours."""
    return None if namespaces.is_ours(init, "user") else read_id_maps(init)


def inside(record: R, maps: IdMaps | None) -> R:
    """Return a record whose ids are those inside.

    But for a layer's: its files are the host's, which brings them back, and may be anybody's.
    """
    if maps is None or (isinstance(record, Record) and tag_of(record) == "layer"):
        return record

    def translated(kind: str, turn: Callable[[int], int | None]) -> Translate:
        def translate(outside: int) -> int:
            found = turn(outside)
            if found is None:
                raise UnsupportedResource(
                    f"the {kind} {outside} of the host owns something in the container, whose user"
                    " namespace does not have it",
                )
            return found

        return translate

    users, groups = maps.users.inside, maps.groups.inside
    return _translate(record, translated("user", users), translated("group", groups))


def refuse_others(uid_map: bytes, gid_map: bytes, maps: IdMaps | None) -> None:
    """Refuse an image of a container with other maps than the new one's."""
    now = (maps.users.text, maps.groups.text) if maps else (b"", b"")
    if (uid_map, gid_map) == now:
        return
    if not maps:
        what = "a user namespace, the new one has none"
    elif not uid_map:
        what = "no user namespace, the new one has one"
    else:
        what = "other id mappings than the new one"
    raise UnsupportedResource(
        f"the checkpointed container had {what}",
        hint="give the new container the same user namespace in config.json: linux.uidMappings and"
        " gidMappings",
    )


def _translate(record: R, user: Translate, group: Translate) -> R:
    if isinstance(record, Attribute):
        value = _attribute(record.name, record.value, user, group)
        return msgspec.structs.replace(record, value=value)
    changed: dict[str, object] = {}
    unowned: frozenset[str] = getattr(record, _UNOWNED, frozenset())
    own_user, own_group = user, group
    if (stranger := getattr(record, _STRANGER, None)) is not None:
        own_user, own_group = _or(stranger, user), _or(stranger, group)
    for name in record.__struct_fields__:
        value = getattr(record, name)
        if isinstance(value, msgspec.Struct):
            changed[name] = _translate(value, user, group)
        elif isinstance(value, (list, tuple)) and _has_records(value):  # be they called groups
            changed[name] = type(value)(
                _translate(one, user, group) if isinstance(one, msgspec.Struct) else one
                for one in value
            )
        elif name in unowned:
            continue
        elif name in _USERS:
            changed[name] = _each(value, own_user)
        elif name in _GROUPS:
            changed[name] = _each(value, own_group)
        elif name in _OWNERS:
            changed[name] = (user(value[0]), group(value[1]))
    return msgspec.structs.replace(record, **changed) if changed else record


def _or(stranger: int, translate: Translate) -> Translate:
    def known(outside: int) -> int:
        try:
            return translate(outside)
        except UnsupportedResource:
            return stranger

    return known


def _has_records(values: list[object] | tuple[object, ...]) -> bool:
    """Tell whether some are records; in a list for all of what there is, some may be none."""
    first = next((one for one in values if one is not None), None)
    return isinstance(first, msgspec.Struct)


def _attribute(name: bytes, value: bytes, user: Translate, group: Translate) -> bytes:
    """Return the value of an extended attribute: some have ids in them.

    What has an impossible length stays as it is, for the kernel to refuse.
    """
    if name.startswith(b"system.posix_acl_") and len(value) % _ACL_ENTRY.size == 4:
        entries = []
        for tag, permissions, one in _ACL_ENTRY.iter_unpack(value[4:]):
            turn = {_ACL_USER: user, _ACL_GROUP: group}.get(tag)
            entries.append(_ACL_ENTRY.pack(tag, permissions, turn(one) if turn else one))
        return value[:4] + b"".join(entries)
    if name == b"security.capability" and len(value) in (_CAPABILITY.size - 4, _CAPABILITY.size):
        # Without a root it counts where it is set, or for us everywhere.
        revision, masks, root = _CAPABILITY.unpack(value.ljust(_CAPABILITY.size, b"\0"))
        root = user(root)
        number = _REVISION_3 if root else _REVISION_2
        packed = _CAPABILITY.pack(revision & ~_REVISION | number, masks, root)
        return packed if root else packed[:-4]
    return value


def _each(value: int | list[int] | tuple[int, ...], translate: Translate) -> object:
    return translate(value) if isinstance(value, int) else type(value)(map(translate, value))
