"""What may differ between the configs of the old and the new container, and what may not."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from woodfrog.errors import ImageError, SpecError
from woodfrog.runtime.spec_differences import Differences, judge

Config = dict[str, Any]


def base() -> Config:
    return {
        "ociVersion": "1.0.2",
        "hostname": "old",
        "annotations": {"a": "1"},
        "process": {
            "terminal": True,
            "args": ["redis-server", "/etc/redis.conf"],
            "env": ["A=1"],
            "cwd": "/data",
            "user": {"uid": 999, "gid": 999},
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/data", "source": "/srv/one", "options": ["rbind", "rw"]},
            {"destination": "/etc/hosts", "source": "/one/hosts", "options": ["bind"]},
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")],
            "resources": {"memory": {"limit": 1 << 30}},
            "devices": [{"path": "/dev/fuse", "type": "c"}],
            "uidMappings": [{"containerID": 0, "hostID": 100000, "size": 1000}],
            "gidMappings": [
                {"containerID": 1000, "hostID": 102000, "size": 10},
                {"containerID": 0, "hostID": 100000, "size": 1000},
            ],
        },
    }


def all_that_may(config: Config) -> None:
    config["hostname"] = "new"
    config["annotations"] = {"b": "2"}
    config["process"]["env"] = ["A=2", "B=3"]
    config["process"]["cwd"] = "/"
    config["root"]["path"] = "/elsewhere"
    config["mounts"][1] |= {"source": "/srv/two", "options": ["bind"], "destination": "/data/"}
    config["mounts"][2]["source"] = "/two/hosts"
    config["mounts"].append({"destination": "/run/.containerenv", "source": "/x"})
    config["mounts"].reverse()
    config["linux"]["resources"] = {"pids": {"limit": 100}}
    config["linux"]["namespaces"][4]["path"] = "/run/netns/pod"
    config["linux"]["devices"].append({"path": "/dev/more"})
    config["linux"]["uidMappings"][0] |= {"hostID": 500000, "size": 65536}
    config["linux"]["gidMappings"] = [{"containerID": 0, "hostID": 7, "size": 1010}]


# What is changed: what is said, and whether it would break.
CHANGES: dict[str, tuple[Callable[[Config], Any], str, bool]] = {
    "no network of its own": (
        lambda c: c["linux"]["namespaces"].pop(),
        "linux.namespaces: network: the container had one of its own, the new one has not",
        True,
    ),
    "a user namespace more": (
        lambda c: c["linux"]["namespaces"].append({"type": "user"}),
        "linux.namespaces: user: the container had none of its own, the new one has",
        True,
    ),
    "a cgroup namespace more": (
        lambda c: c["linux"]["namespaces"].append({"type": "cgroup"}),
        "linux.namespaces: cgroup: the container had none of its own, the new one has",
        False,
    ),
    "a mount less": (lambda c: c["mounts"].pop(1), "mounts: /data is missing", True),
    "an engine's mount less": (
        lambda c: c["mounts"].pop(2),
        "mounts: /etc/hosts is missing",
        False,
    ),
    "a mount more": (
        lambda c: c["mounts"].append({"destination": "/more", "source": "/x"}),
        "mounts: /more is new",
        False,
    ),
    "a mount of another kind": (
        lambda c: c["mounts"].__setitem__(1, {"destination": "/data", "type": "tmpfs"}),
        "mounts: /data was bind, and is tmpfs",
        False,
    ),
    "fewer users": (
        lambda c: c["linux"]["uidMappings"][0].update(size=999),
        "linux.uidMappings: id 999 was mapped, and is not",
        True,
    ),
    "fewer groups": (
        lambda c: c["linux"]["gidMappings"].pop(),
        "linux.gidMappings: id 0 was mapped, and is not",
        True,
    ),
    "no terminal": (
        lambda c: c["process"].pop("terminal"),
        "process.terminal: the container had one, the new one has not",
        True,
    ),
    "other arguments": (
        lambda c: c["process"].update(args=["sh"]),
        "process.args: 'redis-server /etc/redis.conf' was started, not 'sh'",
        False,
    ),
    "another user": (
        lambda c: c["process"]["user"].update(uid=0),
        "process.user.uid: was 999, and is 0",
        False,
    ),
    "a root that can't be written": (
        lambda c: c["root"].update(readonly=True),
        "root.readonly: the root can't be written to any more",
        False,
    ),
    "a device less": (
        lambda c: c["linux"]["devices"].pop(),
        "linux.devices: /dev/fuse is missing",
        False,
    ),
}


def test_a_new_container_may_have_much_of_its_own() -> None:
    new = base()
    all_that_may(new)
    assert str(Differences(base(), new)) == ""


@pytest.mark.parametrize("what", CHANGES)
def test_what_may_not_differ_is_named(what: str) -> None:
    change, said, breaks = CHANGES[what]
    new = base()
    change(new)
    found = Differences(base(), new)
    assert str(found) == said
    assert found.breaking == ([said] if breaks else [])


def judged(new: Config, policy: str | None) -> tuple[str, str]:
    """Return the error and the warning of a policy."""
    warnings: list[str] = []
    try:
        judge(json.dumps(base()).encode(), new, policy, warnings.append)
    except SpecError as error:
        return str(error), "".join(warnings)
    return "", "".join(warnings)


def test_one_message_has_every_difference() -> None:
    new = copy.deepcopy(base())
    del new["process"]["terminal"]
    new["process"]["args"] = ["sh"]
    both = ("process.terminal: ", "; process.args: ")
    for policy in ("enforce", None):
        error, warning = judged(new, policy)
        assert all(part in error for part in both)
        assert not warning
    error, warning = judged(new, "warning")
    assert not error
    assert all(part in warning for part in both)
    assert judged(new, "ignore") == ("", "")


def test_what_may_go_well_is_refused_only_by_enforce() -> None:
    new = base()
    new["process"]["args"] = ["sh"]
    assert "process.args" in judged(new, "enforce")[0]
    for policy in ("warning", None):
        error, warning = judged(new, policy)
        assert not error
        assert "process.args" in warning


@pytest.mark.parametrize(
    "text", [b"\xff", b"{", b"[]", b'{"mounts": 5}', b'{"process": {"args": 7}}']
)
def test_a_hostile_config_in_the_image_is_damage(text: bytes) -> None:
    with pytest.raises(ImageError):
        judge(text, base(), None, print)
