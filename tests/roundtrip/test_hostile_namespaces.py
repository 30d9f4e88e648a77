"""Images whose namespaces or keyrings would be others than the new container could make."""

import msgspec
import pytest
from hostile import Attack

from containers import Woodfrog
from needs import needs
from woodfrog.image.record import Record
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.mounts import MOUNT_ATTR_NOSUID
from woodfrog.resources.keyrings import Keyring
from woodfrog.resources.mount_tree.records import Base, Given, MountTree, Node
from woodfrog.resources.nested import MountNamespace, UserNamespace

pytestmark = needs("root")

# What whoever is user 1000 may make.
_LEAST = {"uid": 1000, "user_map": [(0, 1000, 1)], "group_map": [(0, 1000, 1)], "setgroups": False}


@pytest.fixture
def attack(woodfrog: Woodfrog) -> Attack:
    attack = Attack(woodfrog, "CAP_SETUID", "CAP_SETGID", "CAP_SETFCAP")
    attack.bundle.config["linux"]["maskedPaths"] = ["/proc/kcore"]
    attack.bundle.config["linux"]["readonlyPaths"] = ["/proc/sys"]
    return attack


def users(**fields: object) -> UserNamespace:
    return UserNamespace(id=1, owner=0, **{**_LEAST, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "lacked"),
    [
        ({"user_map": [(0, 1000, 2)]}, "CAP_SETUID"),
        ({"user_map": [(0, 1001, 1)]}, "CAP_SETUID"),
        ({"group_map": [(0, 0, 1 << 16)]}, "CAP_SETGID"),
        ({"setgroups": True}, "CAP_SETGID"),
        ({"uid": 0, "user_map": [(0, 0, 1)]}, "CAP_SETFCAP"),
    ],
)
def test_no_users_that_it_may_not_map(
    attack: Attack, fields: dict[str, object], lacked: str
) -> None:
    refusal = attack.refusal(users(**fields))

    assert "may not map" in refusal
    assert lacked in refusal


PROC, LOCKED = Given(point=b"/proc", nth=0), Given(point=b"/proc/sys", nth=0)


def mounts(*nodes: Node, bases: list[Base] | None = None, **fields: object) -> list[Record]:
    tree = MountTree(bases=bases or [], nodes=list(nodes), removed=[])
    fields = {"origin": 0, "tree": tree, "late": None, **fields}
    return [users(), MountNamespace(id=2, owner=1, **fields)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("hostile", "said"),
    [
        (
            mounts(tree=MountTree(bases=[], nodes=[], removed=[LOCKED])),
            "takes away",
        ),
        (mounts(Node(given=LOCKED, attributes=0)), "allows more at /proc/sys"),
        (mounts(Node(given=LOCKED, attributes=MOUNT_ATTR_NOSUID)), "allows more at /proc/sys"),
        (
            mounts(
                Node(given=PROC),
                Node(given=Given(point=b"/tmp", nth=0)),
                Node(base=0, parent=1),
                bases=[Base(given=PROC)],
            ),
            "covers",
        ),
        (
            mounts(Node(given=PROC), Node(base=0, root=b"sys", parent=0), bases=[Base(given=PROC)]),
            "covers",
        ),
        (mounts(Node(given=PROC), Node(base=0, parent=0), bases=[Base(type="proc")]), "a part"),
        (mounts(Node(given=PROC), Node(base=0, parent=0), bases=[Base(type="cgroup2")]), "cgroup2"),
        (mounts(Node(given=PROC), Node(given=LOCKED, parent=0)), "moves"),
        (mounts(Node(given=PROC), Node(given=LOCKED, parent=0, place=b"tty")), "moves"),
        (
            mounts(
                late=MountTree(
                    bases=[Base(given=PROC)],
                    nodes=[Node(given=PROC), Node(base=0, parent=0)],
                    removed=[],
                )
            ),
            "shows again",
        ),
        (
            mounts(late=MountTree(bases=[], nodes=[Node(given=LOCKED, attributes=0)], removed=[])),
            "could",
        ),
    ],
)
def test_no_mounts_that_show_more(attack: Attack, hostile: list[Record], said: str) -> None:
    refusal = attack.refusal(*hostile)

    assert "CAP_SYS_ADMIN" in refusal
    assert said in refusal


def keyring(**fields: object) -> Keyring:
    plain = {"id": 2, "name": b"", "uid": 0, "gid": 0, "permissions": 0x3F3F0000, "keys": []}
    return Keyring(**{**plain, "has_users": False, **fields})  # type: ignore[arg-type]


def test_no_keyring_of_a_user_that_it_can_not_be(attack: Attack) -> None:
    assert "keyring of its user" in attack.refusal(keyring(has_users=True), keyring=2)


def test_no_keyring_that_others_have(attack: Attack) -> None:
    thread_keyring, unlink, set_permissions = -1, 9, 5
    name = b"woodfrog-others"
    theirs = HERE.call(SYS.ADD_KEY, b"keyring\0", name + b"\0", 0, 0, thread_keyring)
    try:
        HERE.call(SYS.KEYCTL, set_permissions, theirs, 0x3F3F0000)

        process = attack.process
        first = msgspec.structs.replace(process.threads[0], tid=500)
        child = msgspec.structs.replace(process, pid=500, parent=1, keyring=2, threads=[first])

        assert "outside the new container" in attack.refusal(keyring(name=name), child)
    finally:
        HERE.call(SYS.KEYCTL, unlink, theirs, thread_keyring)
