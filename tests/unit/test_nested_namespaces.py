"""Nested namespaces of an image are checked before anything is made of them."""

import os
from typing import Any

import pytest

from woodfrog.engine.pids import Pids
from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.kernel.capability import CAP_SYS_ADMIN
from woodfrog.resources import nested
from woodfrog.resources.membership import check_membership
from woodfrog.resources.mount_tree.records import Base, MountTree, Node
from woodfrog.resources.nested import (
    AnyNamespace,
    MountNamespace,
    PidNamespace,
    UserNamespace,
    UtsNamespace,
)
from woodfrog.resources.process import NestedIds, Zombie

UTS = UtsNamespace(id=1, owner=0, hostname=b"pond", domainname=b"")
USER = UserNamespace(
    id=2, owner=0, uid=1000, user_map=[(0, 1000, 1)], group_map=[], setgroups=False
)
PID = PidNamespace(id=3, owner=2, parent=0, is_unborn=False)


def mounts(base: str, **fields: Any) -> MountNamespace:
    tree = MountTree(bases=[Base(type=base)], nodes=[Node(base=0)], removed=[])
    return MountNamespace(**{"id": 4, "owner": 0, "origin": 0, "tree": tree, "late": None} | fields)


def ended(*ids: int, namespace: int = 3, parent: int = 1) -> Zombie:
    inner = NestedIds(pid=list(ids[1:]), group=[0] * (len(ids) - 1), session=[0] * (len(ids) - 1))
    return Zombie(
        pid=ids[0],
        parent=parent,
        group=1,
        session=1,
        name=b"frog",
        status=0,
        pid_namespace=namespace,
        nested_ids=inner if len(ids) > 1 else None,
    )


def check(found: list[AnyNamespace]) -> None:
    """Do all checks of the namespaces themselves."""
    nested.check_owners(nested.by_id(found))
    nested.check(found, {}, 0)


@pytest.mark.parametrize(
    ("found", "what"),
    [
        ([UTS, UtsNamespace(id=1, owner=0, hostname=b"", domainname=b"")], "one id"),
        ([UtsNamespace(id=1, owner=0, hostname=b"a" * 65, domainname=b"")], "host name"),
        ([UtsNamespace(id=1, owner=7, hostname=b"", domainname=b"")], "belongs to nobody"),
        ([UTS, UtsNamespace(id=5, owner=1, hostname=b"", domainname=b"")], "belongs to nobody"),
        (
            [UserNamespace(**{f: getattr(USER, f) for f in USER.__struct_fields__} | {"owner": 2})],
            "belongs to nobody",
        ),
        (
            [
                UserNamespace(
                    id=2, owner=0, uid=0, user_map=[(0, 0, 1 << 32)], group_map=[], setgroups=True
                )
            ],
            "impossible maps",
        ),
        ([mounts("tmpfs", origin=4)], "made of none before it"),
    ],
)
def test_impossible_namespaces_are_refused(found: list[AnyNamespace], what: str) -> None:
    with pytest.raises(ImageError, match=what):
        check(found)


def test_possible_namespaces_are_not() -> None:
    found = [UTS, USER, PID, mounts("tmpfs", owner=2)]

    check(found)
    membership = {"uts": 1, "pid_for_children": 3}
    check_membership("it", membership, nested.by_id(found))
    Pids([ended(5, 1)], found).check()


@pytest.mark.parametrize("membership", [{"uts": 9}, {"ipc": 1}, {"pid_for_children": 1}])
def test_nobody_is_in_what_is_not_there(membership: dict[str, int]) -> None:
    with pytest.raises(ImageError, match="lacks"):
        check_membership("it", membership, {1: UTS})


@pytest.mark.parametrize(
    "members",
    [
        [ended(5)],
        [ended(5, 1, 1)],
        [ended(5, 1, namespace=9)],
        [ended(5, 2)],  # nobody began it
        [ended(5, 1 << 22)],
    ],
)
def test_ids_are_those_of_the_namespaces_that_one_is_in(members: list[Zombie]) -> None:
    with pytest.raises(ImageError):
        Pids(members, [USER, PID]).check()


def test_a_pid_namespace_above_itself_is_refused() -> None:
    loop = PidNamespace(id=3, owner=0, parent=3, is_unborn=False)
    with pytest.raises(ImageError, match="hangs in the air"):
        Pids([ended(5, 1)], [loop]).check()


def test_who_may_make_namespaces_is_the_new_containers_matter() -> None:
    def refuse(*found: AnyNamespace, bounding: int = 0) -> None:
        nested.refuse_wider(os.getpid(), found, bounding=bounding, seccomp=None)

    with pytest.raises(UnsupportedResource, match="CAP_SYS_ADMIN"):
        refuse(UTS)
    refuse(UTS, bounding=1 << CAP_SYS_ADMIN)
    # In a user namespace of one's own all of this is free, but not every file system.
    refuse(USER, PID, mounts("tmpfs", owner=2))
    with pytest.raises(UnsupportedResource, match="nobody may mount"):
        refuse(USER, mounts("debugfs", owner=2), bounding=1 << CAP_SYS_ADMIN)
