"""User namespaces and id-mapped mounts."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundles import Bundle, tmpfs
from containers import REPOSITORY, Done, Woodfrog

Make = Callable[[str], Bundle]
Name = Callable[[Bundle], str]
Run = Callable[..., Done]

USERS, GROUPS = 100_000, 200_000


def id_map(inside: int, outside: int, size: int) -> dict[str, int]:
    """Return an entry of a config's id mappings."""
    return {"containerID": inside, "hostID": outside, "size": size}


def in_user_namespace(bundle: Bundle) -> Bundle:
    """Give a bundle's container a user namespace, whose root owns the root file system."""
    linux = bundle.config["linux"]
    linux["namespaces"].append({"type": "user"})
    linux["uidMappings"] = [id_map(0, USERS, 65536)]
    linux["gidMappings"] = [id_map(0, GROUPS, 65536)]
    for directory, _, _ in os.walk(bundle.rootfs):
        os.chown(directory, USERS, GROUPS)
    return bundle


@pytest.fixture
def make(make_bundle: Make) -> Make:
    """Return what makes a bundle that runs a script in a user namespace."""
    return lambda script: in_user_namespace(make_bundle(script))


def test_root_inside_is_somebody_else_outside(run: Run, make: Make) -> None:
    bundle = make(
        "id -u; id -g; id -G; cat /proc/self/uid_map /proc/self/gid_map;"
        "touch /work/file; stat -c %u /"
    )
    words = run(bundle).stdout.split()
    assert words[:3] == ["0", "0", "0"]
    assert words[3:9] == ["0", str(USERS), "65536", "0", str(GROUPS), "65536"]
    assert words[9] == "0"
    made = (bundle.work / "file").stat()
    assert (made.st_uid, made.st_gid) == (USERS, GROUPS)


def test_the_program_is_the_user_of_the_config(run: Run, make: Make) -> None:
    bundle = make("id -u; id -G; grep CapEff /proc/self/status; touch /work/file")
    bundle.process["user"] = {"uid": 7, "gid": 8, "additionalGids": [9]}
    bundle.process["noNewPrivileges"] = True
    assert run(bundle).stdout.split() == ["7", "8", "9", "CapEff:", "0" * 16]
    made = (bundle.work / "file").stat()
    assert (made.st_uid, made.st_gid) == (USERS + 7, GROUPS + 8)


def test_the_other_namespaces_are_its_own(run: Run, make: Make) -> None:
    bundle = make(
        "hostname pond && hostname; ip link set lo mtu 1500 && echo net; echo 5 >"
        " /proc/sys/kernel/msgmax && echo ipc; mount -t tmpfs none /tmp && echo mnt;"
        "mount -t proc none /tmp && echo pid; cat /proc/self/timens_offsets"
    )
    bundle.add_capabilities("CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SYS_RESOURCE")
    bundle.config["linux"]["namespaces"].append({"type": "time"})
    bundle.config["linux"]["timeOffsets"] = {"monotonic": {"secs": 77}}
    lines = run(bundle).stdout.splitlines()
    assert lines[:5] == ["pond", "net", "ipc", "mnt", "pid"]
    assert lines[5].split() == ["monotonic", "77", "0"]


def test_it_has_devices_a_cgroup_and_a_terminal(run: Run, make: Make) -> None:
    bundle = make(
        "for d in null zero full random urandom tty; do stat -c '%n %t:%T' /dev/$d; done;"
        "echo x > /dev/null; head -c 1 /dev/zero | wc -c; tty; : < /dev/tty;"
        "cat /sys/fs/cgroup/pids/cgroup.procs /sys/fs/cgroup/cgroup.procs; ls -d /sys/class/net"
    )
    bundle.process["terminal"] = True
    bundle.add_mount(
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]}
    )
    lines = run(bundle).stdout.split("\n")
    numbers = ["1:3", "1:5", "1:7", "1:8", "1:9", "5:0"]
    assert [line.split()[1] for line in lines[:6]] == numbers
    assert lines[6:8] == ["1", "/dev/pts/0"]
    assert "1" in lines[8:]
    assert lines[-2] == "/sys/class/net"


def test_the_next_container_finds_what_devices_were_bound_to(run: Run, make: Make) -> None:
    bundle = make("echo x > /dev/null && echo ok")
    mounts = bundle.config["mounts"]
    mounts[:] = [mount for mount in mounts if not mount["destination"].startswith("/dev")]
    assert run(bundle).stdout == "ok\n"
    assert (bundle.rootfs / "dev/null").is_file()
    assert run(bundle).stdout == "ok\n"


