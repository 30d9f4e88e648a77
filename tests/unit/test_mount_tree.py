"""Mounts of an image are checked before anything is made of them, and put in a right order."""

import os
from typing import Any

import msgspec
import pytest

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.kernel.capability import CAP_SETFCAP, CAP_SETGID, CAP_SETUID
from woodfrog.kernel.procfs.mountinfo import Mount, parse_mount
from woodfrog.resources.mount_tree import admitting, options, records, table
from woodfrog.resources.mount_tree.records import OUTSIDE, Base, Given, MountTree, Node

ROOT = Node(given=Given(point=b"/", nth=0))
TMPFS = Base(type="tmpfs", source=b"none", options=b"size=64k,mode=700")


def tree(*nodes: Node, base: Base = TMPFS) -> MountTree:
    """Return the root with some mounts in it."""
    return MountTree(bases=[base], nodes=[ROOT, *nodes], removed=[])


def new(**fields: Any) -> Node:
    """Return a mount of the base in the root."""
    return Node(**({"base": 0, "parent": 0, "place": b"tmp/m", "attributes": 0} | fields))


def test_what_a_checkpoint_writes_passes() -> None:
    mounts = tree(
        new(group=7, master=OUTSIDE),
        new(parent=1, place=b".", master=7),
        new(propagation="private"),
    )
    records.check(mounts, 0, namespaces={})
    assert [mounts.path(node) for node in mounts.nodes] == [b"/", *[b"/tmp/m"] * 3]
    assert mounts.is_brought(b"/tmp/m/file")
    assert not mounts.shows(b"/tmp/mine")


@pytest.mark.parametrize(
    "node",
    [
        new(place=b"../m"),
        new(place=b"/m"),
        new(root=b"a/../.."),
        new(parent=1),
        new(parent=-1),
        new(base=1),
        new(base=-1),
        new(given=Given(point=b"/a", nth=0)),
        new(given=Given(point=b"a", nth=0), base=-1),
        new(given=Given(point=b"/../a", nth=0), base=-1),
        new(attributes=0x100000),
        new(propagation="shared"),
        new(group=1, master=1),
        new(group=1, master=2),
        new(master=3),
        new(group=-1),
        new(deleted=1, root=b"a"),
        new(deleted=-1, root=b"a"),
        new(detached=1),
        new(detached=1, parent=-1, group=1),
        Node(given=Given(point=b"/a", nth=0), detached=1),
        new(users=[(0, 0, 1)]),
        new(users=[(0, 0, 0)], groups=[(0, 0, 1)]),
        new(users=[(0, 0, 1)], groups=[(0, (1 << 32) - 1, 2)]),
        new(users=[(0, 0, 1)], groups=[(-1, 0, 1)]),
        Node(given=Given(point=b"/a", nth=0), users=[(0, 0, 1)], groups=[(0, 0, 1)]),
    ],
)
def test_impossible_mounts_are_refused(node: Node) -> None:
    with pytest.raises(ImageError):
        records.check(tree(node), 0, namespaces={})


def test_a_mount_of_a_deleted_file_needs_that_and_a_path() -> None:
    mounts = tree(new(deleted=2, root=b"a/b"))
    records.check(mounts, 0, namespaces={}, deleted={2})
    # Its contents come with the image, whatever the base is.
    assert mounts.is_brought(b"/tmp/m")
    for node in (new(deleted=2), Node(given=Given(point=b"/a", nth=0), root=b"a", deleted=2)):
        with pytest.raises(ImageError, match="a deleted file that the image lacks"):
            records.check(tree(node), 0, namespaces={}, deleted={2})


