"""Control groups: on this machine, and the file logic of both versions on recorded trees."""

import json
import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundles import Bundle
from containers import CGROUPS, Woodfrog, eventually, is_gone
from woodfrog.errors import StateError, WoodfrogError
from woodfrog.runtime import cgroups
from woodfrog.runtime.cgroups import limits, nesting

Make = Callable[[str], Bundle]


def test_limits_are_set_and_the_groups_go_with_the_container(
    woodfrog: Woodfrog, make_bundle: Make
) -> None:
    if not (CGROUPS / "memory").exists():
        pytest.skip("this machine has no v1 memory controller")
    bundle = make_bundle("exec sleep 1000")
    bundle.config["linux"]["resources"] = {
        "memory": {"limit": 64 << 20},
        "cpu": {"shares": 512, "quota": 50000, "period": 100000},
        "pids": {"limit": 50},
    }
    container = woodfrog.run(bundle)

    def value(controller: str, file: str) -> str:
        return (CGROUPS / controller / container.name / file).read_text().strip()

    assert value("memory", "memory.limit_in_bytes") == str(64 << 20)
    assert value("cpu", "cpu.shares") == "512"
    assert value("cpu", "cpu.cfs_quota_us") == "50000"
    assert value("pids", "pids.max") == "50"
    assert str(container.init) in value("freezer", "cgroup.procs").split()
    container.delete()
    assert not list(CGROUPS.glob(f"*/{container.name}"))


def test_groups_made_inside_go_too(woodfrog: Woodfrog, make_bundle: Make) -> None:
    container = woodfrog.run(make_bundle("exec sleep 1000"))
    (directory, *_) = CGROUPS.glob(f"*/{container.name}")
    (directory / "inner" / "more").mkdir(parents=True)
    container.delete()
    assert not directory.exists()


def test_the_v2_tree_of_a_hybrid_is_joined(woodfrog: Woodfrog, make_bundle: Make) -> None:
    if not _is_v2(CGROUPS / "unified"):
        pytest.skip("this machine has no v2 tree beside v1")
    container = woodfrog.run(make_bundle("exec sleep 1000"))
    assert f"0::/{container.name}\n" in Path(f"/proc/{container.init}/cgroup").read_text()
    container.delete()
    assert not (CGROUPS / "unified" / container.name).exists()


def test_a_group_in_use_is_refused(woodfrog: Woodfrog, make_bundle: Make) -> None:
    first = woodfrog.run(make_bundle("exec sleep 1000"))
    bundle = make_bundle("true")
    bundle.config["linux"]["cgroupsPath"] = f"/{first.name}"
    bundle.save()
    done = woodfrog("run", "-b", str(bundle.directory), "oci-second", status=1)
    assert "container's cgroup is not empty: 1 process(es) found" in done.stderr
    assert first.state()["status"] == "running"


def test_a_frozen_group_is_refused(
    woodfrog: Woodfrog, make_bundle: Make, new_name: Callable[[Bundle], str]
) -> None:
    if not (CGROUPS / "freezer").exists():
        pytest.skip("this machine has no v1 freezer")
    bundle = make_bundle("true")
    name = new_name(bundle)
    group = CGROUPS / "freezer" / name
    group.mkdir()
    try:
        (group / "freezer.state").write_text("FROZEN")
        done = woodfrog("run", "-b", str(bundle.directory), name, status=1)
        assert "container's cgroup unexpectedly frozen" in done.stderr
        assert [str(path) for path in CGROUPS.glob(f"*/{name}")] == [str(group)]
        (group / "freezer.state").write_text("THAWED")
        woodfrog("run", "-b", str(bundle.directory), name)
    finally:
        if group.exists():
            group.rmdir()


