"""Groups of an image are checked before any is made."""

from pathlib import Path

import pytest

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.resources import cgroups
from woodfrog.resources.cgroups import Group, Hierarchy, Node, Value

TOP = Group(path=b".", controllers=b"cpu pids")


def check(*groups: Group) -> None:
    cgroups.check([Hierarchy(name="", groups=list(groups))])


def test_what_a_checkpoint_writes_passes() -> None:
    check(TOP, Group(path=b"a", values=[Value(name="pids.max", text=b"7")]), Group(path=b"a/b"))


@pytest.mark.parametrize(
    "groups",
    [
        (),
        (Group(path=b"a"),),
        (TOP, Group(path=b"..")),
        (TOP, Group(path=b"/a")),
        (TOP, Group(path=b"a/../../b")),
        (TOP, TOP),
        (TOP, Group(path=b"a", controllers=b"-cpu")),
        (TOP, Group(path=b"a", controllers=b"\xff")),
        (TOP, Group(path=b"a", values=[Value(name="devices.allow", text=b"a")])),
        (TOP, Group(path=b"a", values=[Value(name="../pids.max", text=b"max")])),
        (TOP, Group(path=b"a", values=[Value(name="pids.max", text=b"1" * 5000)])),
        (Group(path=b".", values=[Value(name="pids.max", text=b"max")]),),
        (TOP, Group(path=b"a", nodes=[Node(name=b"../tasks", uid=0, gid=0, mode=0o644)])),
        (TOP, Group(path=b"a", nodes=[Node(name=b"tasks", uid=0, gid=0, mode=0o4755)])),
        (TOP, Group(path=b"a", nodes=[Node(name=b"tasks", uid=-1, gid=0, mode=0o644)])),
        (Group(path=b".", nodes=[Node(name=b"", uid=7, gid=7, mode=0o755)]),),
        (Group(path=b".", frozen=True),),
        (TOP, *[Group(path=b"%d" % number) for number in range(1000)]),
    ],
    ids=str,
)
def test_impossible_groups_are_refused(groups: tuple[Group, ...]) -> None:
    with pytest.raises(ImageError):
        check(*groups)


def test_a_hierarchy_that_the_new_container_lacks_is_named(tmp_path: Path) -> None:
    pids = Hierarchy(name="pids", groups=[TOP])
    cgroups.refuse_wider([pids], {"pids": str(tmp_path)}, writable=True)
    with pytest.raises(UnsupportedResource, match="of pids"):
        cgroups.refuse_wider([pids], {"": str(tmp_path)}, writable=True)


def test_nothing_is_made_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "top").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "top" / "link").symlink_to("../outside")
    groups = [TOP, Group(path=b"link/made")]
    with pytest.raises(OSError):
        cgroups.make([Hierarchy(name="", groups=groups)], {"": str(tmp_path / "top")})
    assert list((tmp_path / "outside").iterdir()) == []