def test_late_mounts_are_checked_and_are_none_of_outside() -> None:
    late = tree(new())
    mounts = MountTree(bases=[], nodes=[], removed=[], late=late)
    records.check(mounts, 0, namespaces={})
    assert not mounts.may_be_from_outside
    bad = MountTree(bases=[], nodes=[], removed=[], late=tree(new(place=b"../m")))
    with pytest.raises(ImageError):
        records.check(bad, 0, namespaces={})
    for nested, one in ((True, mounts), (False, msgspec.structs.replace(late, late=mounts))):
        with pytest.raises(ImageError, match="later than late"):
            records.check(one, 0, namespaces={}, nested=nested)


@pytest.mark.parametrize(
    "base",
    [
        Base(type="ext4", source=b"/dev/sda"),
        Base(type="nfs"),
        Base(type="fuse", options=b"fd=3"),
        Base(type="tmpfs", options=b"mpol=bind:0"),
        Base(type="tmpfs", options=b"size=1,size"),
        Base(type="tmpfs", flags=0x1000),
        Base(type="proc", options=b"size=1"),
        Base(type="cgroup", options=b"release_agent=/bin/sh"),
        Base(type="overlay", options=b"lowerdir=relative"),
        Base(type="overlay", options=b"lowerdir=/a,index=on"),
        Base(type="tmpfs", source=b"a\0b"),
        Base(type="tmpfs", options=b"mode=700\0"),
        Base(type="nsfs"),
        Base(type="nsfs", namespace="net", namespace_id=3),
        Base(type="nsfs", namespace="uts", namespace_id=1),
        Base(type="nsfs", namespace="mnt", namespace_id=2),
        Base(type="tmpfs", namespace="net", namespace_id=1, source=b"a\0b"),
        Base(type="nsfs", namespace="net", namespace_id=1, options=b"mode=700"),
    ],
)
def test_no_image_mounts_what_is_not_on_the_list(base: Base) -> None:
    with pytest.raises(ImageError):
        records.check(tree(new(), base=base), 0, namespaces={1: "net", 2: "mnt"})


def test_what_a_mount_table_shows_is_what_mount_takes() -> None:
    assert options.split("tmpfs", "ro,sync,seclabel,size=1024k,inode64") == (
        0x11,
        b"size=1024k,inode64",
    )
    assert options.split("cgroup2", "rw,nsdelegate") == (0, b"")
    with pytest.raises(UnsupportedResource, match="ext4"):
        options.split("ext4", "rw")
    with pytest.raises(UnsupportedResource, match="mpol"):
        options.split("tmpfs", "rw,mpol=bind:0")
    assert options.attributes("rw,nosuid,relatime") == 0x2
    assert options.attributes("ro,noexec") == 0x29
    assert options.maps_ids("rw,relatime,idmapped")
    assert options.attributes("rw,relatime,idmapped") == 0


def test_layers_of_an_overlay_may_have_any_name() -> None:
    text = b"lowerdir=/a\\:b:/c\\,d,upperdir=/e\\:f,workdir=/g,userxattr"
    assert options.layers(text) == [b"/a:b", b"/c,d", b"/e:f", b"/g"]
    assert options.layers(b"lowerdir=/a:/b::/c") == [b"/a", b"/b", b"/c"]
    assert options.layers(b"lowerdir+=/a:b,datadir+=/c") == [b"/a:b", b"/c"]


@pytest.mark.parametrize("shown", [b"volatile", b"fsync=volatile"])
def test_a_volatile_overlay_has_a_mark_in_its_work_directory(shown: bytes) -> None:
    text = b"lowerdir=/a,upperdir=/b,workdir=/c\\,d,uuid=on"
    assert options.volatile(text + b"," + shown) == b"/c,d"
    assert options.volatile(text) == b""


def mount(mnt_id: int, parent: int, point: bytes) -> Mount:
    return parse_mount(b"%d %d 0:%d / %s rw - tmpfs none rw" % (mnt_id, parent, mnt_id, point))


def test_what_is_covered_comes_after_what_covers_it() -> None:
    mounts = [
        mount(1, 0, b"/"),
        mount(2, 1, b"/a/b"),
        mount(3, 1, b"/a"),
        mount(4, 3, b"/a"),
        mount(5, 4, b"/a/c"),
    ]
    order = [one.mnt_id for one in table.uncovered_first(mounts)]
    assert order == [5, 4, 3, 2, 1]


