"""Users and groups of a container with a user namespace: an image has them as they are inside."""

from collections.abc import Callable
from typing import TypeVar

import msgspec

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.kernel.procfs.id_maps import IdMaps, read_id_maps
from woodfrog.resources import namespaces

_USERS = {"uid", "euid", "cuid", "uids"}
_GROUPS = {"gid", "cgid", "gids", "groups"}
_OWNERS = {"name_owner"}  # a user and a group
FIELDS = _USERS | _GROUPS | _OWNERS
# Records with ids may have this property: then there is nobody that they could name.
_UNOWNED = "is_unowned"

Translate = Callable[[int], int]
R = TypeVar("R", bound=msgspec.Struct)


def maps_of(init: int) -> IdMaps | None:
    """Return the maps of a container's own user namespace, None if it has ours."""
    return None if namespaces.is_ours(init, "user") else read_id_maps(init)


def inside(record: R, maps: IdMaps | None) -> R:
    """Return a record whose ids are those inside."""
    if maps is None:
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


def outside(record: R, maps: IdMaps | None) -> R:
    """Return a record whose ids are those of the host."""
    if maps is None:
        return record

    def translated(turn: Callable[[int], int | None]) -> Translate:
        def translate(inside: int) -> int:
            found = turn(inside)
            if found is None:
                raise ImageError(f"the image has a user or group, {inside}, that isn't mapped")
            return found

        return translate

    return _translate(record, translated(maps.users.outside), translated(maps.groups.outside))


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
    if getattr(record, _UNOWNED, False):
        return record
    changed: dict[str, object] = {}
    for name in record.__struct_fields__:
        value = getattr(record, name)
        if name in _USERS:
            changed[name] = _each(value, user)
        elif name in _GROUPS:
            changed[name] = _each(value, group)
        elif name in _OWNERS:
            changed[name] = (user(value[0]), group(value[1]))
        elif isinstance(value, msgspec.Struct):
            changed[name] = _translate(value, user, group)
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], msgspec.Struct):
            changed[name] = type(value)(_translate(one, user, group) for one in value)
    return msgspec.structs.replace(record, **changed) if changed else record


def _each(value: int | list[int] | tuple[int, ...], translate: Translate) -> object:
    return translate(value) if isinstance(value, int) else type(value)(map(translate, value))
