"""Maps of users and groups, and records that are turned by them."""

import re
import struct

import msgspec
import pytest

from images import RECORDS
from woodfrog.errors import UnsupportedResource
from woodfrog.kernel.procfs.id_maps import IdMap, IdMaps
from woodfrog.resources import ids
from woodfrog.resources.cgroups import Group, Hierarchy, Node
from woodfrog.resources.file_entry import Attribute
from woodfrog.resources.file_signals import FileSignals
from woodfrog.resources.files.pipe import PipeEnd
from woodfrog.resources.posix_queues import PosixQueue

USERS = IdMap.of_text("         0     100000      65536\n     70000     500000         10\n")
GROUPS = IdMap.of_text("0 200000 1000")
MAPS = IdMaps(USERS, GROUPS)
NONE = 0xFFFFFFFF


def queue(uid: int, gid: int) -> PosixQueue:
    return PosixQueue(name=b"q", mode=0o600, uid=uid, gid=gid, most=1, longest=1)


def test_a_map_goes_both_ways() -> None:
    assert [USERS.outside(one) for one in (0, 65535, 65536, 70009)] == [
        100000,
        165535,
        None,
        500009,
    ]
    assert [USERS.inside(one) for one in (100000, 165536, 500000, 0)] == [0, None, 70000, None]
    assert USERS.text == b"0 100000 65536\n70000 500000 10\n"


def test_equal_maps_are_equal_in_any_order() -> None:
    turned = IdMap.of_text("70000 500000 10\n0 100000 65536")
    assert IdMaps(turned, GROUPS) == MAPS
    assert hash(IdMaps(turned, GROUPS)) == hash(MAPS)
    assert IdMaps(GROUPS, turned) != MAPS


def test_records_are_turned() -> None:
    outside = queue(100007, 200008)
    inside = ids.inside(outside, MAPS)
    assert (inside.uid, inside.gid) == (7, 8)
    assert ids.inside(outside, None) is outside


def test_groups_that_are_records_are_no_ids() -> None:
    node = Node(name=b"", uid=100007, gid=200008, mode=0o755)
    outside = Hierarchy(name="", groups=[Group(path=b"", nodes=[node])])
    (group,) = ids.inside(outside, MAPS).groups
    assert [(one.uid, one.gid) for one in group.nodes] == [(7, 8)]


def test_an_owner_that_the_namespace_lacks_is_named() -> None:
    with pytest.raises(UnsupportedResource, match="the user 5 of the host owns something"):
        ids.inside(queue(5, 200000), MAPS)
    with pytest.raises(UnsupportedResource, match="the group 6 of the host owns something"):
        ids.inside(queue(100000, 6), MAPS)


def test_nobodys_ids_are_left_alone() -> None:
    nobodys = FileSignals(descriptor=3, kind=0, owner=0, signal=9, uid=0, euid=0)
    assert ids.inside(nobodys, MAPS) is nobodys


def test_a_pipe_may_be_that_of_a_stranger() -> None:
    pipe = PipeEnd(
        id=1, flags=0, pipe=7, capacity=4096, packets=[], packet_mode=False, uid=100_007, gid=0
    )
    inside = ids.inside(pipe, MAPS)
    assert (inside.uid, inside.gid) == (7, NONE)


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        ((b"", b""), MAPS, "no user namespace"),
        ((USERS.text, GROUPS.text), None, "a user namespace, the new one has none"),
        ((GROUPS.text, USERS.text), MAPS, "other id mappings"),
    ],
)
def test_other_maps_are_refused(
    before: tuple[bytes, bytes], now: IdMaps | None, words: str
) -> None:
    with pytest.raises(UnsupportedResource, match=words):
        ids.refuse_others(*before, now)
    ids.refuse_others(USERS.text, GROUPS.text, MAPS)
    ids.refuse_others(b"", b"", None)


def test_a_nested_map_is_told_in_ids_of_the_one_above() -> None:
    above = IdMap([(0, 100_000, 1000), (5000, 300_000, 10)])
    nested = IdMap([(0, 100_990, 20), (100, 300_002, 3), (200, 7, 1)])

    found = nested.seen_from(above)

    # What the one above doesn't have is nobody.
    assert found.runs == [(0, 990, 10), (100, 5002, 3)]
    assert above.outside(found.outside(101) or 0) == nested.outside(101)


def test_ids_in_attributes_are_turned() -> None:
    acl = [(1, 6, NONE), (2, 7, 100_007), (4, 4, NONE), (8, 5, 200_008), (16, 7, NONE)]
    outside = Attribute(name=b"system.posix_acl_access", value=packed(acl))
    inside = ids.inside(outside, MAPS)
    acl[1], acl[3] = (2, 7, 7), (8, 5, 8)
    assert inside.value == packed(acl)
    # What counts only below the namespace's root is what root inside sets without a root.
    whose = struct.pack("<6I", 0x03000001, 1 << 13, 0, 0, 0, 100_000)
    outside = Attribute(name=b"security.capability", value=whose)
    inside = ids.inside(outside, MAPS)
    assert inside.value == struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
    for name in (b"user.note", b"system.posix_acl_default", b"security.capability"):
        other = Attribute(name=name, value=b"of no such length")
        assert ids.inside(other, MAPS) == other


def packed(entries: list[tuple[int, int, int]]) -> bytes:
    """Return a POSIX ACL as its attribute has it."""
    return b"\2\0\0\0" + b"".join(struct.pack("<HHI", *entry) for entry in entries)


# Fields that are called like ids of users and groups, and aren't.
# (What a nested user namespace maps is turned when it is read: IdMap.seen_from.)
OTHERS = {
    *("uid_map", "gid_map", "group_map", "setgroups"),
    *("owner", "group", "foreground_group", "autogroup_nice"),
}


def test_every_id_in_a_record_is_turned() -> None:
    schema = msgspec.json.schema(RECORDS)
    fields = {name for one in schema["$defs"].values() for name in one.get("properties", ())}
    alike = {name for name in fields if re.search("uid|gid|owner|group", name)}
    assert alike - OTHERS == ids.FIELDS & fields == ids.FIELDS
