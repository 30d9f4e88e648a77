"""A host with cgroup v2 alone: in a mount namespace without the v1 hierarchies of this machine."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bundles import Bundle
from containers import CGROUPS, Woodfrog, eventually
from woodfrog.runtime.cgroups import delegation

Make = Callable[[str], Bundle]

V2 = CGROUPS / "unified" if (CGROUPS / "unified").exists() else CGROUPS
if not (V2 / "cgroup.controllers").exists():
    pytest.skip("this machine has no v2 tree", allow_module_level=True)

ALONE = (
    "mount --make-rprivate / && umount --recursive --lazy /sys/fs/cgroup &&"
    ' mount -t cgroup2 none /sys/fs/cgroup && exec "$@"'
)


class WoodfrogOnV2(Woodfrog):
    """The command, where only the v2 tree is mounted."""

    def command(self, *arguments: str) -> list[str]:
        """Return the whole command line."""
        return ["unshare", "--mount", "sh", "-c", ALONE, "sh", *super().command(*arguments)]


@pytest.fixture
def woodfrog(tmp_path: Path, subreaper: None) -> Iterator[WoodfrogOnV2]:
    """The command; at the end nothing may be left of its containers."""
    runner = WoodfrogOnV2(tmp_path)
    try:
        yield runner
    finally:
        leftovers = runner.close()
    assert leftovers == []


def resources_with_update(woodfrog: Woodfrog, name: str, resources: dict[str, Any]) -> str:
    """Update a container from stdin; returns what was said."""
    done = subprocess.run(
        woodfrog.command("update", "-r", "-", name),
        input=json.dumps(resources),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr


def test_a_container_lives_in_the_v2_tree(woodfrog: WoodfrogOnV2, make_bundle: Make) -> None:
    bundle = make_bundle(
        "cat /sys/fs/cgroup/cgroup.procs > /work/procs; : > /work/up; exec sleep 1000"
    )
    bundle.add_mount({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"})
    bundle.config["linux"]["resources"] = {"devices": [{"allow": False, "access": "rwm"}]}
    container = woodfrog.run(bundle)
    container.wait_for("up")
    group = V2 / container.name
    assert Path(f"/proc/{container.init}/cgroup").read_text().endswith(f"0::/{container.name}\n")
    assert "1\n" in (bundle.work / "procs").read_text()
    woodfrog("pause", container.name)
    assert container.state()["status"] == "paused"
    assert "frozen 1" in (group / "cgroup.events").read_text()
    woodfrog("resume", container.name)
    script = "echo > /dev/null && cat /proc/self/cgroup && ! head -c1 /dev/kmsg"
    assert "0::/\n" in woodfrog("exec", container.name, "sh", "-c", script).stdout
    event = json.loads(woodfrog("events", "--stats", container.name).stdout)
    assert event["data"]["cpu"]["usage"]["total"] > 0
    (group / "inner").mkdir()
    own = woodfrog("exec", "--cgroup=inner", container.name, "cat", "/proc/self/cgroup").stdout
    assert "0::/inner\n" in own
    woodfrog("kill", "--all", container.name, "KILL")
    container.wait()
    woodfrog("delete", container.name)
    assert not group.exists()


def test_limits_are_files_of_v2(woodfrog: WoodfrogOnV2, make_bundle: Make) -> None:
    if "hugetlb" not in (V2 / "cgroup.controllers").read_text().split():
        pytest.skip("this machine's v2 tree has no controller to try")
    bundle = make_bundle("exec sleep 1000")
    page = 2 << 20
    bundle.config["linux"]["resources"] = {"hugepageLimits": [{"pageSize": "2MB", "limit": page}]}
    container = woodfrog.run(bundle)

    def value(name: str) -> str:
        return (V2 / container.name / name).read_text().strip()

    assert value("hugetlb.2MB.max") == str(page)
    assert value("hugetlb.2MB.rsvd.max") == str(page)
    unified = {"hugetlb.2MB.max": "max", "cgroup.max.depth": "3"}
    assert resources_with_update(woodfrog, container.name, {"unified": unified}) == ""
    assert value("hugetlb.2MB.max") == "max"
    assert value("cgroup.max.depth") == "3"
    said = resources_with_update(woodfrog, container.name, {"unified": {"fridge.max": "1"}})
    assert "'fridge.max' can't be set: controller 'fridge' not available" in said
    said = resources_with_update(woodfrog, container.name, {"unified": {"a/b.c": "1"}})
    assert "must be a file name (no slashes)" in said


def test_a_group_for_threads_is_named(woodfrog: WoodfrogOnV2, make_bundle: Make) -> None:
    pod = V2 / f"wf-pod-{os.getpid()}"
    (pod / "threads").mkdir(parents=True)
    try:
        (pod / "threads" / "cgroup.type").write_text("threaded")
        bundle = make_bundle("true")
        bundle.config["linux"]["cgroupsPath"] = f"/{pod.name}/web"
        bundle.save()
        done = woodfrog("run", "-b", str(bundle.directory), "in-threads", status=1)
        assert f"/{pod.name}/web/cgroup.procs: Operation not supported" in done.stderr
        assert [path.name for path in pod.iterdir() if path.is_dir()] == ["threads"]
    finally:
        (pod / "threads").rmdir()
        pod.rmdir()


def test_a_paused_container_is_frozen_and_thawed(
    woodfrog: WoodfrogOnV2, make_bundle: Make, tmp_path: Path
) -> None:
    container = woodfrog.run(make_bundle("touch /work/up; exec sleep 1000"))
    container.wait_for("up")
    woodfrog("pause", container.name)
    container.checkpoint(tmp_path / "image", "--leave-running")
    assert container.state()["status"] == "paused"
    container.delete()
    again = woodfrog.restore(container.bundle, tmp_path / "image")
    assert again.state()["status"] == "running"


def test_who_may_make_groups_inside_owns_its_own(woodfrog: WoodfrogOnV2, make_bundle: Make) -> None:
    bundle = make_bundle("exec sleep 1000")
    bundle.add_mount({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"})
    bundle.process["user"] = {"uid": 1234, "gid": 1234}
    container = woodfrog.run(bundle)
    group = V2 / container.name
    owned = {path.name for path in group.iterdir() if path.stat().st_uid == 1234}
    assert group.stat().st_uid == 1234
    assert {"cgroup.procs", "cgroup.subtree_control", "cgroup.threads"} <= owned
    assert owned <= set(Path("/sys/kernel/cgroup/delegate").read_text().split())


def test_the_owner_is_the_containers_user_on_the_host() -> None:
    mount = {"destination": "/sys/fs/cgroup/", "type": "cgroup"}
    config: dict[str, Any] = {
        "process": {"user": {"uid": 5}},
        "mounts": [mount],
        "linux": {"namespaces": [{"type": "cgroup"}, {"type": "user"}]},
    }
    assert delegation.owner(config) is None  # nobody
    mapping = {"containerID": 0, "hostID": 100000, "size": 65536}
    config["linux"]["uidMappings"] = [mapping]
    assert delegation.owner(config) == 100005
    mount["options"] = ["ro"]  # type: ignore[assignment]
    assert delegation.owner(config) is None
    mount["options"] = []  # type: ignore[assignment]
    config["linux"]["namespaces"] = [{"type": "user"}]
    assert delegation.owner(config) is None
    config["linux"]["namespaces"] = [{"type": "cgroup"}]
    assert delegation.owner(config) == 5


def test_exec_joins_no_group_of_others_however_programs_name_theirs(
    woodfrog: WoodfrogOnV2, make_bundle: Make
) -> None:
    if "hugetlb" not in (V2 / "cgroup.controllers").read_text().split():
        pytest.skip("this machine's v2 tree has no controller to try")
    others = V2 / f"others-{os.getpid()}"
    others.mkdir()
    try:
        # What stands behind the last "::" of its line in /proc/PID/cgroup is a group of the host's.
        bundle = make_bundle(
            f'cd /sys/fs/cgroup; mkdir -p "a::/{others.name}"'
            f' && echo $$ > "a::/{others.name}/cgroup.procs"'
            " && echo +hugetlb > cgroup.subtree_control && : > /work/ready; sleep 1000"
        )
        bundle.add_mount({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"})
        limits = [{"pageSize": "2MB", "limit": 4 << 20}]
        bundle.config["linux"]["resources"] = {"hugepageLimits": limits}
        container = woodfrog.run(bundle)
        container.wait_for("ready")
        woodfrog("exec", "--detach", container.name, "sleep", "1000")
        assert (others / "cgroup.procs").read_text() == ""
        inside = V2 / container.name / "a::" / others.name / "cgroup.procs"
        eventually(
            lambda: len(inside.read_text().split()) == 3, "sh, its sleep, and ours are there"
        )
    finally:
        for pid in (others / "cgroup.procs").read_text().split():
            os.kill(int(pid), 9)
        eventually(lambda: not (others / "cgroup.procs").read_text(), "the others' end")
        others.rmdir()