def test_sources_out_of_its_reach_are_opened_for_it(run: Run, make: Make) -> None:
    bundle = make("cat /one/file /two")
    secret = bundle.directory / "secret"
    (secret / "inside").mkdir(parents=True)
    for name in ("inside/file", "alone"):
        (secret / name).write_text(f"{name} ")
    secret.chmod(0o700)
    for source, destination in ((secret / "inside", "/one"), (secret / "alone", "/two")):
        entry = {"destination": destination, "source": str(source), "options": ["bind", "ro"]}
        bundle.add_mount(entry)
    assert run(bundle).stdout == "inside/file alone "


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        (["bind"], "rw,nosuid,nodev,noatime"),
        (["bind", "ro"], "ro,nosuid,nodev,noatime"),
        (["bind", "noexec", "noatime", "symfollow"], "rw,nosuid,nodev,noexec,noatime"),
        (["bind", "dev"], None),
        (["bind", "relatime"], None),
    ],
)
def test_flags_that_the_host_has_set_stay(
    woodfrog: Woodfrog, make: Make, new_name: Name, options: list[str], flags: str | None
) -> None:
    bundle = make("grep ' /seen ' /proc/self/mountinfo")
    bundle.add_mount({"destination": "/seen", "source": "work", "options": options})
    command = woodfrog.command("run", "-b", str(bundle.directory), new_name(bundle))
    # The host is a mount namespace of this test's.
    mount = f"mount -t tmpfs -o nosuid,nodev,noatime none {bundle.work}"
    host = ["unshare", "--mount", "sh", "-c", f'{mount} && "$@"', "sh", *command]
    done = subprocess.run(host, capture_output=True, check=False, timeout=60, text=True)
    assert done.returncode == (0 if flags else 1)
    if flags:
        assert done.stdout.split()[5] == flags
    else:
        assert "operation not permitted" in done.stderr


def test_a_cgroup_keeps_the_flags_that_the_host_has_set(
    woodfrog: Woodfrog, make: Make, new_name: Name
) -> None:
    bundle = make("cat /proc/self/mountinfo")
    bundle.add_mount({"destination": "/sys/fs/cgroup", "type": "cgroup", "options": ["ro"]})
    command = woodfrog.command("run", "-b", str(bundle.directory), new_name(bundle))
    remount = (
        "for m in /sys/fs/cgroup/*/ /sys/fs/cgroup; do"
        " mountpoint -q $m && mount -o remount,bind,nosuid,nodev,noexec $m; done;"
    )
    host = ["unshare", "--mount", "sh", "-c", f'{remount} exec "$@"', "sh", *command]
    done = subprocess.run(host, capture_output=True, check=False, timeout=60, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    flags = [fields[5] for fields in lines if " cgroup" in " ".join(fields) and "-" in fields]
    groups = [one.split(",") for one in flags if "noexec" in one]
    assert groups
    assert all({"ro", "nosuid", "nodev", "noexec"} <= set(one) for one in groups)


def test_what_the_caller_gave_as_stdout_can_be_opened_again(
    woodfrog: Woodfrog, make: Make, new_name: Name
) -> None:
    bundle = make("echo through > /dev/stdout")
    bundle.process["user"] = {"uid": 7, "gid": 8}
    command = woodfrog.command("run", "-b", str(bundle.directory), new_name(bundle))
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=60)
    assert done.stdout == b"through\n"