def test_what_is_hidden_is_made_before_what_hides_it() -> None:
    mounts = [mount(5, 9, b"/a/c"), mount(3, 1, b"/a"), mount(1, 0, b"/"), mount(2, 1, b"/a/b")]
    mounts += [mount(9, 1, b"/moved"), mount(10, 1, b"/later")]
    order = [one.mnt_id for one in table.making_order(mounts)]
    assert order == [1, 9, 5, 2, 3, 10]


def test_a_record_comes_back() -> None:
    mounts = tree(new(group=1), new(master=1, place=os.fsencode("tmp/\udcff")))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(mounts), type=MountTree) == mounts


def test_what_is_attached_nowhere_is_at_no_path() -> None:
    one = new(detached=1, parent=-1)
    mounts = tree(one, new(detached=2, parent=-1))
    records.check(mounts, 0, namespaces={})
    with pytest.raises(ImageError, match="attached nowhere"):
        records.check(tree(one, one), 0, namespaces={})
    with pytest.raises(ImageError, match="attached nowhere"):
        records.check(mounts, 0, namespaces={}, nested=True)
    with pytest.raises(ImageError, match="attached nowhere"):
        records.check(msgspec.structs.replace(tree(new()), late=mounts), 0, namespaces={})
    assert not mounts.is_rooted
    assert not mounts.shows(b"/tmp/m/file")


def test_id_maps_of_mounts_need_the_rights_to_map_ids() -> None:
    mapped = tree(new(users=[(0, 5, 1)], groups=[(0, 0, 1)]))
    of_root = tree(new(users=[(0, 0, 1)], groups=[(0, 0, 1)]))
    rights = 1 << CAP_SETUID | 1 << CAP_SETGID
    records.check(mapped, 0, namespaces={})
    admitting.refuse_wider_ids(tree(new()), 0, None)
    admitting.refuse_wider_ids(mapped, rights, None)
    admitting.refuse_wider_ids(of_root, rights | 1 << CAP_SETFCAP, None)
    for one, lacked in ((mapped, 1 << CAP_SETUID), (mapped, 1 << CAP_SETGID), (of_root, rights)):
        with pytest.raises(UnsupportedResource, match="id maps that the new container may not"):
            admitting.refuse_wider_ids(one, lacked, None)


def test_what_was_unmounted_outside_needs_no_rights() -> None:
    gone = Given(point=b"/volume/usb", nth=0)
    private = Node(given=Given(point=b"/volume", nth=0), propagation="private")
    assert MountTree(bases=[], nodes=[private], removed=[gone]).may_be_from_outside
    assert not tree(new()).may_be_from_outside
    read_only = Node(given=private.given, attributes=1)
    assert not MountTree(bases=[], nodes=[read_only], removed=[]).may_be_from_outside


def test_copies_of_mounts_are_found_in_another_namespace() -> None:
    lines = (
        "20 1 0:5 / / rw - tmpfs root rw",
        "21 20 0:6 / /tmp rw - tmpfs t rw",
        "22 21 0:7 / /tmp/in rw - tmpfs i rw",
        "23 20 0:8 / /sys ro - sysfs sysfs rw",
    )
    copied = (
        "30 3 0:5 / / rw - tmpfs root rw",
        "31 30 0:6 / /tmp ro - tmpfs t rw",
        "32 31 0:9 / /tmp/in rw - tmpfs another rw",
    )
    was = [parse_mount(line.encode()) for line in lines]

    found = table.as_copied(was, [parse_mount(line.encode()) for line in copied])

    # What shows something else, or is gone, has an id that nobody has.
    assert [(one.mnt_id, one.parent) for one in found] == [(30, 1), (31, 30), (-22, 31), (-23, 30)]