def make_deep(top: Path, levels: int) -> int:
    """Make groups in each other, and return a descriptor of the innermost."""
    here = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(levels):
        os.mkdir("deeper", dir_fd=here)
        inner = os.open("deeper", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = inner
    return here


def test_nobody_hides_in_groups_too_deep_for_a_path(woodfrog: Woodfrog, make_bundle: Make) -> None:
    bundle = make_bundle("sleep 1000 & wait")
    # SIGKILL of the first process ends no other: those in the groups are looked for.
    bundle.config["linux"]["namespaces"].remove({"type": "pid"})
    container = woodfrog.run(bundle)
    children = Path(f"/proc/{container.init}/task/{container.init}/children")
    hidden = int(eventually(children.read_text, "a child"))
    tops = [path for path in CGROUPS.glob(f"*/{container.name}") if not path.parent.is_symlink()]
    try:
        # Where it is looked for, and one of those that only have to be removed.
        for top in (one for one in tops if one.parent.name in ("pids", "freezer")):
            innermost = make_deep(top, 1100)
            procs = os.open("cgroup.procs", os.O_WRONLY, dir_fd=innermost)
            os.write(procs, str(hidden).encode())
            os.close(procs)
            os.close(innermost)
        listed = woodfrog("ps", "--format=json", container.name).stdout
        assert sorted(json.loads(listed)) == sorted([container.init, hidden])
        woodfrog("kill", container.name, "KILL")
        eventually(lambda: is_gone(hidden), "the end of who hides")
        container.wait()
        woodfrog("delete", container.name)
        assert not any(top.exists() for top in tops)
    finally:
        if not is_gone(hidden):
            os.kill(hidden, 9)
        eventually(lambda: is_gone(hidden), "the end of who hides")
        for top in tops:
            for group in reversed(nesting.below(str(top))):
                if group != str(top):
                    nesting.remove(group)


def test_exec_joins_groups_inside(woodfrog: Woodfrog, make_bundle: Make) -> None:
    bundle = make_bundle("exec sleep 1000")
    bundle.config["linux"]["namespaces"].remove({"type": "cgroup"})
    container = woodfrog.run(bundle)
    tops = [path for path in CGROUPS.glob(f"*/{container.name}") if not path.parent.is_symlink()]
    first, second = sorted(tops)[:2]
    for top in (first, second):
        (top / "inner").mkdir()

    def groups(*flags: str, status: int = 0) -> str:
        done = woodfrog("exec", *flags, container.name, "cat", "/proc/self/cgroup", status=status)
        return done.stdout + done.stderr

    one = groups("--cgroup", f"{first.parent.name}:inner", "--cgroup", f"{second.parent.name}:/")
    assert one.count("/inner\n") == 1
    assert f"{first.parent.name}:/{container.name}/inner\n" in one
    assert "/inner/cgroup.procs: no such file" in groups("--cgroup", "inner", status=255)
    assert "unknown controller fridge" in groups("--cgroup", "fridge:inner", status=255)
    assert " .. is not a sub cgroup path" in groups("--cgroup", "..", status=255)
    assert "missing <controller>: prefix" in groups("--cgroup", "a", "--cgroup", "b", status=255)


def test_without_a_path_the_groups_are_under_our_own(woodfrog: Woodfrog, make_bundle: Make) -> None:
    bundle = make_bundle("cat /proc/self/cgroup")
    bundle.config["linux"]["namespaces"].remove({"type": "cgroup"})
    bundle.save()
    done = woodfrog("run", "-b", str(bundle.directory), "oci-default-path")
    root = str(woodfrog.root).strip("/").replace("/", "-")[-200:]
    assert f"/woodfrog@{root}/oci-default-path\n" in done.stdout
    assert not woodfrog.parents()


@pytest.fixture
def v2(tmp_path: Path) -> dict[str, Any]:
    """A v2 tree of plain files."""
    top = tmp_path / "web"
    (top / "inner").mkdir(parents=True)
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    (tmp_path / "cgroup.subtree_control").write_text("")
    for file, text in {
        "cgroup.procs": "12\n7\n",
        "cgroup.events": "populated 1\nfrozen 0\n",
        "cgroup.freeze": "0\n",
        "memory.max": "max\n",
    }.items():
        (top / file).write_text(text)
    (top / "inner" / "cgroup.procs").write_text("99\n")
    return {"version": 2, "paths": {"": str(top)}}


def test_v2_files_are_read_and_written(v2: dict[str, Any]) -> None:
    top = Path(v2["paths"][""])
    assert cgroups.processes(v2) == [7, 12, 99]
    assert not cgroups.is_frozen(v2)
    (top / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    assert cgroups.is_frozen(v2)
    cgroups.freeze(v2, True)
    assert (top / "cgroup.freeze").read_text().startswith("1")
    limits.apply(v2, {"memory": {"limit": 4096}}, pytest.fail)
    assert (top / "memory.max").read_text().startswith("4096")
    with pytest.raises(WoodfrogError, match=r"pids\.max: this kernel's pids cgroup"):
        limits.apply(v2, {"pids": {"limit": 3}}, pytest.fail)


def test_what_does_not_freeze_is_let_go_again(v2: dict[str, Any]) -> None:
    with pytest.raises(StateError, match="doesn't stop"):
        cgroups.freeze(v2, True, patience=0.01)
    assert (Path(v2["paths"][""]) / "cgroup.freeze").read_text().startswith("0")


def test_v2_devices_are_limited_by_a_program() -> None:
    unified = next(iter([p for p in (CGROUPS / "unified", CGROUPS) if _is_v2(p)]), None)
    if unified is None:
        pytest.skip("this machine has no v2 tree")
    group = unified / f"oci-devices-{os.getpid()}"
    group.mkdir()
    try:
        rules = [
            {"allow": False, "access": "rwm"},
            {"allow": True, "type": "c", "major": 1, "minor": 11, "access": "w"},
        ]
        limits.apply({"version": 2, "paths": {"": str(group)}}, {"devices": rules}, pytest.fail)
        script = (
            f"echo 0 > {group}/cgroup.procs;"
            "for d in null kmsg; do for m in '<' '>'; do"
            ' if eval "(: $m /dev/$d) 2>/dev/null"; then echo $d $m; fi; done; done'
        )
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines() == ["null <", "null >", "kmsg >"]
    finally:
        group.rmdir()


def _is_v2(path: Path) -> bool:
    return (path / "cgroup.controllers").exists()


def test_network_classes_and_priorities(
    woodfrog: Woodfrog, make_bundle: Make, tmp_path: Path
) -> None:
    if "net_cls\t" not in Path("/proc/cgroups").read_text():
        pytest.skip("this kernel has no net_cls")
    bundle = make_bundle("touch /work/up; exec sleep 1000")
    bundle.config["linux"]["cgroupsPath"] = "/oci-network"
    bundle.config["linux"]["resources"] = {
        "network": {"classID": 0x100001, "priorities": [{"name": "lo", "priority": 3}]}
    }
    bundle.save()
    command = shlex.join(woodfrog.command())
    # The hierarchy goes with its last mount, which only this shell sees, once it has no groups.
    script = f"""
        mount --make-rprivate /; mkdir net; mount -t cgroup -o net_cls,net_prio none net
        {command} run --bundle {bundle.directory} network &
        until [ -e {bundle.work}/up ] || ! kill -0 $!; do sleep 0.01; done
        cd net/oci-network && cat net_cls.classid && grep lo net_prio.ifpriomap; cd ../..
        {command} kill network KILL; wait; ls -d net/oci-network
        until grep -qP "^net_cls\\t\\d+\\t1\\t" /proc/cgroups; do sleep 0.01; done; umount net
    """
    shell = ["unshare", "--mount", "sh", "-c", script]
    done = subprocess.run(
        shell, cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    assert done.stdout == "1048577\nlo 3\n", done.stderr


def test_the_same_id_in_another_root_is_another_container(
    woodfrog: Woodfrog, make_bundle: Make, tmp_path: Path
) -> None:
    bundle = make_bundle("exec sleep 1000")
    bundle.save()
    other = Woodfrog(tmp_path / "other")
    other.directory.mkdir()
    for each in (woodfrog, other):
        command = ("run", "-d", "-b", str(bundle.directory), "oci-twin")
        each(*command, output=each.directory / "twin")
    other("delete", "--force", "oci-twin")
    assert '"status": "running"' in woodfrog("state", "oci-twin").stdout
    woodfrog("delete", "--force", "oci-twin")
    assert not list(CGROUPS.glob("*/woodfrog@*/oci-twin"))


def test_who_fails_last_removes_the_parent_that_another_has_made(
    woodfrog: Woodfrog, make_bundle: Make, tmp_path: Path
) -> None:
    bundle = make_bundle("true")
    commands = []
    for name in ("first", "last"):
        there, may_end = tmp_path / f"{name}-there", tmp_path / f"{name}-may-end"
        script = f"touch {there}; until [ -e {may_end} ]; do sleep 0.01; done; exit 3"
        hook = {"path": "/bin/sh", "args": ["sh", "-c", script]}
        bundle.config["hooks"] = {"createRuntime": [hook]}
        bundle.save()
        command = woodfrog.command("create", "-b", str(bundle.directory), f"oci-{name}")
        commands.append(subprocess.Popen(command, stdin=subprocess.DEVNULL))
        eventually(there.exists, f"{name} has its groups")
    assert woodfrog.parents()
    for name, command in zip(("first", "last"), commands, strict=True):
        (tmp_path / f"{name}-may-end").touch()
        assert command.wait(60) == 1
    assert not woodfrog.parents()