def test_our_own_files_may_be_out_of_its_reach(
    woodfrog: Woodfrog, make: Make, new_name: Name, tmp_path: Path
) -> None:
    hidden = tmp_path / "hidden"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "src", hidden / "src", ignore=ignored)
    shutil.copy(REPOSITORY / "woodfrog", hidden)
    (hidden / ".venv").symlink_to(REPOSITORY / ".venv")
    hidden.chmod(0o700)
    bundle = make("cat /full/file; ls /sys/fs/cgroup")
    (bundle.rootfs / "full").mkdir()
    (bundle.rootfs / "full/file").write_text("copied\n")
    # Each of these needs a part of woodfrog that others don't.
    bundle.add_mount(tmpfs("/full", "tmpcopyup"))
    bundle.add_mount({"destination": "/sys/fs/cgroup", "type": "cgroup", "options": ["ro"]})
    bundle.process["scheduler"] = {"policy": "SCHED_OTHER", "nice": 5}
    bundle.config["linux"]["namespaces"].append({"type": "time"})
    bundle.config["linux"]["timeOffsets"] = {"monotonic": {"secs": 77}}
    bundle.config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW"}
    bundle.config["hooks"] = {"startContainer": [{"path": "/bin/true"}]}
    command = woodfrog.command("run", "-b", str(bundle.directory), new_name(bundle))
    command[0] = str(hidden / "woodfrog")
    done = subprocess.run(command, capture_output=True, check=False, timeout=60, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("copied\n")


def test_hooks_run_on_their_sides(run: Run, make: Make, tmp_path: Path) -> None:
    bundle = make("true")
    bundle.work.chmod(0o777)
    hooks = {}
    for moment in ("createRuntime", "createContainer", "startContainer", "poststop"):
        directory = "/work" if moment == "startContainer" else bundle.work
        command = f"id -u > {directory}/{moment}"
        hooks[moment] = [{"path": "/bin/sh", "args": ["sh", "-c", command]}]
    bundle.config["hooks"] = hooks
    for directory in (bundle.directory, *bundle.directory.parents):
        if directory.owner() == "root" and directory != Path("/"):
            directory.chmod(directory.stat().st_mode | 0o011)
        if directory == Path("/tmp"):
            break
    run(bundle)
    found = {name: int((bundle.work / name).read_text()) for name in hooks}
    assert found == dict.fromkeys(hooks, 0)
    owners = {name: (bundle.work / name).stat().st_uid for name in hooks}
    inside = {"createContainer": USERS, "startContainer": USERS}
    assert owners == {"createRuntime": 0, "poststop": 0} | inside


def test_only_ids_that_are_mapped_can_be_taken_on(run: Run, make: Make) -> None:
    bundle = make("true")
    for user, words in (
        ({"uid": 65536, "gid": 0}, "unmapped user in user namespace: 65536"),
        ({"uid": 0, "gid": 65537}, "unmapped group in user namespace: 65537"),
        ({"uid": 0, "gid": 0, "additionalGids": [1, 65538]}, "user namespace: 65538"),
    ):
        bundle.process["user"] = user
        assert words in run(bundle, status=1).stderr


def test_exec_enters_it_too(woodfrog: Woodfrog, make: Make) -> None:
    container = woodfrog.run(make("touch /work/up; exec sleep 1000"))
    container.wait_for("up")
    for user, expected in (("0:0", "0\n"), ("5:6", "5\n")):
        command = "id -u; readlink /proc/1/ns/user /proc/self/ns/user | uniq | wc -l"
        done = woodfrog("exec", "--user", user, container.name, "sh", "-c", command)
        assert done.stdout == f"{expected}1\n"
    assert os.stat(f"/proc/{container.init}").st_uid == USERS
    container.delete()


def test_one_that_exists_can_be_joined(woodfrog: Woodfrog, run: Run, make: Make) -> None:
    first = woodfrog.run(make("touch /work/up; exec sleep 1000"))
    first.wait_for("up")
    bundle = make("readlink /proc/self/ns/user; id -u; cat /proc/self/uid_map")
    bundle.config["linux"]["namespaces"][-1]["path"] = f"/proc/{first.init}/ns/user"
    expected = [os.readlink(f"/proc/{first.init}/ns/user"), "0", "0", str(USERS), "65536"]
    assert run(bundle).stdout.split() == expected
    del bundle.config["linux"]["uidMappings"], bundle.config["linux"]["gidMappings"]
    assert run(bundle).stdout.split() == expected
    bundle.config["linux"]["uidMappings"] = [id_map(0, USERS + 1, 65536)]
    bundle.config["linux"]["gidMappings"] = [id_map(0, GROUPS, 65536)]
    assert "non-matching mapping" in run(bundle, status=1).stderr
    first.delete()


def without_maps(linux: dict[str, Any]) -> str:
    del linux["uidMappings"], linux["gidMappings"]
    return "nor mappings to apply specified"


def without_namespace(linux: dict[str, Any]) -> str:
    linux["namespaces"].pop()
    return "user namespace isn't enabled"


def without_root(linux: dict[str, Any]) -> str:
    linux["uidMappings"] = [id_map(1, USERS, 10)]
    return "container uid and gid 0 must be mapped"


def with_half_a_map(linux: dict[str, Any]) -> str:
    linux["gidMappings"] = []
    return "only one is given"


def with_maps_that_overlap(linux: dict[str, Any]) -> str:
    linux["uidMappings"].append(id_map(5, 5, 5))
    return "do its id mappings overlap?"


def with_an_empty_map(linux: dict[str, Any]) -> str:
    linux["uidMappings"].append(id_map(70_000, 5, 0))
    return "linux.uidMappings[1] maps 0 ids"


def with_a_device_of_its_own(linux: dict[str, Any]) -> str:
    linux["devices"] = [{"path": "/dev/pond", "type": "c", "major": 1, "minor": 3}]
    return "only devices can be had that the host has"


def with_a_device_named_as_another(linux: dict[str, Any]) -> str:
    linux["devices"] = [{"path": "/dev/zero", "type": "c", "major": 1, "minor": 3}]
    return "nor bind the host's, which is another"


def with_sysfs_of_the_hosts_network(linux: dict[str, Any]) -> str:
    linux["namespaces"] = [one for one in linux["namespaces"] if one["type"] != "network"]
    return "sysfs needs a new network namespace"


@pytest.mark.parametrize(
    "wrong",
    [
        with_sysfs_of_the_hosts_network,
        without_maps,
        without_namespace,
        without_root,
        with_half_a_map,
        with_maps_that_overlap,
        with_an_empty_map,
        with_a_device_of_its_own,
        with_a_device_named_as_another,
    ],
)
def test_what_cannot_be_is_refused(
    woodfrog: Woodfrog, make: Make, new_name: Name, wrong: Callable[[dict[str, Any]], str]
) -> None:
    bundle = make("true")
    words = wrong(bundle.config["linux"])
    done = woodfrog("create", "-b", str(bundle.directory), new_name(bundle), status=1)
    assert words in done.stderr


def test_a_terminals_group_must_be_mapped(run: Run, make: Make) -> None:
    bundle = make("true")
    bundle.config["linux"]["gidMappings"] = [id_map(0, GROUPS, 1)]
    for mount in bundle.config["mounts"]:
        if mount["type"] == "devpts":
            mount["options"].append("gid=5")
    assert "are the ids in its options (gid=5) mapped" in run(bundle, status=1).stderr


# --- mounts with ids of their own ----------------------------------------------------------------


@pytest.fixture
def tree(make_bundle: Make) -> Callable[[bool, str], tuple[Bundle, dict[str, Any]]]:
    """Return what makes a bundle that shows the owners of a mount, and of one below it."""

    def make_tree(user_namespace: bool, bind: str) -> tuple[Bundle, dict[str, Any]]:
        bundle = make_bundle("stat -c %u:%g /seen/file /seen/below/file")
        (bundle.work / "below").mkdir()
        for path, uid, gid in (("file", 3, 4), ("below/file", 5, 6)):
            (bundle.work / path).touch()
            os.chown(bundle.work / path, uid, gid)
        if user_namespace:
            in_user_namespace(bundle)
        inner = {
            "destination": f"{bundle.rootfs}/tree/below",
            "source": str(bundle.work / "below"),
            "options": ["bind"],
        }
        bundle.add_mount({"destination": "/tree", "source": "work", "options": ["bind"]})
        bundle.add_mount(inner)
        entry = {
            "destination": "/seen",
            "source": str(bundle.rootfs / "tree"),
            "options": [bind, "rprivate"],
        }
        bundle.add_mount(entry)
        return bundle, entry

    return make_tree


Tree = Callable[[bool, str], tuple[Bundle, dict[str, Any]]]


@pytest.mark.parametrize(
    ("option", "below"), [(None, "5:6"), ("idmap", "5:6"), ("ridmap", "1005:2006")]
)
def test_a_mount_can_map_ids(run: Run, tree: Tree, option: str | None, below: str) -> None:
    bundle, entry = tree(False, "rbind")
    entry["uidMappings"] = [id_map(0, 1000, 100)]
    entry["gidMappings"] = [id_map(0, 2000, 100)]
    if option:
        entry["options"].append(option)
    assert run(bundle).stdout.split() == ["1003:2004", below]


@pytest.mark.parametrize(("option", "below"), [("idmap", "65534:65534"), ("ridmap", "5:6")])
def test_a_mount_can_take_over_the_user_namespaces_ids(
    run: Run, tree: Tree, option: str, below: str
) -> None:
    bundle, entry = tree(True, "rbind")
    entry["options"].append(option)
    assert run(bundle).stdout.split() == ["3:4", below]


def test_a_mount_can_have_other_ids_in_a_user_namespace(run: Run, tree: Tree) -> None:
    bundle, entry = tree(True, "bind")
    bundle.process["args"][-1] = "stat -c %u:%g /seen/file; grep ' /seen ' /proc/self/mountinfo"
    entry["uidMappings"] = [id_map(3, USERS + 33, 1)]
    entry["gidMappings"] = [id_map(4, GROUPS + 44, 1)]
    entry["options"] += ["ro", "nodev", "rnoexec"]
    words = run(bundle).stdout.split()
    assert words[0] == "33:44"
    assert words[6].split(",")[:4] == ["ro", "nodev", "noexec", "relatime"]


def test_ids_that_cannot_be_mapped_are_refused(run: Run, make_bundle: Make) -> None:
    bundle = make_bundle("true")
    bundle.add_mount({"destination": "/m", "source": "work", "options": ["bind", "idmap"]})
    assert "must have both uid and gid mappings" in run(bundle, status=1).stderr
    bundle.config["mounts"][-1]["uidMappings"] = [id_map(0, 1, 1)]
    assert "only one is given" in run(bundle, status=1).stderr
    bundle.config["mounts"].pop()
    bundle.add_mount(tmpfs("/m", "idmap"))
    assert "is no bind mount" in run(bundle, status=1).stderr
